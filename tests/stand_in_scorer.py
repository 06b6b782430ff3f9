"""Stands in for Triton's onnxruntime backend, which the bundled server does not have: one run per execution.

It does what that backend does: puts the tensors of all requests that the batcher hands over one after the other along
the batch, runs model.onnx once, and cuts the logits. The test copies it to ``score/1/model.py``. Each execution leaves
a line in executions.jsonl: the shape of each request's last tensor.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(__file__).resolve().parent  # the server sees the repository as links
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
        self.names = [tensor.name for tensor in self.session.get_inputs()]
        self.executions = folder / "executions.jsonl"

    def execute(self, requests):
        tensors = [
            {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.names}
            for request in requests
        ]
        with self.executions.open("a", encoding="utf-8") as log:
            log.write(json.dumps([one[self.names[-1]].shape for one in tensors]) + "\n")
        feed = {name: np.concatenate([one[name] for one in tensors]) for name in self.names}
        (logits,) = self.session.run(["logits"], feed)
        cuts = np.cumsum([len(one[self.names[0]]) for one in tensors])[:-1]
        parts = np.split(logits.astype(np.float32), cuts)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("logits", part)]) for part in parts]
