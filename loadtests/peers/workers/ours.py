"""Our own library in process: the scorer of a model artifact, without a server.

    python -m loadtests.peers.workers.ours artifacts/movielens/int8

One of the two files of the load tests that import the pipeline: it is what is measured. A request with ``rows`` is
answered with the token ids of a joint ranker instead, one number after the other and each row closed by -1, so that
the runner can tell how many of the peers' rows are the same.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tritonrank.judge.open_scorer import open_scorer
from tritonrank.rankers.scorers import Request
from tritonrank_runtime.text import RequestTokenizer

from loadtests.peers.workers.json_lines import answer_lines

END_OF_ROW = -1.0


def main(folder: Path) -> None:
    scorer = open_scorer(folder)
    tokenizer = RequestTokenizer.from_folder(folder)

    def score(message: dict[str, Any]) -> Sequence[float]:
        if message.get("rows"):
            return token_ids(tokenizer, message)
        scores: Sequence[float] = scorer.score(Request(message["query"], message["history"], message["items"])).tolist()
        return scores

    answer_lines(score)


def token_ids(tokenizer: RequestTokenizer, message: dict[str, Any]) -> list[float]:
    """The rows of a request, without their padding."""
    context = tokenizer.context(message["query"], message["history"])
    rows = tokenizer.tensors(context, tokenizer.items(message["items"]))
    flat: list[float] = []
    for ids, mask in zip(rows["input_ids"], rows["attention_mask"], strict=True):
        flat += [*ids[mask == 1].tolist(), END_OF_ROW]
    return flat


if __name__ == "__main__":
    main(Path(sys.argv[1]))
