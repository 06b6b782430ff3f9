"""Refuse to serve from the wrong Python, or with other code than what lies beside the model.

Triton's Python backend runs the first ``python3`` on its PATH. With NumPy 2 there, the bundled Triton 2.51 answers
every request with zero bytes and status OK. ``tritonrank serve`` names the expected environment in TRITONRANK_PREFIX;
a container that brings its own Python leaves it unset.
"""

import os
import sys
from pathlib import Path

import numpy as np


def check_interpreter(model_folder: Path) -> None:
    """Raise RuntimeError when this is not the Python that the server was started from, or its NumPy is too new.

    Args:
        model_folder: the version folder of the model; this very module has to lie in it.
    """
    # Not resolved: the server sees the repository as links in a folder of its own.
    if not Path(__file__).absolute().is_relative_to(model_folder.absolute()):
        raise RuntimeError(f"{__name__} was imported from {Path(__file__).parent}; expected from below {model_folder}")
    expected = os.environ.get("TRITONRANK_PREFIX")
    if expected is None:
        return
    if os.path.realpath(sys.prefix) != os.path.realpath(expected):
        raise RuntimeError(f"Triton's Python backend runs {sys.prefix}; expected {expected}: put its bin first on PATH")
    if int(np.__version__.split(".")[0]) >= 2:
        raise RuntimeError(f"NumPy {np.__version__} does not work with the bundled Triton 2.51: pip install 'numpy<2'")
