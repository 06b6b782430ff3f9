"""The recipe: one YAML file that says what to build.

Every setting is declared here once, with its default, its unit and the reason for the default: ``data``, ``text``,
``training``, ``graphs``, ``retrieval``, ``learning`` and ``serving`` hold the sections, ``whole`` puts them together. A
recipe names only what it wants different. ``load_recipe`` reports all faults of a file together, each with line and
key.
"""

from tritonrank.recipe.applicability import require_effects
from tritonrank.recipe.base import Settings, SourceLocation, SourcePath
from tritonrank.recipe.blend import BlendSettings
from tritonrank.recipe.data import DataSettings, EventsData, ExampleSettings, PublicData, SampleData, TablesData
from tritonrank.recipe.explain import explanation, find_settings
from tritonrank.recipe.graphs import GateSettings, QuantizeSettings, TensorRTSettings
from tritonrank.recipe.images import ImageSettings
from tritonrank.recipe.learning import LearnSettings
from tritonrank.recipe.listing import setting_rows
from tritonrank.recipe.loading import load_recipe
from tritonrank.recipe.page import settings_page
from tritonrank.recipe.retrieval import RetrievalSettings
from tritonrank.recipe.serving import ServeSettings
from tritonrank.recipe.shipped import shipped_recipes
from tritonrank.recipe.text import DEFAULT_BUDGETS, TextSettings
from tritonrank.recipe.training import (
    PACKAGED_MINILM,
    PACKAGED_SMOLLM2,
    DistillSettings,
    FinetuneSettings,
    ModelSettings,
    PruneSettings,
)
from tritonrank.recipe.whole import Recipe

__all__ = [
    "DEFAULT_BUDGETS",
    "PACKAGED_MINILM",
    "PACKAGED_SMOLLM2",
    "BlendSettings",
    "DataSettings",
    "DistillSettings",
    "EventsData",
    "ExampleSettings",
    "FinetuneSettings",
    "GateSettings",
    "ImageSettings",
    "LearnSettings",
    "ModelSettings",
    "PruneSettings",
    "PublicData",
    "QuantizeSettings",
    "Recipe",
    "RetrievalSettings",
    "SampleData",
    "ServeSettings",
    "Settings",
    "SourceLocation",
    "SourcePath",
    "TablesData",
    "TensorRTSettings",
    "TextSettings",
    "explanation",
    "find_settings",
    "load_recipe",
    "require_effects",
    "setting_rows",
    "settings_page",
    "shipped_recipes",
]
