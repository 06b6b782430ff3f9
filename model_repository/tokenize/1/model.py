"""tokenize: texts of a request -> token ids, equal candidates once.

Every input is checked here, so that a bad request is answered with INVALID_ARG and never reaches the engine, while
its neighbours go on. A request that cannot be done in time is refused at once (``admission.py``).
``text.py`` beside this file is the definition that the model was trained with.

For a scorer on a GPU (``candidate_buckets`` in the config) requests are padded to a few shapes, because Triton batches
equal shapes only. There Triton's own queue bounds the wait, and no deadline is handed on.
"""

import json
import os
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from admission import Admission, QueueFullError, deadline_after, seconds_left, work_tokens
from interpreter import check_interpreter
from text import JOINT, Buckets, RequestTokenizer, TextError, decode_texts, unique_rows


class TritonPythonModel:
    def initialize(self, args):
        check_interpreter()
        config = json.loads(args["model_config"])
        settings = {name: value["string_value"] for name, value in config["parameters"].items()}
        self.max_candidates = int(settings["max_candidates"])
        self.max_history = int(settings["max_history"])
        self.max_text_bytes = int(settings["max_text_bytes"])
        self.deadline_us = int(settings["deadline_us"])
        self.admission = Admission(
            int(settings["queue_requests"]), self.deadline_us / 1e6, float(settings["queue_share"])
        )
        self.families = [
            _counter("tritonrank_requests_rejected_total", "Requests refused because they could not be done in time")
        ]
        outputs = [output["name"] for output in config["output"]]
        self.hands_deadline_on = "deadline" in outputs
        self.engine_inputs = [name for name in outputs if name not in {"row_of_candidate", "deadline"}]
        self.buckets = None
        if buckets := settings.get("candidate_buckets"):
            self.buckets = Buckets(*(tuple(map(int, one.split(","))) for one in (buckets, settings["token_buckets"])))
            self.families += [
                _counter("tritonrank_tokens_computed_total", "Tokens of the requests with their padding"),
                _counter("tritonrank_tokens_needed_total", "Tokens of the requests, without padding"),
            ]
        labels = {"model": args["model_name"], "version": args["model_version"]}
        # A family must outlive its metrics, so both are kept.
        self.rejected, *self.token_metrics = (family.Metric(labels=labels) for family in self.families)
        restarts = "Times the server was brought back after a part of it was lost"
        self.restarts_family = pb_utils.MetricFamily(
            name="tritonrank_server_restarts", description=restarts, kind=pb_utils.MetricFamily.GAUGE
        )
        self.restarts = self.restarts_family.Metric(labels=labels)
        self.restarts.set(float(os.environ.get("TRITONRANK_RESTARTS", "0")))
        self.tokenizer = RequestTokenizer.from_folder(Path(__file__).parent, int(settings["item_cache_entries"]))

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        try:
            if request.is_cancelled():
                return _failure("the client cancelled the request", pb_utils.TritonError.CANCELLED)
            deadline = deadline_after(request.timeout(), self.deadline_us)
            self.admission.check_room(seconds_left(deadline))  # before any work for a request that has no chance
            tensors, tokens = self._tokenize(request, deadline)
            self.admission.check_room(seconds_left(deadline), tokens)
        except TextError as error:
            return _failure(str(error), pb_utils.TritonError.INVALID_ARG)
        except QueueFullError as error:
            self.rejected.increment(1)
            return _failure(str(error), pb_utils.TritonError.UNAVAILABLE)
        self.admission.admitted(tokens)
        return pb_utils.InferenceResponse(tensors)

    def _tokenize(self, request, deadline):
        items = self._texts(request, "items", self.max_candidates)
        if not items:
            raise TextError("items: at least one candidate is needed")
        self._check_item_ids(request, len(items))
        _check_top_k(request)
        query = self._texts(request, "query", 1)[0]
        history = self._texts(request, "history", self.max_history)
        render = self.tokenizer.render
        candidates = self.tokenizer.items([render(item, f"items[{i}]") for i, item in enumerate(items)])
        for position, ids in enumerate(candidates):
            if not ids:
                raise TextError(f"items[{position}]: no token is left of this text; leave the candidate out")
        context = self.tokenizer.context(query, [render(item, f"history[{i}]") for i, item in enumerate(history)])
        rows, row_of_candidate = unique_rows(candidates)
        tensors = self.tokenizer.tensors(context, rows)
        tokens = work_tokens(tensors)
        if self.buckets:
            tensors = self.tokenizer.padded(tensors, self.buckets)
            self._count_tokens(tensors, tokens)
        answer = [
            *(pb_utils.Tensor(name, tensors[name]) for name in self.engine_inputs),
            pb_utils.Tensor("row_of_candidate", row_of_candidate),
        ]
        if self.hands_deadline_on:
            answer.append(pb_utils.Tensor("deadline", self._deadline_tensor(deadline, len(rows))))
        return answer, tokens

    def _deadline_tensor(self, deadline, rows):
        # The scorer's batch dimension is the row for a joint ranker, the request for a shared-context one.
        shape = (rows, 1) if self.tokenizer.rules.architecture == JOINT else (1,)
        return np.full(shape, deadline, dtype=np.int64)

    def _count_tokens(self, padded, needed):
        kinds = ["input_ids"] if self.tokenizer.rules.architecture == JOINT else self.engine_inputs
        computed, necessary = self.token_metrics
        computed.increment(sum(padded[name].size for name in kinds))
        necessary.increment(needed)

    def _texts(self, request, name, limit):
        values = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
        if len(values) > limit:
            raise TextError(f"{name}: {len(values)} elements; the limit is {limit}")
        return decode_texts(values, name, self.max_text_bytes)

    def _check_item_ids(self, request, candidates):
        if pb_utils.get_input_tensor_by_name(request, "item_ids") is None:
            return
        found = len(self._texts(request, "item_ids", self.max_candidates))
        if found != candidates:
            raise TextError(f"item_ids: {found} elements for {candidates} items; give one id per item or none at all")


def _check_top_k(request):
    tensor = pb_utils.get_input_tensor_by_name(request, "top_k")
    if tensor is not None and (top_k := int(tensor.as_numpy()[0])) < 0:
        raise TextError(f"top_k: {top_k}; expected 0 (all) or a positive number")


def _counter(name, description):
    return pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.COUNTER)


def _failure(message, code):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
