"""``tritonrank up`` as a user types it: one command, one URL, right answers, nothing left behind."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import TEXTS, save_ranker
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError
from tritonrank.pipeline import up_serving
from tritonrank.pipeline.up import UpOptions
from tritonrank.pipeline.up_serving import UpPorts, built_folder, serve_target
from tritonrank.serve import gateway_child

QUERY = "warm lamp"
SECONDS = 180


def sigmoids(checkpoint: Path) -> list[float]:
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(checkpoint),
        AutoTokenizer.from_pretrained(checkpoint),
    )
    rows = tokenizer([QUERY] * len(TEXTS), TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        return [1 / (1 + math.exp(-logit)) for logit in model.eval()(**rows).logits[:, 0].tolist()]


def test_one_command_and_one_url(tmp_path: Path) -> None:
    checkpoint = save_ranker("bert", tmp_path / "checkpoint")
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
        body = json.dumps({"query": QUERY, "documents": TEXTS}).encode()
        request = urllib.request.Request(f"{found[0]}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            results = json.loads(answer.read())["results"]
        scores = {result["index"]: result["relevance_score"] for result in results}
        np.testing.assert_allclose([scores[place] for place in range(len(TEXTS))], sigmoids(checkpoint), atol=1e-4)
        assert [result["index"] for result in results] == sorted(scores, key=lambda place: -scores[place])
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


def test_missing_packages_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gateway_child.missing_packages() == []
    monkeypatch.setattr(gateway_child, "NEEDED", ("json", "no_such_package"))
    assert gateway_child.missing_packages() == ["no_such_package"]


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
