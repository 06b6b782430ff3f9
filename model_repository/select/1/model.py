"""select: logits -> the ranking, best first.

Ties keep the order of the request. Candidates are merged only when the request says that they are the same item
(equal ``item_ids``): then the best-scored one stays. Equal texts were scored once and are all returned. Logits of
padding, which a scorer on a GPU gets, come behind those of the candidates, and no candidate refers to them.
"""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from interpreter import check_interpreter


class TritonPythonModel:
    def initialize(self, args):
        check_interpreter()
        identity = json.loads((Path(__file__).parent / "artifact.json").read_text(encoding="utf-8"))
        self.artifact = np.array([identity["artifact"].encode()], dtype=np.object_)

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        logits = pb_utils.get_input_tensor_by_name(request, "logits").as_numpy().ravel()
        rows = pb_utils.get_input_tensor_by_name(request, "row_of_candidate").as_numpy()
        item_ids, top_k = _optional(request, "item_ids"), _optional(request, "top_k")
        limit = 0 if top_k is None else int(top_k[0])
        if fault := _fault(rows, len(logits), item_ids, limit):
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(fault, pb_utils.TritonError.INVALID_ARG))
        scores = logits[rows]
        order = np.argsort(-scores, kind="stable")
        if item_ids is not None:
            firsts = {item: place for place, item in reversed(list(enumerate(item_ids[order])))}
            order = order[sorted(firsts.values())]
        if limit:
            order = order[:limit]
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("indices", order.astype(np.int32)),
                pb_utils.Tensor("scores", scores[order].astype(np.float32)),
                pb_utils.Tensor("artifact", self.artifact),
            ]
        )


def _optional(request, name):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def _fault(rows, logits, item_ids, top_k):
    """What is wrong with a request that did not come through ``tokenize``; None if nothing is."""
    if not len(rows) or rows.min() < 0 or rows.max() >= logits:
        return f"row_of_candidate: expected at least one, each the place of one of {logits} logits"
    if item_ids is not None and len(item_ids) != len(rows):
        return f"item_ids: {len(item_ids)} elements for {len(rows)} candidates"
    if top_k < 0:
        return f"top_k: {top_k}; expected 0 (all) or a positive number"
    return None
