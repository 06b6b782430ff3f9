"""Numbers of a running model that a file changes: bounds, faults, and a real server that takes them."""

import json
import shutil
import time
from pathlib import Path

import pytest
from tritonrank.artifacts.workspace import Workspace
from tritonrank.serve.server import LocalTriton
from tritonrank_client import RankClient
from tritonrank_runtime.tuning import LARGEST_FILE_BYTES, VARIABLE, Tuning

OWN = {"queue_share": 0.5, "batch_tokens": 0.0}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        self.now += 2.0
        return self.now


def test_a_file_changes_what_it_names_and_one_taken_away_brings_it_back(tmp_path: Path) -> None:
    file, said = tmp_path / "tuning.json", list[str]()
    tuning = Tuning(OWN, said.append, file, Clock())
    assert not tuning.look()
    file.write_text('{"queue_share": 0.3}')
    assert tuning.look()
    assert tuning.values == {"queue_share": 0.3, "batch_tokens": 0.0}
    assert not tuning.look()
    file.unlink()
    assert tuning.look()
    assert tuning.values == OWN
    assert len(said) == 2
    assert all("queue_share" in line for line in said)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", ""),
        ("[1]", "queue_share"),
        ('{"queue_share": 1.5}', "queue_share"),
        ('{"queue_share": true}', "queue_share"),
        ('{"queue_share": NaN}', "queue_share"),
        ('{"batch_tokens": "many"}', "batch_tokens"),
        ('{"colour": 1}', "colour"),
        (" " * (LARGEST_FILE_BYTES + 1), str(LARGEST_FILE_BYTES)),
    ],
    ids=range(8),
)
def test_a_wrong_file_changes_nothing_and_is_said_once(content: str, named: str, tmp_path: Path) -> None:
    file, said = tmp_path / "tuning.json", list[str]()
    tuning = Tuning(OWN, said.append, file, Clock())
    file.write_text(content)
    assert not tuning.look()
    assert not tuning.look()
    assert tuning.values == OWN
    (line,) = said
    assert named in line


def test_it_is_looked_at_once_a_second_and_without_a_file_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tuning.json"
    tuning = Tuning(OWN, print, file)
    assert not tuning.look()
    file.write_text('{"queue_share": 0.3}')
    assert not tuning.look()
    monkeypatch.delenv(VARIABLE, raising=False)
    assert not Tuning(OWN, print).look()


@pytest.mark.slow
def test_a_running_server_takes_other_numbers(workspace: Workspace, tmp_path: Path) -> None:
    shutil.copytree(workspace.repository, tmp_path / "repository")
    file, log = tmp_path / "tuning.json", tmp_path / "server.log"
    triton = LocalTriton(tmp_path / "repository", environment={VARIABLE: str(file)}, log_file=log)
    with triton as running, RankClient(running.grpc_url, timeout=20) as client:
        assert client.rank(query="lamp", items=["a lamp", "a desk"]).ranking
        assert VARIABLE not in log.read_text()
        for share, before in ((0.25, "0"), (0.75, "0.25")):
            file.write_text(json.dumps({"queue_share": share}))
            until = time.monotonic() + 20
            while f"queue_share is {share:g} after {before}" not in log.read_text():
                assert time.monotonic() < until, log.read_text()[-2_000:]
                assert client.rank(query="lamp", items=["a lamp", "a desk"]).ranking
                time.sleep(0.2)
