"""CI runs every test once; what several workers lose makes the run fail; and they begin with what takes long."""

import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression

TESTS = Path(__file__).parent
ROOT = TESTS.parent
MARKS = ("slow", "alone", "patient", "engines")
LOSES_A_WORKER = """
import os

def pytest_runtest_protocol(item):
    if item.name == "test_it" and os.environ["PYTEST_XDIST_WORKER"] == "gw0":
        raise RuntimeError("nobody's test")
"""


def test_ci_runs_every_test_once(pytestconfig: pytest.Config) -> None:
    script = (ROOT / ".ci" / "run").read_text()
    steps = re.findall(r"^(?:run|.* make) (test\b.*?) *(?:[#>].*)?$", script, re.MULTILINE)
    chosen = [marks for step in steps for marks in marks_of(shlex.split(step), pytestconfig.getini("addopts"))]
    assert len(chosen) > len(steps) > 1
    assert re.findall(r"second_look\.py \S+ (\d+)", script) == [str(len(chosen))], "it wants the ends of all"
    for there in itertools.chain.from_iterable(itertools.combinations(MARKS, number) for number in range(5)):
        # What is patient is alone, what is alone here is slow, and what compiles with TensorRT is none of these.
        is_engine = "engines" in there
        if ("patient" in there) <= ("alone" in there) <= ("slow" in there) and is_engine <= (len(there) == 1):
            assert [chooses(marks, there) for marks in chosen].count(True) == 1, there


def chooses(marks: str, there: Sequence[str]) -> bool:
    def is_there(name: str, /, **_: str | int | bool | None) -> bool:
        return name in there

    return Expression.compile(marks).evaluate(is_there)


def marks_of(step: Sequence[str], of_all: Sequence[str]) -> list[str]:
    """Which marks the commands of a target of make choose."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    wanted = ["make", "--dry-run", *step]
    told = subprocess.run(wanted, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True)
    chosen = []
    for command in told.stdout.splitlines():
        if " -m pytest" in command:
            words = [*of_all, *shlex.split(command.rstrip("\\"))]
            marks = [after for word, after in itertools.pairwise(words) if word == "-m" and after != "pytest"]
            chosen.append(marks[-1])  # which is the one that counts
    assert chosen, step
    return chosen


LOST = {
    "whole": ("", 0, 0),
    "internal error": (LOSES_A_WORKER, 0, 3),
    # While another worker is at work the leading process itself stumbles over what the lost one left undone.
    "internal error, and another's": (LOSES_A_WORKER, 2, 3),
}


@pytest.mark.parametrize(("conftest", "seconds", "status"), LOST.values(), ids=LOST.keys())
def test_tests_that_nobody_ran_fail_the_run(conftest: str, seconds: int, status: int, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(conftest)
    for name in ("test_a.py", "test_b.py"):
        (tmp_path / name).write_text(f"import time\n\ndef test_it():\n    time.sleep({seconds})\n")
    done = pytest_in(tmp_path, "-p", "whole_runs", "-n", "2")
    assert done.returncode == status, done.stdout + done.stderr
    # Two, where the other worker's last word was on its way when the run ended.
    assert bool(re.search(r"LOST [12] tests .*test_it", done.stdout)) == bool(status), done.stdout


def test_long_files_begin_then_those_with_the_most_tests(tmp_path: Path) -> None:
    one = "def test_it():\n    pass\n"
    files = {"a": one, "b": one + one.replace("it", "that"), "c": "import pytest\n@pytest.mark.long\n" + one}
    for name, text in files.items():
        (tmp_path / f"test_{name}.py").write_text(text)
    done = pytest_in(tmp_path, "-p", "order_of_files", "-n", "1", "--no-loadscope-reorder", "-v")
    assert re.findall(r"PASSED test_(\w)", done.stdout) == ["c", "b", "b", "a"], done.stdout


@pytest.mark.parametrize("name", ["alone", "slow"])
def test_who_is_to_be_alone_or_is_slow_says_so_in_the_own_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "marks.py").write_text(f"import pytest\nMARK = pytest.mark.{name}\n")
    (tmp_path / "test_a.py").write_text("from marks import MARK\n@MARK\ndef test_it():\n    pass\n")
    done = pytest_in(tmp_path, "-p", "order_of_files")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"write mark.{name} in its own" in done.stderr


ONE_FAILED = (
    "FAILED {}/test_a.py::test_it[a b - c] - AssertionError: no\n=== 1 failed, 8 passed, 2 warnings in 1.2s ===\n"
)
PASSED = "======= 9 passed, 3 warnings in 12.61s (0:20:02) =======\n"
LOOKS = {
    "passes alone": (ONE_FAILED + PASSED, "def test_it(): pass", 0, "failed beside others, passed alone 3 times"),
    "fails again": (ONE_FAILED + PASSED, "def test_it(): assert False", 1, "failed alone, too"),
    "fails at the third time": (
        ONE_FAILED + PASSED,
        "def test_it():\n    open('times', 'a').write('x')\n    assert open('times').read() != 'xxx'",
        1,
        "failed alone, too",
    ),
    "a run is missing": (ONE_FAILED, "def test_it(): pass", 1, "1 of 2 runs came to their end"),
    "no test failed": (PASSED * 2, "def test_it(): pass", 1, "0 tests failed, and 0 are named"),
    "one is not named": (
        ONE_FAILED + PASSED.replace("9", "1 failed, 9"),
        "def test_it(): pass",
        1,
        "2 tests failed, and 1 are named",
    ),
    "many": (
        "".join(f"FAILED {{}}/test_{x}.py::test_it\n" for x in "abcd") + PASSED + PASSED.replace("9", "4 failed, 9"),
        "def test_it(): pass",
        1,
        "4 tests failed, which is more",
    ),
}


@pytest.mark.parametrize(("log", "code", "status", "told"), LOOKS.values(), ids=LOOKS.keys())
def test_what_failed_beside_others_is_tried_alone(log: str, code: str, status: int, told: str, tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text(f"{code}\n")
    (tmp_path / "log").write_text(log.replace("{}", "."))
    command = [sys.executable, str(TESTS / "second_look.py"), "log", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stdout + done.stderr
    assert told in done.stdout


def pytest_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Of the folder's tests, without what those of this project need."""
    few = ["-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:hypothesispytest", "-p", "no:locust"]
    command = [sys.executable, "-m", "pytest", "--dist", "loadfile", *few, *arguments]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    variables["PYTHONPATH"] = f"{TESTS}{os.pathsep}{variables.get('PYTHONPATH', '')}"
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=120, check=False)
