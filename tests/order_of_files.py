"""Where several workers test at once, files that take long begin first, so that none of them is alone at the end.

pytest-xdist would begin with the files that have the most tests, and those that take minutes have one or two.
"""

import functools
from collections import Counter

import pytest


@pytest.hookimpl(trylast=True)  # of what is left when other tests were deselected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files first, then as pytest-xdist has it; every worker comes to the same order."""
    text = functools.cache(lambda path: path.read_text(encoding="utf-8"))
    for item in items:
        # `make test-slow` looks for these files by the words, not to import all others.
        for name in ("alone", "slow"):
            if item.get_closest_marker(name) and f"mark.{name}" not in text(item.path):
                raise pytest.UsageError(f"{item.nodeid}: another file marks it {name}; write mark.{name} in its own")
    if not hasattr(config, "workerinput"):
        return
    tests = Counter(item.path for item in items)
    long = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: (item.path not in long, -tests[item.path]))
