"""Forecasts what comes, predicts the queue, and ranks more cheaply before anything is refused. See docs/adapt.md."""

from tritonrank_gateway.adapt.controller import Bounds, Controller, Seen
from tritonrank_gateway.adapt.forecast import Forecaster
from tritonrank_gateway.adapt.ladder import Level, ladder_of

__all__ = ["Bounds", "Controller", "Forecaster", "Level", "Seen", "ladder_of"]
