"""select: logits -> the ranking, best first.

Ties keep the order of the request. Candidates are merged only when the request says that they are the same item
(equal ``item_ids``): then the best-scored one stays. Equal texts were scored once and are all returned.
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
        logits = pb_utils.get_input_tensor_by_name(request, "logits").as_numpy()[:, 0]
        scores = logits[pb_utils.get_input_tensor_by_name(request, "row_of_candidate").as_numpy()]
        order = np.argsort(-scores, kind="stable")
        item_ids = pb_utils.get_input_tensor_by_name(request, "item_ids")
        if item_ids is not None:
            ids = item_ids.as_numpy()[order]
            firsts = {item: place for place, item in reversed(list(enumerate(ids)))}
            order = order[sorted(firsts.values())]
        top_k = pb_utils.get_input_tensor_by_name(request, "top_k")
        if top_k is not None and (limit := int(top_k.as_numpy()[0])):
            order = order[:limit]
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("indices", order.astype(np.int32)),
                pb_utils.Tensor("scores", scores[order].astype(np.float32)),
                pb_utils.Tensor("artifact", self.artifact),
            ]
        )
