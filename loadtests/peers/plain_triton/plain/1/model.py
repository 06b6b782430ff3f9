"""The usual tutorial: tokenize all pairs, pad them to the longest, run ONNX Runtime as it comes."""

import os
from pathlib import Path
from typing import Any

os.environ["USE_TORCH"] = "0"  # the tokenizer needs no torch, and a serving image would not hold it

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils
from transformers import AutoTokenizer


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(__file__).parent / "model"
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        self.names = [tensor.name for tensor in self.session.get_inputs()]

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        query = pb_utils.get_input_tensor_by_name(request, "query").as_numpy()[0].decode()
        documents = [text.decode() for text in pb_utils.get_input_tensor_by_name(request, "documents").as_numpy()]
        queries = [query] * len(documents)
        encoded = self.tokenizer(queries, documents, padding=True, truncation=True, return_tensors="np")
        inputs = {name: encoded[name].astype(np.int64) for name in self.names}
        (logits,) = self.session.run(["logits"], inputs)
        return pb_utils.InferenceResponse([pb_utils.Tensor("scores", logits[:, 0].astype(np.float32))])
