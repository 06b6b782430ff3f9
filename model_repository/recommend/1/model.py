"""recommend: a user's id, session or query -> a page, over Triton's own protocols.

The same engine as behind the gateway's ``POST /v1/recommend`` (``tritonrank_recommend``), with the same JSON in and
out; the ranker is the ensemble ``rank`` of this server, asked from inside. Catalogue and blend lie beside this file.
The store is named by TRITONRANK_STORE, else by the parameter ``store``; without one nothing is known of users but what
their requests carry. The shop's rules are the file of TRITONRANK_RULES or ``rules``, and the training log's folder that
of TRITONRANK_EVENTS_LOG or ``events_log``: every instance is to the store what a gateway is.

Nothing is opened before the first request, so that a server whose ``recommend`` nobody asks pays next to nothing.
The engine keeps things fresh in the background, so it lives in an event loop of its own.
"""

import asyncio
import json
import os
import sys
import threading
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

# The copy beside this file, whatever of that name the environment has.
sys.path.insert(0, str(Path(__file__).parent))

from tritonrank_runtime.admission import EXPIRED
from tritonrank_runtime.backend import array, cancelled, failure, invalid, let_go, unavailable, unexpected
from tritonrank_runtime.deadlines import deadline_after, seconds_left
from tritonrank_runtime.inherited import close_inherited_sockets
from tritonrank_runtime.interpreter import check_interpreter
from tritonrank_runtime.recommend_metrics import RecommendMetrics

GRACE_SECONDS = 0.5
"""The engine ends by its deadline itself, with a list; this is for a machine that is too busy for that."""
START_SECONDS = 30.0
NOT_INSTALLED = "recommend: {} is not installed in {}: pip install 'tritonrank[gateway]'"


class TritonPythonModel:
    def initialize(self, args):
        self.folder = Path(__file__).parent
        close_inherited_sockets()
        check_interpreter(self.folder)
        parameters = json.loads(args["model_config"])["parameters"]
        settings = {name: value["string_value"] for name, value in parameters.items()}
        self.deadline_us = int(settings["deadline_us"])
        self.ranker = settings["ranker"]
        self.history_items = int(settings["history_items"]) if "history_items" in settings else None
        self.store, self.rules, self.events_log = (
            os.environ.get(f"TRITONRANK_{name.upper()}") or settings.get(name, "")
            for name in ("store", "rules", "events_log")
        )
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="recommend", daemon=True)
        self.recommender = None
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self.metrics = RecommendMetrics(labels, args["model_instance_name"])

    def finalize(self):
        self.metrics.close()
        if self.recommender is not None:
            self._in_loop(self.recommender.close(), START_SECONDS)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(GRACE_SECONDS)
        let_go(self)

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        try:
            if request.is_cancelled():
                return cancelled()
            deadline = deadline_after(request.timeout(), self.deadline_us)
            if self.recommender is None:
                self._open()
                deadline = deadline_after(request.timeout(), self.deadline_us)  # opening is not the caller's affair
            return self._recommend(request, deadline)
        except ModuleNotFoundError as error:
            return failure(NOT_INSTALLED.format(error.name, sys.prefix), pb_utils.TritonError.INTERNAL)
        except FutureTimeoutError:
            return unavailable(EXPIRED)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer without a traceback
            return unexpected(error, "recommend")

    def _open(self):
        from tritonrank_recommend.engine import Recommender
        from tritonrank_recommend.engine.memory import set_aside_what_is_open

        if self.events_log and not self.store:
            raise ValueError("a training log needs a store: set TRITONRANK_STORE beside TRITONRANK_EVENTS_LOG")

        async def open_all():
            blend = self.folder / "blend"
            recommender = Recommender.open(
                catalogue=self.folder / "catalogue",
                blend=blend if blend.is_dir() else None,
                store_url=self.store,
                rules=Path(self.rules) if self.rules else None,
                events_log=Path(self.events_log) if self.events_log else None,
                ranker=EnsembleRanker(self.ranker, self.history_items),
            )
            if recommender.parts.store is not None:
                self.metrics.watch(recommender.parts.store)
            await recommender.start()
            set_aside_what_is_open()
            return recommender

        if not self.thread.is_alive():
            self.thread.start()
        self.recommender = self._in_loop(open_all(), START_SECONDS)

    def _recommend(self, request, deadline):
        import msgspec
        from tritonrank_recommend.engine import PageGoneError, RequestError

        try:
            asked = _request_of(request)
            left = max(0.001, seconds_left(deadline))
            answer = self._in_loop(self.recommender.recommend(asked, seconds=left), left + GRACE_SECONDS)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return invalid(f"request: {error}")
        except RequestError as error:
            return invalid(str(error))
        except PageGoneError:
            return invalid("cursor: this list is no longer kept; ask for its first page again, without a cursor")
        self.metrics.answered(answer)
        item_ids = np.array([item.item_id.encode() for item in answer.items], dtype=np.object_)
        scores = np.array([item.score for item in answer.items], dtype=np.float32)
        told = np.array([msgspec.json.encode(answer)], dtype=np.object_)
        outputs = {"answer": told, "item_ids": item_ids, "scores": scores}
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, values) for name, values in outputs.items()])

    def _in_loop(self, work, seconds):
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result(seconds)
        except FutureTimeoutError:
            future.cancel()
            raise


class EnsembleRanker:
    """The engine's Ranker: the ensemble in this server, asked from inside (business logic scripting)."""

    def __init__(self, model, history_items):
        self._model = model
        self.history_items = history_items

    async def score(self, query, history, items, *, user="", seconds=None):
        from tritonrank_client import DeadlineExceeded, InvalidRequest, Overloaded, ServerFault, encode_item
        from tritonrank_recommend.engine.ranker import Scored

        tensors = {"query": [query.encode()], "items": [encode_item(item) for item in items]}
        if history:
            tensors["history"] = [encode_item(item) for item in history]
        request = pb_utils.InferenceRequest(
            model_name=self._model,
            requested_output_names=["indices", "scores", "artifact"],
            inputs=[pb_utils.Tensor(name, np.array(values, dtype=np.object_)) for name, values in tensors.items()],
            timeout=0 if seconds is None else max(1, int(seconds * 1e6)),
        )
        response = await request.async_exec()
        if response.has_error():
            error, codes = response.error(), pb_utils.TritonError
            if error.code() == codes.INVALID_ARG:
                raise InvalidRequest(error.message())
            if EXPIRED in error.message():
                raise DeadlineExceeded(error.message())
            if error.code() == codes.UNAVAILABLE:
                raise Overloaded(error.message(), retryable=True)
            raise ServerFault(error.message())
        found = {name: pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in ("indices", "scores")}
        artifact = pb_utils.get_output_tensor_by_name(response, "artifact").as_numpy()[0].decode()
        logits = np.empty(len(items), dtype=np.float32)
        logits[found["indices"]] = found["scores"]
        return Scored(logits, artifact)


def _request_of(request):
    """The body in ``request``, with what stands in tensors of its own in its place."""
    import msgspec
    from tritonrank_recommend.engine.wire import RecommendRequest

    body = array(request, "request")
    asked = {} if body is None else msgspec.json.decode(body.ravel()[0])
    if not isinstance(asked, dict):
        raise msgspec.DecodeError("expected a JSON object")
    for name in ("user_id", "query"):
        if (values := array(request, name)) is not None:
            asked[name] = values.ravel()[0].decode()
    if (recent := array(request, "recent")) is not None:
        asked["recent"] = [item_id.decode() for item_id in recent.ravel()]
    if (size := array(request, "size")) is not None:
        asked["size"] = int(size.ravel()[0])
    return msgspec.convert(asked, RecommendRequest)
