"""Programs of the system that some tests run."""

import shutil

import pytest


def require_program(name: str, packages: str) -> None:
    """Skip the test where a program is missing, naming what brings it; CI installs them all and allows no skip."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed: apt-get install {packages}")
