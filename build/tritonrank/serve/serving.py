"""Serve an assembled repository on this machine, and call it ready only when it ranks as it should.

Before the start every file is compared with the manifest; after it the golden requests go through the whole ensemble,
as a client's would, and must give the scores that the artifact gave in process. From then on the server is watched, and
brought back when it is lost (``supervisor.py``).
"""

import json
import shlex
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tritonrank_client import DeadlineExceeded, Overloaded, RankClient, RankError, Retry

from tritonrank.artifacts import read_manifest, verify_artifact
from tritonrank.errors import ArtifactError, ServerError
from tritonrank.rankers.server_scorer import Request
from tritonrank.serve.model_names import ENSEMBLE
from tritonrank.serve.ready_file import remove_ready_file
from tritonrank.serve.servable import check_contents, followed_root, repository_of
from tritonrank.serve.server import LocalTriton
from tritonrank.serve.server_watch import WrongScoreError
from tritonrank.serve.succession import Followed, Following, ServedLink
from tritonrank.serve.supervisor import SupervisedTriton
from tritonrank.tensorrt.plans import PLAN_FILE, check_plans, plan_settings

if TYPE_CHECKING:
    from tritonrank.serve.versions.door import Door

GOLDEN_FILE = "golden.json"
"""Requests with their scores in process; ``assemble`` writes it."""
REFERENCE_FILE = "reference.json"
"""What requests and scores look like (``reference.py``)."""
GOLDEN_TOLERANCE = 1e-4
"""Largest difference of a golden score from the one in process, where both are computed by the same code."""


SMALL_REQUEST_ITEMS = 2
"""Of the golden request that is asked now and then: two scores tell that everything on the way works."""
PATIENCE_SECONDS = 20.0
"""For one golden request of the check at the start, as clients who waited for the server come first."""
PAUSE_SECONDS = 0.1


@contextmanager
def serving(
    artifacts: Path,
    ready_file: Path | None = None,
    *,
    build: str | None = None,
    followed: Followed | None = None,
    admin: "Door | None" = None,
    **options: Any,
) -> Iterator[SupervisedTriton]:
    """A ready server for a repository, brought back by itself when it is lost.

    Args:
        artifacts: ``artifacts/<recipe>``, whose served build it is then, whichever that becomes; or a repository
            folder.
        build: serve this one, whatever is promoted.
        followed: says what is to be served after that, in place of the link in the recipe's folder.
        admin: through it further versions come and go while the server runs, and what is promoted takes over without a
            gap; None: there are no versions, and nothing can be loaded.
        ready_file: is there as long as the server is ready, and only then: its own health says nothing of scores.
        options: go to LocalTriton.

    Raises:
        ArtifactError: the repository is missing or damaged, or holds a TensorRT plan for another machine.
        ServerError: the server does not start, does not rank as the artifact does, or the file cannot be written.
    """
    remove_ready_file(ready_file)  # another run's, that was killed
    try:
        repository = repository_of(artifacts, build)
        checked = CheckedRepository(repository)
        checked.check()
    except OSError as error:
        raise ArtifactError(
            f"{error.filename}: cannot be read ({error.strerror}). Let this user read it: "
            f"chmod -R a+rX {shlex.quote(str(artifacts))}"
        ) from None
    root = followed_root(artifacts, build) if followed is None else None
    if root is not None:
        followed = ServedLink(root)
    following = Following(followed, repository, CheckedRepository) if followed else None
    shelf = None
    answering: AbstractContextManager[None] = nullcontext()
    if admin is not None:
        from tritonrank.serve.versions.admin_app import admin_app
        from tritonrank.serve.versions.opening import open_shelf

        shelf = open_shelf(checked, root, following)
        answering = admin.answering(admin_app(shelf))
    started = SupervisedTriton(
        (shelf or checked).make,
        shelf or checked,
        succession=None if shelf else following,
        ready_file=ready_file,
        options=options,
    )
    with following or nullcontext(), started as server, shelf or nullcontext(), answering:
        yield server


class CheckedRepository:
    """A repository, what was seen of its files when they were last compared with their hashes, and what a server that
    loaded them has to answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: dict[str, tuple[int, ...]] = {}
        self._proved: dict[str, tuple[int, ...]] = {}
        self._small: tuple[Request, Sequence[float]] | None = None
        self._tolerance = 0.0

    def check(self) -> None:
        """Compare every file with its hash.

        Once that was done it is not done again unless a file was written, replaced or renamed: its inode, size and
        times then differ. What a restart repairs are processes; hashing gigabytes would only keep everybody waiting.

        Raises:
            ArtifactError: a file is missing or damaged, or there is one too many.
        """
        if self._seen and self._seen == _seen_of(self.folder):
            return
        seen = _seen_of(self.folder)  # before, so that what changes meanwhile is looked at the next time
        manifest = verify_artifact(self.folder)
        check_contents(self.folder, manifest)
        check_plans(self.folder)
        self._tolerance = golden_tolerance(self.folder)
        request, scores = min(golden_requests(self.folder), key=lambda case: sum(map(len, case[0].items)))
        items = request.items[:SMALL_REQUEST_ITEMS]
        self._small = Request(request.query, request.history, items), scores[: len(items)]
        self._seen = seen

    def make(self, **options: Any) -> LocalTriton:
        """A server, not yet started, for files that are as they should be."""
        self.check()
        return LocalTriton(self.folder, **options)

    def prove(self, server: LocalTriton, cancelled: threading.Event) -> None:
        """See GoldenCheck."""
        seen = self._seen
        check_golden_cases(self.folder, server.checked_at, cancelled)
        if not cancelled.is_set():
            self._proved = seen

    @property
    def is_proved(self) -> bool:
        """Whether a server answered as it should with its files as they were last seen."""
        return bool(self._seen) and self._proved == self._seen

    def ask(self, server: LocalTriton, seconds: float) -> None:
        """See GoldenCheck. Over HTTP: Triton 2.51 may end when a gRPC call gives up."""
        assert self._small is not None
        request, expected = self._small
        with RankClient(server.http_url, timeout=seconds, retry=Retry(attempts=1)) as client:
            try:
                difference = _difference(client, request, expected)
            except Overloaded:
                return  # it looks after its queue, so it lives
            except DeadlineExceeded as error:
                raise TimeoutError(str(error)) from None
            except RankError as error:
                raise ServerError(str(error)) from None
        if not difference <= self._tolerance:
            raise WrongScoreError(f"a golden request differs by {difference:.1e} from the artifact's own scores")


def _seen_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """What changes when a file is written or replaced, by name."""
    seen: dict[str, tuple[int, ...]] = {}
    for path in folder.rglob("*"):
        with suppress(OSError):
            status = path.lstat()
            seen[str(path)] = (status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return seen


def golden_requests(repository: Path) -> list[tuple[Request, list[float]]]:
    """The requests of golden.json with their expected scores."""
    cases = _golden(repository)["cases"]
    return [(Request(case["query"], case["history"], case["items"]), case["scores"]) for case in cases]


def artifact_name(repository: Path) -> str:
    """As answers name it."""
    return str(_golden(repository)["artifact"])


def golden_tolerance(repository: Path) -> float:
    """How far the server's scores may be from golden.json's; assemble allows more where FP16 computes."""
    return float(_golden(repository).get("tolerance", GOLDEN_TOLERANCE))


def _golden(repository: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((repository / GOLDEN_FILE).read_text(encoding="utf-8"))
    return loaded


def check_golden_cases(
    repository: Path, url: str, cancelled: threading.Event | None = None, model: str = ENSEMBLE
) -> None:
    """Send every golden request through the live ensemble.

    A server that is too busy for one is asked again for PATIENCE_SECONDS.

    Args:
        cancelled: once it is set, the rest is not asked.
        model: the ensemble to ask.

    Raises:
        ServerError: an answer is missing or differs from the artifact's own scores.
    """
    tolerance = golden_tolerance(repository)
    with RankClient(url, model=model) as client:
        for number, (request, expected) in enumerate(golden_requests(repository)):
            deadline = time.monotonic() + PATIENCE_SECONDS
            while not (cancelled and cancelled.is_set()):
                try:
                    difference = _difference(client, request, expected)
                except RankError as error:
                    if isinstance(error, Overloaded | DeadlineExceeded) and time.monotonic() < deadline:
                        time.sleep(PAUSE_SECONDS)
                        continue
                    raise ServerError(f"golden request {number} was not answered: {error}") from error
                if not difference <= tolerance:
                    raise WrongScoreError(
                        f"{url}: golden request {number} differs by {difference:.1e} from the artifact's own scores "
                        f"(tolerance {tolerance:.0e}). Assemble the repository again on this machine: "
                        + assemble_command(repository)
                    )
                break


def _difference(client: RankClient, request: Request, expected: Sequence[float]) -> float:
    """The largest one between the live scores and those expected; NaN where a score is missing."""
    result = client.rank(query=request.query, history=request.history, items=request.items)
    scores = np.full(len(request.items), np.nan)  # what is not answered must not look scored
    for ranked in result.ranking:
        scores[ranked.index] = ranked.score
    return float(np.abs(scores - np.array(expected)).max())


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


def example_command(artifacts: Path, grpc_url: str, build: str | None = None) -> str:
    """A request to copy and paste: the first golden one through the client's command line."""
    request, _ = golden_requests(repository_of(artifacts, build))[0]
    items = "\n".join(json.dumps(item, ensure_ascii=False) for item in request.items[:4])
    options = [f"--query {shlex.quote(request.query)}"] if request.query else []
    options += [f"--history {shlex.quote(item)}" for item in request.history[-2:]]
    return f"tritonrank-client rank --url {grpc_url} {' '.join(options)} --items - <<'END'\n{items}\nEND"
