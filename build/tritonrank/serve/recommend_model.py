"""The model ``recommend`` of a repository: what the gateway's ``POST /v1/recommend`` does, over Triton's protocols.

Catalogue and blend lie below its version folder, as hard links to the artifacts where the file system has them: a
repository is whole by itself, and its manifest has a hash of each of their files.
"""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tritonclient.grpc import model_config_pb2 as pb
from tritonrank_runtime.repository import model_folders
from tritonrank_runtime.text import TextRules

from tritonrank.artifacts.workspace import Workspace
from tritonrank.rankers.serving import AnyServing
from tritonrank.serve.model_names import ENSEMBLE
from tritonrank.serve.sources import RECOMMEND, recommend_sources
from tritonrank.serve.triton_config import HISTORY_PARAMETER, as_text, set_parameters

if TYPE_CHECKING:  # serving needs no pydantic
    from tritonrank.recipe import Recipe

INSTANCES = 2
LONGEST_MS = 1_000
"""A page that comes later is not worth waiting for: without the ranker there is one sooner."""


def recommend_folders(recipe: "Recipe", workspace: Workspace) -> dict[str, Path]:
    """The artifacts that lie beside the model; none where the recipe does not recommend."""
    if recipe.retrieval is None:
        return {}
    folders = {"catalogue": workspace.catalogue}
    return folders if recipe.blend.method == "none" else folders | {"blend": workspace.blend}


def recommend_config(settings: AnyServing, history_items: int) -> pb.ModelConfig:
    """The model's config.

    Args:
        settings: the recipe's serve section.
        history_items: newest items of a history that the ranker reads.
    """
    config = pb.ModelConfig(name=RECOMMEND, backend="python", max_batch_size=0)
    # An instance waits for the ranker while it answers; each opens the catalogue for itself, from shared files.
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=INSTANCES)
    for name, kind, dims in (
        ("request", pb.TYPE_STRING, 1),
        ("user_id", pb.TYPE_STRING, 1),
        ("query", pb.TYPE_STRING, 1),
        ("recent", pb.TYPE_STRING, -1),
        ("size", pb.TYPE_INT32, 1),
    ):
        config.input.add(name=name, data_type=kind, dims=[dims], optional=True)
    config.output.add(name="answer", data_type=pb.TYPE_STRING, dims=[1])
    config.output.add(name="item_ids", data_type=pb.TYPE_STRING, dims=[-1])
    config.output.add(name="scores", data_type=pb.TYPE_FP32, dims=[-1])
    deadline_us = min(settings.deadline_ms, LONGEST_MS) * 1_000
    set_parameters(config, ranker=ENSEMBLE, store="", rules="", events_log="", deadline_us=deadline_us)
    set_parameters(config, **{HISTORY_PARAMETER: history_items})
    return config


def write_recommend(recipe: "Recipe", workspace: Workspace, repository: Path) -> None:
    """The model's folder; nothing where the recipe does not recommend.

    Args:
        recipe: says whether and how.
        workspace: with the artifacts.
        repository: gets the folder; the ensemble is in it already.
    """
    folders = recommend_folders(recipe, workspace)
    if not folders:
        return
    version = repository / RECOMMEND / "1"
    version.mkdir(parents=True)
    config = recommend_config(recipe.serve, TextRules.load(model_folders(repository).texts).history_items)
    (repository / RECOMMEND / "config.pbtxt").write_text(as_text(config), encoding="utf-8")
    for place, source in recommend_sources().items():
        (repository / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, repository / place)
    for name, folder in folders.items():
        shutil.copytree(folder, version / name, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
