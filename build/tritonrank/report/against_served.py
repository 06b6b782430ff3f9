"""Champion and challenger: a new build is judged against the one that is served, paired, on its own test requests.

The champion ranks these requests as it is served: with the graph, the tokenizer and the text settings of its
repository, whatever the new build has changed. Its judgement is kept like any other, so that it is judged once.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from tritonrank_runtime.repository import model_folders

from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.builds import RecordedBuild, served_build
from tritonrank.artifacts.workspace import Workspace
from tritonrank.judge.evaluate import Judgement, judge_artifact
from tritonrank.judge.gate import paired_difference
from tritonrank.report.build_table import comparison_of

console = Console()


def against_served(workspace: Workspace, challenger: Judgement) -> dict[str, Any] | None:
    """What ``against_served`` of summary.json is; null where nothing else is served or it cannot be judged.

    Args:
        workspace: of the new build, assembled already; its dataset judges.
        challenger: the judgement of what it serves.
    """
    try:
        champion = served_build(workspace.root)
        if champion is None or _is_the_same(champion, workspace):
            return None
        judged = judge_repository(
            f"build {champion.name}", champion.repository, workspace.dataset, workspace.judgements
        )
        found = paired_difference(challenger, judged)
    except Exception as error:  # noqa: BLE001 - whatever an old build lacks, the new one is as good as it is
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        console.print(
            f"  the served build cannot be judged on these data, so nothing is said against it: {reason}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return None
    return comparison_of(champion.name, found.mean, found.low, found.high)


def judge_repository(name: str, repository: Path, dataset_folder: Path, cache: Path) -> Judgement:
    """Judge what a repository serves, in process, on the test examples, or take the judgement that was kept.

    Raises:
        ArtifactError: the repository holds no model that can be opened here.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".served-", dir=cache) as scratch:
        folder = Path(scratch)
        for part in {*model_folders(repository)}:
            for path in part.iterdir():
                if path.is_file() and path.suffix != ".py":
                    shutil.copyfile(path, folder / path.name)  # ONNX refuses weights that have a second name
        return judge_artifact(name, folder, dataset_folder, cache)


def _is_the_same(champion: RecordedBuild, workspace: Workspace) -> bool:
    return read_manifest(champion.repository).artifact == read_manifest(workspace.repository).artifact
