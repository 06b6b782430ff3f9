"""What several workers lose makes the run fail."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LOSES_A_WORKER = """
import os

def pytest_runtest_protocol(item):
    if item.name == "test_it" and os.environ["PYTEST_XDIST_WORKER"] == "gw0":
        raise RuntimeError("nobody's test")
"""


@pytest.mark.parametrize(("conftest", "status"), [("", 0), (LOSES_A_WORKER, 3)], ids=["whole", "internal error"])
def test_tests_that_nobody_ran_fail_the_run(conftest: str, status: int, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(conftest)
    for name in ("test_a.py", "test_b.py"):
        (tmp_path / name).write_text("def test_it():\n    pass\n")
    few = ["-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:hypothesispytest", "-p", "no:locust"]
    command = [sys.executable, "-m", "pytest", "-p", "whole_runs", "-n", "2", "--dist", "loadfile", *few]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    variables["PYTHONPATH"] = f"{TESTS}{os.pathsep}{variables.get('PYTHONPATH', '')}"
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stdout + done.stderr
    assert bool(re.search(r"LOST 1 tests? .*test_it", done.stdout)) == bool(status), done.stdout
