"""``tritonrank up`` as a user types it: one command, one URL, right answers, nothing left behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_up import DOCUMENTS, FORMS, QUERY, reference
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError
from tritonrank.pipeline import up_serving
from tritonrank.pipeline.up import UpOptions
from tritonrank.pipeline.up_serving import UpPorts, built_folder, serve_target
from tritonrank.serve import gateway_child

SECONDS = 180


def ask(url: str, path: str, body: dict[str, object]) -> Any:
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


@pytest.mark.parametrize(
    "form",
    [
        "bert",
        *(
            pytest.param(form, marks=[pytest.mark.slow, pytest.mark.long])
            for form in ("xlm-roberta with 8,194 positions", "modernbert", "deberta-v2", "modules")
        ),
    ],
)
def test_one_command_and_one_url(form: str, tmp_path: Path) -> None:
    checkpoint = FORMS[form](tmp_path / "checkpoint")
    command = [sys.executable, "-m", "tritonrank", "up", str(checkpoint), "--port", "0", "--precision", "fp32"]
    command += ["--artifacts", str(tmp_path / "artifacts")]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {"COLUMNS": "200"})
    try:
        deadline = time.monotonic() + SECONDS
        while not (found := re.search(r"(http://127\.0\.0\.1:\d+)/v1/rerank", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        logits = reference(form, checkpoint)
        told = ask(found[1], "/rerank", {"query": QUERY, "texts": DOCUMENTS, "raw_scores": True})
        np.testing.assert_allclose([one["score"] for one in told], logits[[one["index"] for one in told]], atol=1e-4)
        results = ask(found[1], "/v1/rerank", {"query": QUERY, "documents": DOCUMENTS})["results"]
        scores = np.array([one["relevance_score"] for one in results])
        assert (np.diff(scores) <= 0).all()
        sigmoids = 1 / (1 + np.exp(-logits))
        np.testing.assert_allclose(scores, sigmoids[[one["index"] for one in results]], atol=1e-4)
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(60)
    assert code == 0, log.read_text()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(found[0], timeout=5)


def test_without_the_gateway_triton_serves_alone(
    joint_workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(up_serving, "missing_packages", lambda: ["fastapi"])
    monkeypatch.setattr(up_serving, "run_until_signalled", lambda server: server.check())
    serve_target(str(joint_workspace.root), UpOptions(), Path("unused"), UpPorts(port=0))
    said = capsys.readouterr().out
    assert "pip install 'tritonrank[gateway]'" in said
    assert "tritonrank-client rank --url grpc://127.0.0.1:" in said


def test_missing_packages_are_found() -> None:
    assert gateway_child.missing_packages() == []
    assert gateway_child.missing_packages(("json", "no_such_package")) == ["no_such_package"]


def test_what_was_built_is_told_from_a_checkpoint(joint_workspace: Workspace, tmp_path: Path) -> None:
    assert built_folder(str(joint_workspace.root)) == joint_workspace.root
    assert built_folder(str(joint_workspace.repository)) == joint_workspace.repository
    assert built_folder(str(joint_workspace.int8)) == joint_workspace.root
    assert built_folder(str(joint_workspace.teacher)) is None, "a checkpoint that a recipe made"
    assert built_folder("org/model") is None
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("name: mine\n")
    with pytest.raises(ArtifactError, match="tritonrank build"):
        built_folder(str(recipe))
