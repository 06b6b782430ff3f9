"""score: rows of token ids -> logits, by ONNX Runtime on the CPU (target cpu).

The dynamic batcher hands over several requests of any shape at once (ragged); ``engine.py`` beside this file regroups
their rows by padded length. Its metrics say how many tokens padding costs.
"""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from engine import OnnxEngine, available_cores, token_counts
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
        ]
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self.computed, self.needed = (family.Metric(labels=labels) for family in self.families)

    def execute(self, requests):
        live = [request for request in requests if not request.is_cancelled()]
        rows = [self._rows(request) for request in live]
        answers = iter(self.engine.run(rows) if rows else [])
        if rows:
            computed, needed = token_counts(rows)
            self.computed.increment(computed)
            self.needed.increment(needed)
        alive = {id(request) for request in live}
        return [_logits(next(answers)) if id(request) in alive else _cancelled() for request in requests]

    def _rows(self, request):
        return {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.engine.input_names}


def _logits(logits):
    return pb_utils.InferenceResponse([pb_utils.Tensor("logits", logits[:, np.newaxis].astype(np.float32))])


def _cancelled():
    error = pb_utils.TritonError("the client cancelled the request", pb_utils.TritonError.CANCELLED)
    return pb_utils.InferenceResponse(error=error)


def _counter_family(name, description):
    return pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.COUNTER)
