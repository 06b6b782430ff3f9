"""select: logits -> the ranking, best first.

Ties keep the order of the request. Candidates are merged only when the request says that they are the same item
(equal ``item_ids``): then the best-scored one stays. Equal texts were scored once and are all returned. Candidates
without text have no logit (``row_of_candidate`` is -1): they come last. Logits of padding, which a scorer on a GPU
gets, come behind those of the candidates, and no candidate refers to them.
"""

import json
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

# The copy beside this file, whatever of that name the environment has.
sys.path.insert(0, str(Path(__file__).parent))

from tritonrank_runtime.backend import array, invalid, let_go, unexpected
from tritonrank_runtime.candidate_rows import NO_ROW, candidate_scores
from tritonrank_runtime.gate_metrics import artifact_gauges
from tritonrank_runtime.inherited import close_inherited_sockets
from tritonrank_runtime.interpreter import check_interpreter
from tritonrank_runtime.selection import best_first
from tritonrank_runtime.tracing import open_model_tracing


class TritonPythonModel:
    def initialize(self, args):
        close_inherited_sockets()
        check_interpreter(Path(__file__).parent)
        identity = json.loads((Path(__file__).parent / "artifact.json").read_text(encoding="utf-8"))
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self.families = artifact_gauges(labels, identity["artifact"], Path(args["model_repository"]))
        self.artifact = np.array([identity["artifact"].encode()], dtype=np.object_)
        self.tracing = open_model_tracing(args["model_name"])

    def finalize(self):
        self.tracing.close()
        let_go(self)

    def execute(self, requests):
        return [self.tracing.traced(request, self._answer) for request in requests]

    def _answer(self, request):
        try:
            logits, rows, item_ids, top_k = (
                array(request, name) for name in ("logits", "row_of_candidate", "item_ids", "top_k")
            )
            if fault := _fault(logits, rows, item_ids, top_k):
                return invalid(fault)
            return self._ranking(
                candidate_scores(logits.ravel(), rows), item_ids, 0 if top_k is None else int(top_k[0])
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer without a traceback
            return unexpected(error, "select")

    def _ranking(self, scores, item_ids, limit):
        order = best_first(scores, item_ids, limit)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("indices", order),
                pb_utils.Tensor("scores", scores[order].astype(np.float32)),
                pb_utils.Tensor("artifact", self.artifact),
            ]
        )


def _fault(logits, rows, item_ids, top_k):
    """What is wrong with a request that did not come through ``tokenize``; None if nothing is."""
    for name, tensor in (("logits", logits), ("row_of_candidate", rows)):
        if tensor is None:
            return f"{name}: missing"
    if not rows.size or rows.min() < NO_ROW or rows.max() >= logits.size:
        return f"row_of_candidate: expected at least one, each the place of one of {logits.size} logits or {NO_ROW}"
    if not np.isfinite(logits.ravel()[rows[rows != NO_ROW]]).all():
        return "logits: expected finite numbers where row_of_candidate refers to them"
    if item_ids is not None and len(item_ids) != len(rows):
        return f"item_ids: {len(item_ids)} elements for {len(rows)} candidates"
    if top_k is not None and top_k[0] < 0:
        return f"top_k: {top_k[0]}; expected 0 (all) or a positive number"
    return None
