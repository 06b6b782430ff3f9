"""What can be chosen of a search; imports nothing, so that the command line knows it at once."""

from enum import StrEnum

SECTIONS = ("finetune", "prune", "distill", "quantize")
"""Whose settings are searched: the dataset and the model are the same for all trials."""


class Sampler(StrEnum):
    """What proposes the next trial."""

    TPE = "tpe"
    RANDOM = "random"
    GRID = "grid"
    EACH = "each"


class Pruner(StrEnum):
    """What ends a training before its time."""

    MEDIAN = "median"
    HALVING = "halving"
    NONE = "none"
