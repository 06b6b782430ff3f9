"""tokenize: texts of a request -> token ids, equal candidates once, those without text not at all.

Every input is checked here, so that a bad request is answered with INVALID_ARG and never reaches the engine, while
its neighbours go on. A request that cannot be done in time is refused at once (``admission.py``).
``text.py`` beside this file is the definition that the model was trained with.

For a scorer on a GPU (``candidate_buckets`` in the config) requests are padded to a few shapes, because Triton batches
equal shapes only. There Triton's own queue bounds the wait, and neither deadline nor ticket is handed on.
"""

import json
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

# The copy beside this file, whatever of that name the environment has.
sys.path.insert(0, str(Path(__file__).parent))

from tritonrank_runtime.admission import Admission, RefusedError
from tritonrank_runtime.backend import Tally, array, cancelled, invalid, let_go, unavailable, unexpected
from tritonrank_runtime.deadlines import deadline_after, seconds_left
from tritonrank_runtime.gate_metrics import GateMetrics
from tritonrank_runtime.inherited import close_inherited_sockets
from tritonrank_runtime.interpreter import check_interpreter
from tritonrank_runtime.item_text import TextError
from tritonrank_runtime.padding import Buckets
from tritonrank_runtime.request_reading import TOLD, RequestLimits, RequestReader
from tritonrank_runtime.scorer_counts import counter_folder
from tritonrank_runtime.text import RequestTokenizer
from tritonrank_runtime.tracing import open_model_tracing
from tritonrank_runtime.tuning import Tuning


class TritonPythonModel:
    def initialize(self, args):
        close_inherited_sockets()
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
        self.tuning = Tuning({"queue_share": float(settings["queue_share"])}, pb_utils.Logger.log_warn)
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
        self.tracing = open_model_tracing(args["model_name"])

    def _open_metrics(self, labels):
        self.tally = Tally()
        self.gate = GateMetrics(self.tally, labels, [*self.tokenizer.counts], self.admission)
        self.token_metrics = []
        if self.buckets:
            self.token_metrics = [
                self.gate.counter("tritonrank_tokens_computed_total", "Tokens of the requests with their padding"),
                self.gate.counter("tritonrank_tokens_needed_total", "Tokens of the requests, without padding"),
            ]

    def finalize(self):
        self.tally.close()
        self.tracing.close()
        let_go(self)

    def execute(self, requests):
        if self.tuning.look():
            self.admission.queue_share = self.tuning.values["queue_share"]
        return [self.tracing.traced(request, self._answer) for request in requests]

    def _answer(self, request):
        try:
            if request.is_cancelled():
                return cancelled()
            return self._admit(request)
        except TextError as error:
            return invalid(str(error))
        except RefusedError as error:
            self.gate.refused(error)
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
        self.gate.read(read.without_text, self.tokenizer.counts)
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

    def _count_tokens(self, padded, needed):
        computed, necessary = self.token_metrics
        self.tally.add(computed, self.tokenizer.architecture.computed_tokens(padded))
        self.tally.add(necessary, needed)
