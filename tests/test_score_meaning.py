"""Scores say what they are: the activation that a checkpoint names reaches the server's config and the client."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Served
from tiny_models import save_ranker
from tritonrank.errors import ArtifactError
from tritonrank.rankers.score_meaning import ScoreMeaning, score_meaning
from tritonrank.recipe import ServeSettings
from tritonrank.serve.triton_config import model_configs
from tritonrank_client import RankClient
from tritonrank_runtime.text import SCORES_FILE, copy_text_files

IDENTITY = "torch.nn.modules.linear.Identity"
SIGMOID = "torch.nn.modules.activation.Sigmoid"


@pytest.mark.parametrize(
    ("config", "own_file", "activation"),
    [
        ({}, None, "sigmoid"),
        ({"sentence_transformers": {"activation_fn": IDENTITY}}, None, "none"),
        ({"sentence_transformers": {"version": "5.0"}}, None, "sigmoid"),
        ({"sbert_ce_default_activation_function": IDENTITY}, None, "none"),
        ({}, {"activation_fn": IDENTITY}, "none"),
        ({"sentence_transformers": {"activation_fn": IDENTITY}}, {"activation_fn": SIGMOID}, "sigmoid"),
    ],
)
def test_activation_is_that_of_sentence_transformers(
    tmp_path: Path, config: dict[str, Any], own_file: dict[str, Any] | None, activation: str
) -> None:
    folder = save_ranker("bert", tmp_path / "checkpoint")
    told = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(told))
    if own_file:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(own_file))
    assert score_meaning(folder) == ScoreMeaning(activation)
    from sentence_transformers import CrossEncoder

    saved = folder / "saved_by_them"  # with the file that they look at first
    CrossEncoder(str(folder), device="cpu").save_pretrained(str(saved))
    theirs = json.loads((saved / "config_sentence_transformers.json").read_text())["activation_fn"]
    if own_file is None:
        assert theirs == {"sigmoid": SIGMOID, "none": IDENTITY}[activation]
        assert score_meaning(saved) == ScoreMeaning(activation)


def test_meaning_travels_with_tokenizer_and_rules(tmp_path: Path) -> None:
    source, target = save_ranker("bert", tmp_path / "source"), tmp_path / "target"
    target.mkdir()
    (source / "text.json").write_text("{}")
    copy_text_files(source, target)
    assert not (target / SCORES_FILE).exists(), "models made before it was written have none"
    meaning = ScoreMeaning("none", {"method": "platt", "a": 1.5, "b": -0.5})
    meaning.save(source)
    copy_text_files(source, target)
    assert score_meaning(target) == meaning
    config = model_configs(ServeSettings(max_candidates=7), ["input_ids"], cores=2, told=meaning.parameters)["rank"]
    told = {name: value.string_value for name, value in config.parameters.items()}
    assert (told["activation"], told["max_candidates"]) == ("none", "7")
    assert json.loads(told["calibration"]) == meaning.calibration


def test_damaged_meaning_is_refused(tmp_path: Path) -> None:
    (tmp_path / SCORES_FILE).write_text('{"temperature": 2}')
    with pytest.raises(ArtifactError, match=f"{SCORES_FILE}.*tritonrank build"):
        score_meaning(tmp_path)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_clients_are_told(served: Served, protocol: str) -> None:
    with RankClient(served.urls[protocol]) as client:
        parameters = client.model_info().parameters
    assert parameters["activation"] == "sigmoid"
    assert parameters["calibration"] == ""
    told = {"activation", "calibration", "max_candidates", "max_text_bytes", "deadline_ms", "block_candidates"}
    assert set(parameters) == told | {"item_template", "item_fields", "history_items"}
