"""Which settings have an effect where, so that none is ignored without a word.

A field says it beside its default, ``Annotated[float, Used(targets=(Target.CPU,), because="...")]``; what says nothing
has its effect everywhere. ``require_effects`` refuses what a recipe or ``--set`` names and the target at hand ignores.

One recipe serves several targets all the same: the `serve` section may hold a section per target (``EXAMPLE``), whose
settings count for that target alone and win over those beside it (``for_target``). The `tensorrt` section is one
of its own already, so a file may have it whatever it is built for; only ``--set`` has to mean what is built.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tritonrank.artifacts.workspace import Target
from tritonrank.errors import RecipeError

if TYPE_CHECKING:
    from tritonrank.recipe.whole import Recipe

EXAMPLE = """\
serve:
  deadline_ms: 200
  cpu: {queue_share: 0.5}
  tensorrt: {instances: 4}
"""
SPLIT = ("shared-context", "decoder")
"""Architectures whose candidates share what is computed once."""
ALL_TARGETS = tuple(Target)
GPU_TARGETS = tuple(target for target in Target if target is not Target.CPU)


@dataclass(frozen=True)
class Used:
    """Where a setting has an effect.

    Attributes:
        because: why it has none elsewhere.
        targets: what the repository is assembled for.
        architecture: of the ranker, or several; None: of any.
        device: serve.device with target cpu; None: on any.
        or_device: of target cpu where it is used although that is none of ``targets``.
        idle: the value that asks for nothing, and so may stand anywhere.
    """

    because: str
    targets: tuple[Target, ...] = ALL_TARGETS
    architecture: str | tuple[str, ...] | None = None
    device: str | None = None
    or_device: str | None = None
    idle: Any = None

    @property
    def architectures(self) -> tuple[str, ...]:
        """Those that it is used with; none: with any."""
        return (self.architecture,) if isinstance(self.architecture, str) else self.architecture or ()

    def in_words(self) -> str:
        """Such as ``target cpu; joint rankers``."""
        parts = [] if self.targets == ALL_TARGETS else [f"target {_listed(self.targets)}"]
        parts = [f"{parts[0]}, or serve.device {self.or_device}"] if self.or_device else parts
        parts += [f"{_listed(self.architectures)} rankers"] if self.architectures else []
        parts += [f"serve.device {self.device}"] if self.device else []
        return "; ".join(parts)

    def missed_by(self, recipe: "Recipe", target: Target) -> tuple[str, str] | None:
        """Where the setting is used and this is not, and how to get there; None where it is used."""
        on_device = target is Target.CPU and recipe.serve.device == self.or_device
        if target not in self.targets and not on_device:
            return f"target {target}", f"use --target {_listed(self.targets)}"
        if self.architectures and recipe.model.architecture not in self.architectures:
            return f"a {recipe.model.architecture} ranker", f"set model.architecture to {_listed(self.architectures)}"
        if self.device and recipe.serve.device != self.device:
            return f"serve.device {recipe.serve.device}", f"set serve.device to {self.device}"
        return None


def _listed(targets: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(targets[:-1]), targets[-1]]))


def used_where(field: FieldInfo) -> Used | None:
    """What a field says of itself; None: it is used everywhere."""
    return next((mark for mark in field.metadata if isinstance(mark, Used)), None)


def for_target(serve: Mapping[str, Any], target: Target) -> dict[str, Any]:
    """The `serve` section of a file as it counts for one target."""
    common = {key: value for key, value in serve.items() if key not in ALL_TARGETS}
    own = serve.get(target) or {}
    return common | (dict(own) if isinstance(own, Mapping) else {str(target): own})


def require_effects(recipe: "Recipe", target: Target, overrides: Sequence[str] = ()) -> None:
    """Refuse settings that are named and have no effect.

    Args:
        recipe: as it was loaded; it knows which settings were named.
        target: what is built, assembled or compiled.
        overrides: the ``section.key=value`` of the command line.

    Raises:
        RecipeError: all of them, each with the reason and what to do.
    """
    named = [*_named(recipe), *_sections_told(recipe, overrides)]
    faults = []
    for key, field in named:
        mark = used_where(field)
        missed = mark.missed_by(recipe, target) if mark else None
        if mark and missed:
            where, instead = missed
            faults.append(f"  {key} has no effect with {where}: {mark.because}; remove it or {instead}")
    if faults:
        raise RecipeError("\n".join([f"{recipe.name}: {len(faults)} setting(s) without effect:", *faults]))


def _named(recipe: BaseModel, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """The settings that a file or the command line names."""
    for name in type(recipe).model_fields:
        if name in recipe.model_fields_set:
            value = getattr(recipe, name)
            if isinstance(value, BaseModel):
                yield from _named(value, f"{prefix}{name}.")
                continue
            field = type(recipe).model_fields[name]
            mark = used_where(field)
            if mark is None or value != mark.idle:
                yield f"{prefix}{name}", field


def _sections_told(recipe: "Recipe", overrides: Sequence[str]) -> Iterator[tuple[str, FieldInfo]]:
    """What the command line says of a section that is for some targets alone; it counts as the section does."""
    for override in overrides:
        key = override.partition("=")[0]
        section = type(recipe).model_fields.get(key.partition(".")[0])
        if section is not None and "." in key and used_where(section):
            yield key, section
