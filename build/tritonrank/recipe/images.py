"""Images of items, read beside their texts."""

from pydantic import Field

from tritonrank.recipe.base import Settings, SourcePath

LITE0 = "efficientnet-lite0"


class ImageSettings(Settings):
    """An image per item, as soft tokens among its words; without this section a ranker reads texts alone.

    See docs/images.md.
    """

    field: str = Field(
        "image",
        pattern=r"^\w+$",
        description="of items: the path of the image's file, empty where there is none; text.item_template has to name "
        'it, such as "{image} {title}"',
    )
    folder: SourcePath = Field(description="below which those paths are")
    encoder: str = Field(
        LITE0,
        pattern=r"^(efficientnet-lite0|(timm|clip):\S+)$",
        description="what makes a vector of an image: efficientnet-lite0 (17 MB from PyPI, no hub), timm:NAME, or "
        "clip:FOLDER_OR_HUB_ID; it is not trained, so that each image is encoded once",
    )
    soft_tokens: int = Field(
        1, ge=1, le=4, description="tokens that an image is read as; each costs what a word costs, and 1 says most"
    )
