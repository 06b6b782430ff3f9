"""Two servers by turns: known delays give a known ratio, whatever the order."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from misbehaving_server import MisbehavingServer, Slow
from refused_ports import refused_address
from typer.testing import CliRunner

from loadtests.__main__ import app
from loadtests.compare import WARM_UP_REQUESTS, timed
from loadtests.workload import WorkloadError, read_workload

ROWS = 16


@pytest.fixture
def two(small_workload: Path) -> Iterator[tuple[MisbehavingServer, MisbehavingServer]]:
    first, second = MisbehavingServer(), MisbehavingServer()
    first.behave(Slow(0.06))
    second.behave(Slow(0.03))
    yield first, second
    first.close()
    second.close()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_ratio_is_that_of_the_delays(
    two: tuple[MisbehavingServer, MisbehavingServer], small_workload: Path, protocol: str
) -> None:
    rows = read_workload(small_workload)[:ROWS]
    found = timed([server.urls[protocol] for server in two], rows)
    assert found.requests == ROWS - WARM_UP_REQUESTS
    assert found.candidates == 4
    assert found.first_p50 >= 60
    assert found.second_p50 >= 30
    assert 0.4 < found.ratio < 0.8
    assert found.ratio_low <= found.ratio <= found.ratio_high


@pytest.mark.parametrize(("most", "code"), [(0.9, 0), (0.2, 1)])
def test_the_exit_code_says_whether_it_is_fast_enough(
    two: tuple[MisbehavingServer, MisbehavingServer], small_workload: Path, tmp_path: Path, most: float, code: int
) -> None:
    first, second = (server.urls["grpc"] for server in two)
    options = ["--workload", small_workload, "--requests", 4, "--most", most, "--out", tmp_path / "c.json"]
    done = CliRunner().invoke(app, ["compare", first, second, *map(str, options)])
    assert done.exit_code == code
    record = json.loads((tmp_path / "c.json").read_text())
    assert record["requests"] == 4
    assert record["machine"]["cores"] >= 1
    assert "of the first's time" in done.output


def test_a_server_that_is_not_there_is_an_error(
    two: tuple[MisbehavingServer, MisbehavingServer], small_workload: Path
) -> None:
    arguments = ["compare", two[0].urls["grpc"], f"grpc://{refused_address()}", "--workload", str(small_workload)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code not in (0, 1)
    assert "Traceback" not in done.output


def test_an_empty_workload_is_an_error() -> None:
    with pytest.raises(WorkloadError, match="no request"):
        timed(["grpc://127.0.0.1:1", "grpc://127.0.0.1:2"], [])
