"""Refuse to serve from the wrong Python.

Triton's Python backend runs the first ``python3`` on its PATH. With NumPy 2 there, the bundled Triton 2.51 answers
every request with zero bytes and status OK. ``tritonrank serve`` names the expected environment in TRITONRANK_PREFIX;
a container that brings its own Python leaves it unset.

``assemble`` copies this file beside the server's models: it imports only the standard library and numpy.
"""

import os
import sys

import numpy as np


def check_interpreter() -> None:
    """Raise RuntimeError when this is not the Python that the server was started from, or its NumPy is too new."""
    expected = os.environ.get("TRITONRANK_PREFIX")
    if expected is None:
        return
    if os.path.realpath(sys.prefix) != os.path.realpath(expected):
        raise RuntimeError(f"Triton's Python backend runs {sys.prefix}; expected {expected}: put its bin first on PATH")
    if int(np.__version__.split(".")[0]) >= 2:
        raise RuntimeError(f"NumPy {np.__version__} does not work with the bundled Triton 2.51: pip install 'numpy<2'")
