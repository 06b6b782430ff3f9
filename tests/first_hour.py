"""The first hour of a new user, typed as docs/first-hour.md tells it: from a dirty shop's tables to a ranking.

    python tests/first_hour.py FOLDER --minutes 20

Nothing is edited by hand; what ``check`` suggests is added to the commands as it says. Ends with a table of what took
how long, which is the one of the page.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

READY_SECONDS = 300
LONGEST_SECONDS = 7_200
BEATEN = 3
"""Exit code of a build that went to its end, though something that needs no training ranks better."""


@dataclass
class Hour:
    """What was typed, and how long it took."""

    folder: Path
    environment: dict[str, str]
    took: list[tuple[str, float]] = field(default_factory=list)

    def type(self, *words: object, name: str = "", allowed: Sequence[int] = (0,)) -> subprocess.CompletedProcess[str]:
        """Run ``tritonrank``; what it says on a terminal is kept.

        Raises:
            AssertionError: it exits with another code.
        """
        arguments = [*map(str, words)]
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "tritonrank", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=LONGEST_SECONDS,
            check=False,
        )
        self.took.append((name or f"tritonrank {shlex.join(arguments)}", time.monotonic() - began))
        assert done.returncode in allowed, (
            f"{shlex.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done

    @contextmanager
    def served(self, *words: object) -> Iterator[str]:
        """``tritonrank serve`` until it is ready; gives what it printed, and ends it."""
        command = [sys.executable, "-u", "-m", "tritonrank", "serve", *map(str, words)]
        began = time.monotonic()
        server = subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        said = ""
        try:
            assert server.stdout
            for line in server.stdout:
                said += line
                if "Ctrl-C" in line or time.monotonic() - began > READY_SECONDS:
                    break
            assert "Ctrl-C" in said, said
            self.took.append(("tritonrank serve (until ready)", time.monotonic() - began))
            yield said
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(timeout=60)


def first_hour(
    folder: Path, minutes: float, columns: Sequence[str] = (), settings: Sequence[str] = ()
) -> dict[str, Any]:
    """Everything in order.

    Args:
        folder: an empty one.
        minutes: what training may take.
        columns: as ``init --column`` takes them.
        settings: further ones of the builds, as ``--set`` takes them; a test has a smaller model.

    Returns:
        What each step said: checked, quick, summary, ranking, and took.
    """
    commands = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    hour = Hour(folder, os.environ | {"PATH": commands})
    hour.type("init", "--example", "data")
    named = [word for column in columns for word in ("--column", column)]
    tables = ("--items", "data/products.csv", "--events", "data/events.csv.gz")
    hour.type("init", *tables, "--minutes", minutes, "--out", "shop.yaml", *named)
    checked = json.loads(hour.type("check", "shop.yaml", "--json").stdout)
    advised = [word for one in checked["suggestions"] for word in ("--set", one["set"])]
    mended = json.loads(hour.type("check", "shop.yaml", "--json", *advised, name="again, with its advice").stdout)
    assert mended["suggestions"] == []
    advised += [word for one in settings for word in ("--set", one)]
    quick = hour.type("build", "shop.yaml", "--quick", *advised)
    built = hour.type("build", "shop.yaml", *advised, allowed=(0, BEATEN))
    hour.type("report", "artifacts/shop")
    ports = [word for name in ("http", "grpc", "metrics") for word in (f"--{name}-port", "0")]
    with hour.served("artifacts/shop", *ports) as said:
        pasted = said[said.index("tritonrank-client rank") : said.rindex("END") + len("END")]
        began = time.monotonic()
        ranked = subprocess.run(
            ["bash", "-c", pasted], env=hour.environment, capture_output=True, text=True, timeout=120, check=True
        )
        hour.took.append(("rank", time.monotonic() - began))
    return {
        "checked": checked,
        "mended": mended,
        "quick": quick.stdout,
        "built": json.loads(built.stdout.splitlines()[-1]),
        "summary": json.loads((folder / "artifacts/shop/summary/summary.json").read_text()),
        "ranking": ranked.stdout,
        "took": hour.took,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--column", action="append", default=[])
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True)
    found = first_hour(asked.folder, asked.minutes, asked.column)
    print("| typed | seconds |\n|---|---:|")
    for what, seconds in found["took"]:
        print(f"| `{what}` | {seconds:.0f} |")
    print(found["summary"].get("verdict"))
    print(found["ranking"])
