"""The verbs that operate what was built: which build is served, which one before, which ones may go."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from tritonrank.artifacts.builds import BUILDS, NEWEST, find_build, recorded_builds
from tritonrank.artifacts.promotions import Moved, back, promote, prune_builds
from tritonrank.cli.options import DEFAULT_ARTIFACTS, ArtifactsRoot, app
from tritonrank.cli.panels import Panel
from tritonrank.errors import ArtifactError

Words = Annotated[
    list[str],
    typer.Argument(
        metavar="[ARTIFACTS/RECIPE] [ID]...",
        help="The folder of a recipe, which may be left out where only one has builds; then builds by their id, the "
        "beginning of it, `newest` or `served`",
        show_default=False,
    ),
]
NO_WORDS: list[str] = []  # Typer reads it as the default and never changes it


@app.command("builds", rich_help_panel=Panel.OPERATE)
def builds_command(
    words: Words = NO_WORDS,
    artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts")] = False,
) -> None:
    """List the builds of a recipe with their figures; with two ids, what differs between them.

    For example: tritonrank builds artifacts/shop, or: tritonrank builds artifacts/shop served newest
    """
    root, ids = _root_and_ids(words, artifacts)
    from tritonrank.report.build_table import build_rows, differences, show_builds, show_differences

    if not ids:
        if as_json:
            typer.echo(json.dumps(build_rows(root), indent=1))
        else:
            show_builds(root)
        return
    if len(ids) != 2:
        raise ArtifactError(
            f"{' '.join(ids)}: name two builds to compare, such as: tritonrank builds {root} served newest"
        )
    first, second = (find_build(root, one) for one in ids)
    if as_json:
        typer.echo(json.dumps({"builds": [first.name, second.name], **differences(first, second)}, indent=1))
    else:
        show_differences(first, second)


@app.command("promote", rich_help_panel=Panel.OPERATE)
def promote_command(words: Words = NO_WORDS, artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS) -> None:
    """Serve another build from now on: the newest one, or the one that is named. Its files are checked first.

    A running `tritonrank serve` restarts with it at the same ports. For example: tritonrank promote artifacts/shop
    """
    root, ids = _root_and_ids(words, artifacts)
    if len(ids) > 1:
        raise ArtifactError(f"{' '.join(ids)}: name one build to serve")
    _tell_moved(root, promote(root, ids[0] if ids else NEWEST))


@app.command("back", rich_help_panel=Panel.OPERATE)
def back_command(words: Words = NO_WORDS, artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS) -> None:
    """Serve the build again that was served before; once more goes one further back."""
    root, ids = _root_and_ids(words, artifacts)
    if ids:
        quoted = shlex.quote(str(root))
        raise ArtifactError(f"{ids[0]}: back takes no build; name it to: tritonrank promote {quoted} {ids[0]}")
    _tell_moved(root, back(root))


@app.command("prune-builds", rich_help_panel=Panel.OPERATE)
def prune_builds_command(
    words: Words = NO_WORDS,
    artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS,
    keep: Annotated[int, typer.Option(min=0, help="So many of the newest stay")] = 5,
    older_than: Annotated[float, typer.Option(min=0, metavar="DAYS", help="Younger ones stay, too")] = 0.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed")] = False,
) -> None:
    """Remove old builds and say how much disk that frees; never the one that is served, or the one before it.

    A build shares its files with the stages' folders until they are built anew, so that the newest ones free little.
    """
    root, ids = _root_and_ids(words, artifacts)
    if ids:
        raise ArtifactError(
            f"{ids[0]}: prune-builds takes no build; it removes the oldest: --keep N, --older-than DAYS"
        )
    found = prune_builds(root, keep, older_than, only_look=dry_run)
    for build in found.builds:
        typer.echo(f"{'would remove' if dry_run else 'removed'} {build.folder}")
    typer.echo(
        f"{len(found.builds)} of {len(found.builds) + len(found.kept)} builds {'would go' if dry_run else 'are gone'}, "
        f"{found.bytes / 1e6:.0f} MB {'would be' if dry_run else 'are'} free again"
    )


def _tell_moved(root: Path, moved: Moved) -> None:
    name = moved.build.name
    if moved.before == name:
        typer.echo(f"build {name} is served already")
        return
    typer.echo(f"build {name} is served from now on{f', in place of {moved.before}' if moved.before else ''}")
    quoted = shlex.quote(str(root))
    typer.echo(f"A running tritonrank serve {quoted} follows within seconds. To undo this: tritonrank back {quoted}")


def _root_and_ids(words: list[str], artifacts: Path) -> tuple[Path, list[str]]:
    """The folder of the recipe and the builds that were named; a build's own folder is both."""
    if words:
        first = Path(words[0])
        if first.is_dir():
            if first.resolve().parent.name == BUILDS and recorded_builds(first.resolve().parents[1]):
                return first.resolve().parents[1], [first.resolve().name, *words[1:]]
            return first, words[1:]
        if "/" in words[0]:
            raise ArtifactError(f"{first}: no such folder. Name that of a recipe, such as artifacts/demo")
    roots = sorted(folder.parent for folder in artifacts.glob(f"*/{BUILDS}") if recorded_builds(folder.parent))
    if len(roots) == 1:
        return roots[0], words
    if not roots:
        raise ArtifactError(
            f"{artifacts}: no build is recorded below it. A finished build records itself: tritonrank build RECIPE"
        )
    raise ArtifactError(f"Builds of {len(roots)} recipes are here; name one of them: {', '.join(map(str, roots))}")
