"""score: rows of token ids -> logits, by ONNX Runtime on the CPU (target cpu).

The dynamic batcher hands over several requests of any shape at once (ragged); ``engine.py`` beside this file regroups
their rows by padded length. Its metrics say how many tokens padding costs.
"""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from admission import EXPIRED, StartedCounter, is_expired
from engine import OnnxEngine, RowsError, available_cores, check_rows, token_counts
from interpreter import check_interpreter


class TritonPythonModel:
    def initialize(self, args):
        check_interpreter()
        config = json.loads(args["model_config"])
        settings = {name: value["string_value"] for name, value in config["parameters"].items()}
        instances = sum(group["count"] for group in config["instance_group"])
        threads = int(settings["threads"]) or max(1, available_cores() // instances)
        self.engine = OnnxEngine(Path(__file__).parent / "model.onnx", threads, int(settings["rows_per_batch"]))
        # A family must outlive its metrics, so both are kept.
        self.families = [
            _counter_family("tritonrank_tokens_computed_total", "Tokens run through the engine"),
            _counter_family("tritonrank_tokens_needed_total", "Tokens of the requests, without padding"),
            _counter_family("tritonrank_requests_expired_total", "Requests whose deadline passed while they waited"),
        ]
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self.computed, self.needed, self.expired = (family.Metric(labels=labels) for family in self.families)
        self.started = StartedCounter(args["model_instance_name"])

    def finalize(self):
        self.started.close()

    def execute(self, requests):
        self.started.add(len(requests))
        answers = {}
        rows = {}
        for number, request in enumerate(requests):
            if request.is_cancelled():
                answers[number] = _failure("the client cancelled the request", pb_utils.TritonError.CANCELLED)
                continue
            if _has_expired(request):
                self.expired.increment(1)
                answers[number] = _failure(EXPIRED, pb_utils.TritonError.UNAVAILABLE)
                continue
            try:
                rows[number] = self._rows(request)
            except RowsError as error:
                answers[number] = _failure(str(error), pb_utils.TritonError.INVALID_ARG)
        if rows:
            answers |= zip(rows, self._run(list(rows.values())), strict=True)
        return [answers[number] for number in range(len(requests))]

    def _rows(self, request):
        names = self.engine.input_names
        rows = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in names}
        check_rows(rows)
        return rows

    def _run(self, rows):
        """The answer to each request; one that the engine refuses must not take its batch mates along."""
        try:
            logits = self.engine.run(rows)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime has a class for each of its status codes
            if len(rows) > 1:
                return [self._run([one])[0] for one in rows]
            return [_failure(f"the engine refused these rows: {error}", pb_utils.TritonError.INTERNAL)]
        computed, needed = token_counts(rows)
        self.computed.increment(computed)
        self.needed.increment(needed)
        return [_logits(one) for one in logits]


def _has_expired(request):
    deadline = pb_utils.get_input_tensor_by_name(request, "deadline")
    return deadline is not None and is_expired(int(deadline.as_numpy()[0, 0]))


def _logits(logits):
    return pb_utils.InferenceResponse([pb_utils.Tensor("logits", logits[:, np.newaxis].astype(np.float32))])


def _failure(message, code):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def _counter_family(name, description):
    return pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.COUNTER)
