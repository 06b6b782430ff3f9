"""tokenize: texts of a request -> token ids, equal candidates once, those without text not at all.

Every input is checked here, so that a bad request is answered with INVALID_ARG and never reaches the engine, while
its neighbours go on. A request that cannot be done in time is refused at once (``admission.py``).
``text.py`` beside this file is the definition that the model was trained with.

For a scorer on a GPU (``candidate_buckets`` in the config) requests are padded to a few shapes, because Triton batches
equal shapes only. There Triton's own queue bounds the wait, and neither deadline nor ticket is handed on.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

# The copy beside this file, whatever of that name the environment has.
sys.path.insert(0, str(Path(__file__).parent))

from tritonrank_runtime.admission import Admission, RefusedError
from tritonrank_runtime.backend import array, cancelled, family, invalid, raise_by, unavailable, unexpected
from tritonrank_runtime.deadlines import deadline_after, seconds_left
from tritonrank_runtime.interpreter import check_interpreter
from tritonrank_runtime.item_text import TextError
from tritonrank_runtime.padding import Buckets
from tritonrank_runtime.request_reading import TOLD, RequestLimits, RequestReader
from tritonrank_runtime.scorer_counts import counter_folder
from tritonrank_runtime.text import RequestTokenizer


class TritonPythonModel:
    def initialize(self, args):
        check_interpreter(Path(__file__).parent)
        config = json.loads(args["model_config"])
        settings = {name: value["string_value"] for name, value in config["parameters"].items()}
        self.deadline_us = int(settings["deadline_us"])
        self.admission = Admission(
            int(settings["queue_requests"]),
            self.deadline_us / 1e6,
            float(settings["queue_share"]),
            counter_folder(settings["queue"]),
            int(settings["queue_delay_us"]) / 1e6,
        )
        self.outputs = {output["name"] for output in config["output"]}
        self.engine_inputs = [
            output["name"]
            for output in config["output"]
            if output["name"] not in {"row_of_candidate", "deadline", "ticket", *TOLD}
        ]
        self.tokenizer = RequestTokenizer.from_folder(Path(__file__).parent, int(settings["item_cache_entries"]))
        self.reader = RequestReader(self.tokenizer, RequestLimits.of(settings))
        self.buckets = None
        if buckets := settings.get("candidate_buckets"):
            self.buckets = Buckets(*(tuple(map(int, one.split(","))) for one in (buckets, settings["token_buckets"])))
        self._open_metrics({"model": args["model_name"], "version": args["model_version"]})

    def _open_metrics(self, labels):
        texts = family("tritonrank_texts_total", "Texts of the requests")
        cut = family("tritonrank_texts_cut_total", "Texts that the ranker read in part or not at all: a budget ended")
        rejected = family(
            "tritonrank_requests_rejected_total", "Requests refused because they could not be done in time"
        )
        without = family("tritonrank_items_without_text_total", "Candidates ranked last because they have no text")
        restarts = family("tritonrank_server_restarts", "Times that a part was lost and the server came back", "GAUGE")
        self.restarts = restarts.Metric(labels=labels)
        self.restarts.set(float(os.environ.get("TRITONRANK_RESTARTS", "0")))
        self.families = [texts, cut, rejected, without, restarts]  # a family must outlive its metrics
        self.rejected, self.without_text = rejected.Metric(labels=labels), without.Metric(labels=labels)
        self.text_metrics = {
            name: tuple(one.Metric(labels=labels | {"field": name}) for one in (texts, cut))
            for name in self.tokenizer.counts
        }
        self.token_metrics = []
        if self.buckets:
            computed = family("tritonrank_tokens_computed_total", "Tokens of the requests with their padding")
            needed = family("tritonrank_tokens_needed_total", "Tokens of the requests, without padding")
            self.families += [computed, needed]
            self.token_metrics = [one.Metric(labels=labels) for one in (computed, needed)]

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        try:
            if request.is_cancelled():
                return cancelled()
            return self._admit(request)
        except TextError as error:
            return invalid(str(error))
        except RefusedError as error:
            self.rejected.increment(1)
            return unavailable(str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer without a traceback
            return unexpected(error, "tokenize")

    def _admit(self, request):
        deadline = deadline_after(request.timeout(), self.deadline_us)
        self.admission.check_room(seconds_left(deadline))  # before any work for a request that has no chance
        read = self.reader.read(lambda name: array(request, name))
        tensors = read.tensors
        tokens = self.tokenizer.architecture.needed_tokens(tensors)
        self.admission.check_room(seconds_left(deadline), tokens)
        if self.buckets:
            tensors = self.tokenizer.padded(tensors, self.buckets)
            self._count_tokens(tensors, tokens)
        answer = {name: tensors[name] for name in self.engine_inputs} | read.told
        answer["row_of_candidate"] = read.row_of_candidate
        self._count_texts(read.without_text)
        rows = len(tensors[self.engine_inputs[0]])
        ticket = self.admission.admitted(tokens, seconds_left(deadline))
        for name, value in (("deadline", deadline), ("ticket", ticket)):
            if name in self.outputs:
                answer[name] = self._for_the_scorer(value, rows)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, tensor) for name, tensor in answer.items()])

    def _for_the_scorer(self, value, rows):
        # Once per entry of the scorer's batch, which a request is, or has rows of.
        shape = (1,) if self.tokenizer.architecture.batch_is_request else (rows, 1)
        return np.full(shape, value, dtype=np.int64)

    def _count_texts(self, without_text):
        raise_by(self.without_text, without_text)
        for name, counts in self.tokenizer.counts.items():
            for metric, count in zip(self.text_metrics[name], (counts.total, counts.cut), strict=True):
                raise_by(metric, count)
            counts.total = counts.cut = 0

    def _count_tokens(self, padded, needed):
        computed, necessary = self.token_metrics
        computed.increment(self.tokenizer.architecture.computed_tokens(padded))
        necessary.increment(needed)
