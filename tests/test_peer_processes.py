"""Systems run in processes of their own: they end with their children, and say why they ended."""

import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from loadtests.peers.libraries import Worker
from loadtests.processes import Process, SystemFaultError, resident_bytes


def wait_for(condition: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_a_process_is_stopped_with_its_children(tmp_path: Path) -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    process = Process([sys.executable, "-c", child], tmp_path / "log")
    family = psutil.Process(process.pid)
    wait_for(family.children)
    (grandchild,) = family.children()
    assert resident_bytes(process.pid) > 1_000_000
    process.stop()
    assert not psutil.pid_exists(process.pid)
    wait_for(lambda: not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE)
    with pytest.raises(SystemFaultError, match="no process"):
        resident_bytes(process.pid)


def test_a_process_that_ends_while_it_is_waited_for_tells_why(tmp_path: Path) -> None:
    process = Process([sys.executable, "-c", "raise SystemExit('port taken')"], tmp_path / "log")
    with pytest.raises(SystemFaultError, match="exit code 1\nport taken"):
        process.wait_until(lambda: False, "server", seconds=20.0)
    process.stop()


def test_a_process_that_is_never_ready_has_a_deadline(tmp_path: Path) -> None:
    process = Process([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log")
    try:
        with pytest.raises(SystemFaultError, match=r"not ready after 0\.3 s"):
            process.wait_until(lambda: False, "server", seconds=0.3)
    finally:
        process.stop()


WORKER = """
import os, sys
from loadtests.peers.workers.json_lines import answer_lines
print("noise that is no answer")
def score(request):
    print("more noise")
    if request["documents"] == ["die"]:
        os._exit(3)
    return [float(len(text)) for text in request["documents"]]
answer_lines(score)
"""


def test_a_worker_answers_in_order_and_reports_its_errors(tmp_path: Path) -> None:
    worker = Worker([sys.executable, "-c", WORKER], tmp_path / "log", "worker")
    try:
        worker.wait_until_ready()
        expected = {number: [float(number)] for number in range(1, 20)}
        found: dict[int, list[float]] = {}

        def ask(number: int) -> None:
            found[number] = worker.ask({"documents": ["x" * number]})["scores"]

        threads = [threading.Thread(target=ask, args=(number,)) for number in random.Random(0).sample(range(1, 20), 19)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == expected
        with pytest.raises(SystemFaultError, match="KeyError"):
            worker.ask({"no": "documents"})
        with pytest.raises(SystemFaultError, match="the worker ended"):
            worker.ask({"documents": ["die"]})
    finally:
        worker.stop()


def test_a_worker_that_cannot_start_says_so(tmp_path: Path) -> None:
    worker = Worker([sys.executable, "-c", "import no_such_library"], tmp_path / "log", "library")
    try:
        with pytest.raises(SystemFaultError, match="no_such_library"):
            worker.wait_until_ready()
    finally:
        worker.stop()
