"""Serve an assembled repository on this machine, and call it ready only when it ranks as it should.

Before the start every file is compared with the manifest; after it the golden requests go through the whole ensemble,
as a client's would, and must give the scores that the artifact gave in process.
"""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
from tritonrank_client import RankClient

from tritonrank.artifacts import read_manifest, verify_artifact
from tritonrank.errors import ArtifactError, ServerError
from tritonrank.plans import PLAN_FILE, check_plans, plan_settings
from tritonrank.server import LocalTriton
from tritonrank.server_scorer import Request, ServerScorer

GOLDEN_FILE = "golden.json"
"""Requests with their scores in process; ``assemble`` writes it."""
GOLDEN_TOLERANCE = 1e-4
"""Largest difference of a golden score from the one in process, where both are computed by the same code."""


@contextmanager
def serving(artifacts: Path, ready_file: Path | None = None, **options: Any) -> Iterator[LocalTriton]:
    """A ready server for a repository.

    Args:
        artifacts: ``artifacts/<recipe>``, or its repository folder.
        ready_file: is there as long as the server is ready, and only then: its own health says nothing of scores.
        options: go to LocalTriton.

    Raises:
        ArtifactError: the repository is missing or damaged, or holds a TensorRT plan for another machine.
        ServerError: the server does not start, does not rank as the artifact does, or the file cannot be written.
    """
    if ready_file is not None:
        ready_file.unlink(missing_ok=True)  # another run's, that was killed
    repository = repository_of(artifacts)
    verify_artifact(repository)
    check_plans(repository)
    with LocalTriton(repository, **options) as server:
        check_golden_cases(repository, server.grpc_url)
        with _present(ready_file) if ready_file is not None else nullcontext():
            yield server


@contextmanager
def _present(file: Path) -> Iterator[None]:
    try:
        file.touch()
    except OSError as error:
        raise ServerError(f"{file}: cannot be written ({error.strerror}); choose another with --ready-file") from None
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


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
            except ServerError as error:
                raise ServerError(f"golden request {number} was not answered: {error}") from error
            if not difference <= tolerance:
                raise ServerError(
                    f"{url}: golden request {number} differs by {difference:.1e} from the artifact's own scores "
                    f"(tolerance {tolerance:.0e}). Assemble the repository again on this machine: "
                    + assemble_command(repository)
                )


def assemble_command(repository: Path) -> str:
    """What writes a repository anew, for the target that it was assembled for."""
    target = None
    with suppress(ArtifactError):  # it may have been copied without its manifest
        manifest = read_manifest(repository)
        target = manifest.settings.get("target")
    if target is None:
        return "tritonrank assemble RECIPE --force"
    ranks = sum(f"{PLAN_FILE}.rank" in name for name in manifest.files)
    return f"tritonrank assemble RECIPE --target {target} {plan_settings(manifest.settings.get('precision'), ranks)}"


def example_command(artifacts: Path, server: LocalTriton) -> str:
    """A request to copy and paste: the first golden one through the client's command line."""
    request, _ = golden_requests(repository_of(artifacts))[0]
    items = "\n".join(json.dumps(item, ensure_ascii=False) for item in request.items[:4])
    options = [f"--query {shlex.quote(request.query)}"] if request.query else []
    options += [f"--history {shlex.quote(item)}" for item in request.history[-2:]]
    return f"tritonrank-client rank --url {server.grpc_url} {' '.join(options)} --items - <<'END'\n{items}\nEND"
