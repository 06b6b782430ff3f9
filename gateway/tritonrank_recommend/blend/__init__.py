"""The last model: the ranker's score together with what retrieval knows gives the order of the page."""

from tritonrank_recommend.blend.reader import BlendError, open_blend, open_verified

__all__ = ["BlendError", "open_blend", "open_verified"]
