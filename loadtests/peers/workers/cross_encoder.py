"""sentence-transformers' CrossEncoder, in its own environment.

    python -m loadtests.peers.workers.cross_encoder MODEL --threads 2 [--bfloat16]
        [--onnx-file onnx/model_qint8_avx512_vnni.onnx]

``predict`` sorts the pairs by length itself and runs them in batches of 32. Scores are logits: the default sigmoid
would not change the ranking, only hide whether the numbers agree with the other systems.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers import CrossEncoder

from loadtests.peers.workers.json_lines import answer_lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--onnx-file")
    parser.add_argument("--bfloat16", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.onnx_file:
        options = {"file_name": arguments.onnx_file, "provider": "CPUExecutionProvider"}
        model = CrossEncoder(arguments.model, device="cpu", backend="onnx", model_kwargs=options)
    else:
        numbers = {"dtype": torch.bfloat16} if arguments.bfloat16 else {}
        model = CrossEncoder(arguments.model, device="cpu", model_kwargs=numbers)

    def score(request: dict[str, Any]) -> Sequence[float]:
        pairs = [(request["context"], document) for document in request["documents"]]
        scores: Sequence[float] = model.predict(
            pairs, batch_size=arguments.batch_size, activation_fn=torch.nn.Identity(), show_progress_bar=False
        )
        return scores

    answer_lines(score)


if __name__ == "__main__":
    main()
