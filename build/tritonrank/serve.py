"""Serve an assembled repository on this machine, and call it ready only when it ranks as it should.

Before the start every file is compared with the manifest; after it the golden requests go through the whole ensemble,
as a client's would, and must give the scores that the artifact gave in process.
"""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tritonrank_client import RankClient, RankError

from tritonrank.artifacts import verify_artifact
from tritonrank.errors import ServerError
from tritonrank.plans import check_plans
from tritonrank.server import LocalTriton
from tritonrank.server_scorer import Request, ServerScorer

GOLDEN_FILE = "golden.json"
"""Requests with their scores in process; ``assemble`` writes it."""
GOLDEN_TOLERANCE = 1e-4
"""Largest difference of a golden score from the one in process, where both are computed by the same code."""


@contextmanager
def serving(artifacts: Path, **options: Any) -> Iterator[LocalTriton]:
    """A ready server for ``artifacts/<recipe>`` or its repository folder; options go to LocalTriton.

    Raises:
        ArtifactError: the repository is missing or damaged, or holds a TensorRT plan for another machine.
        ServerError: the server does not start, or does not rank as the artifact does.
    """
    repository = repository_of(artifacts)
    verify_artifact(repository)
    check_plans(repository)
    with LocalTriton(repository, **options) as server:
        check_golden_cases(repository, server.grpc_url)
        yield server


def repository_of(artifacts: Path) -> Path:
    """The repository folder, given it or the recipe's artifact folder."""
    return artifacts / "repository" if (artifacts / "repository").is_dir() else artifacts


def golden_requests(repository: Path) -> list[tuple[Request, list[float]]]:
    """The requests of golden.json with their expected scores."""
    cases = _golden(repository)["cases"]
    return [(Request(case["query"], case["history"], case["items"]), case["scores"]) for case in cases]


def golden_tolerance(repository: Path) -> float:
    """How far the server's scores may be from golden.json's; assemble allows more where FP16 computes."""
    return float(_golden(repository).get("tolerance", GOLDEN_TOLERANCE))


def _golden(repository: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((repository / GOLDEN_FILE).read_text(encoding="utf-8"))
    return loaded


def check_golden_cases(repository: Path, url: str) -> None:
    """Send every golden request through the live ensemble.

    Raises:
        ServerError: an answer is missing or differs from the artifact's own scores.
    """
    tolerance = golden_tolerance(repository)
    with RankClient(url) as client:
        scorer = ServerScorer(client)
        for number, (request, expected) in enumerate(golden_requests(repository)):
            try:
                difference = float(np.abs(scorer.score(request) - np.array(expected)).max())
            except RankError as error:
                raise ServerError(f"{url}: golden request {number} was not answered: {error}") from error
            if not difference <= tolerance:
                raise ServerError(
                    f"{url}: golden request {number} differs by {difference:.1e} from the artifact's own scores "
                    f"(tolerance {tolerance:.0e}). Build the repository again on this machine: tritonrank build"
                )


def example_command(artifacts: Path, server: LocalTriton) -> str:
    """A request to copy and paste: the first golden one through the client's command line."""
    request, _ = golden_requests(repository_of(artifacts))[0]
    items = "\n".join(json.dumps(item, ensure_ascii=False) for item in request.items[:4])
    options = [f"--query {shlex.quote(request.query)}"] if request.query else []
    options += [f"--history {shlex.quote(item)}" for item in request.history[-2:]]
    return f"tritonrank-client rank --url {server.grpc_url} {' '.join(options)} --items - <<'END'\n{items}\nEND"
