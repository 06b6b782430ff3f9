"""The worker's end of the pipe: one JSON object per line in, one per line out. Standard library only."""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any


def answer_lines(score: Callable[[dict[str, Any]], Sequence[float]], **ready: object) -> None:
    """Answer until the input ends; each answer holds the scores and the seconds that scoring took.

    Args:
        score: gets one request. What it raises becomes the answer.
        ready: told in the first line, which says that the worker is ready.
    """
    # Libraries print; their output must not become an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def tell(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    tell({"ready": True, **ready})
    for line in sys.stdin:
        request = json.loads(line)
        start = time.perf_counter()
        try:
            scores = [float(value) for value in score(request)]
            tell({"scores": scores, "seconds": time.perf_counter() - start})
        except Exception as error:  # noqa: BLE001 - the runner decides what an error means
            tell({"error": f"{type(error).__name__}: {error}"})
