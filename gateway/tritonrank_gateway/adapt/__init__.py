"""Forecasts what comes, predicts the queue, and ranks more cheaply before anything is refused. See docs/adapt.md."""

from tritonrank_gateway.adapt.controller import Bounds, Controller, Seen
from tritonrank_gateway.adapt.forecast import Forecaster
from tritonrank_gateway.adapt.ladder import Level, LevelsFile, ladder_of, read_levels

__all__ = ["Bounds", "Controller", "Forecaster", "Level", "LevelsFile", "Seen", "ladder_of", "read_levels"]
