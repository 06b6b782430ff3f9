"""The way of a recommendation: profile -> retrieval -> rank -> blend -> rules -> page."""

from tritonrank_recommend.engine.pages import PageGoneError
from tritonrank_recommend.engine.recommender import (
    NoCatalogueError,
    NotKeptError,
    Recommender,
    RequestError,
)
from tritonrank_recommend.engine.settings import EngineSettings

__all__ = ["EngineSettings", "NoCatalogueError", "NotKeptError", "PageGoneError", "Recommender", "RequestError"]
