"""The last model: the ranker's score together with what retrieval knows gives the order of the page."""

from tritonrank_recommend.blend.levels import LEVELS_FILE, LevelsFile, open_levels
from tritonrank_recommend.blend.reader import open_blend
from tritonrank_recommend.blend.verified import BlendError

__all__ = ["LEVELS_FILE", "BlendError", "LevelsFile", "open_blend", "open_levels"]
