"""Try what failed in CI beside other tests three times more, alone, and name it.

    python tests/second_look.py LOG RUNS

A machine that others share stands still now and then, and of thousands of tests that wait for something one is hit at
times. What fails alone, too, is a fault; so are more tests than a few, and runs that did not come to their end. What
passes is named all the same: whoever reads it asks whether the test, or what it tests, waits for too little, or whether
it is a fault that comes by chance.

Exits with 0 if nothing but so few tests failed, and all of them pass.
"""

import re
import subprocess
import sys
from pathlib import Path

MOST = 3
"""Tests."""
TIMES = 3
FAILED = re.compile(r"^(?:FAILED|ERROR) ([^\s:]+\.py(?:::\w+)*)", re.MULTILINE)
"""With all parameters of a test: their names may hold anything."""
ENDED = re.compile(r"^=+ (.*\b\d+ passed\b.*) in [\d.]+s", re.MULTILINE)
NOT_PASSED = re.compile(r"(\d+) (?:failed|errors?)\b")


def failed_tests(log: str, runs: int) -> list[str]:
    """The tests that failed in a log.

    Args:
        log: what pytest printed, of all runs.
        runs: of pytest, that the log has to have the ends of.

    Raises:
        ValueError: something else went wrong, or too much did.
    """
    ends = ENDED.findall(log)
    if len(ends) != runs:
        raise ValueError(f"{len(ends)} of {runs} runs came to their end")
    told, failed = FAILED.findall(log), sum(map(int, NOT_PASSED.findall(" ".join(ends))))
    tests = [*dict.fromkeys(told)]
    if not tests or len(told) != failed:
        raise ValueError(f"{failed} tests failed, and {len(told)} are named")
    if len(tests) > MOST:
        raise ValueError(f"{len(tests)} tests failed, which is more than a machine that stood still")
    return tests


def main(log: Path, runs: int) -> int:
    try:
        tests = failed_tests(log.read_text(encoding="utf-8", errors="replace"), runs)
    except ValueError as error:
        print(f"no second look: {error}")
        return 1
    print(f"a second look at {', '.join(tests)}, alone", flush=True)
    command = [sys.executable, "-m", "pytest", "-m", "", *tests]
    passed = all(subprocess.run(command, check=False).returncode == 0 for _ in range(TIMES))
    how = f"passed alone {TIMES} times" if passed else "failed alone, too"
    print(f"SECOND LOOK: {', '.join(tests)}: failed beside others, {how}")
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
