"""The way of a recommendation: profile -> retrieval -> rank -> blend -> rules -> page."""

from tritonrank_recommend.engine.errors import NoCatalogueError, RequestError
from tritonrank_recommend.engine.pages import PageGoneError
from tritonrank_recommend.engine.recommender import Recommender
from tritonrank_recommend.engine.settings import EngineSettings
from tritonrank_recommend.engine.users import NotKeptError

__all__ = ["EngineSettings", "NoCatalogueError", "NotKeptError", "PageGoneError", "Recommender", "RequestError"]
