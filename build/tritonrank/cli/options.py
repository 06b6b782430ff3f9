"""What the verbs share: the program, its parameters, and how a recipe is opened."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritonrank import __version__
from tritonrank.artifacts.workspace import Target, Workspace
from tritonrank.cli.completion import complete_override, complete_recipe
from tritonrank.cli.panels import OrderedGroup

if TYPE_CHECKING:
    from tritonrank.recipe import Recipe

app = typer.Typer(
    cls=OrderedGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Turn a fine-tuned Transformer ranker into a real-time Triton deployment.\n\n"
    "Start with: tritonrank build build/recipes/demo.yaml, then: tritonrank serve artifacts/demo",
)

RecipePath = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE", help="A file, or a name that `tritonrank recipes` lists", autocompletion=complete_recipe
    ),
]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one setting, such as finetune.epochs=2, or all that @FILE holds",
        autocompletion=complete_override,
    ),
]
ArtifactsRoot = Annotated[Path, typer.Option("--artifacts", help="Folder that holds one folder per recipe")]
TargetOption = Annotated[Target, typer.Option("--target", help="What the repository is for; any but cpu needs a GPU")]
DEFAULT_ARTIFACTS = Path("artifacts")
NO_OVERRIDES: list[str] = []  # Typer reads it as the default and never changes it


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"tritonrank {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit")
    ] = False,
) -> None:
    """What stands before the command."""


def open_recipe(
    recipe: Path, overrides: list[str], artifacts: Path, target: Target | None = None
) -> "tuple[Recipe, Workspace]":
    """The recipe, checked, and where its artifacts lie; with a target no setting may be named that it ignores."""
    from tritonrank.recipe import load_recipe, require_effects  # not above: machines that serve have no pydantic

    loaded = load_recipe(recipe, overrides, target or Target.CPU)
    if target is not None:
        require_effects(loaded, target, overrides)
    return loaded, Workspace.of(loaded, artifacts)
