"""A training goes on from the last checkpoint that was written whole."""

import json
from pathlib import Path

import pytest
from transformers.trainer import TRAINER_STATE_NAME
from tritonrank.train.resuming import resumable


@pytest.mark.parametrize("state", ["", '{"global_step": 20, "best_me'])
def test_a_checkpoint_that_a_kill_cut_off_is_passed_over(state: str, tmp_path: Path) -> None:
    assert resumable(tmp_path / "work", "key") is None
    for step, text in ((10, json.dumps({"global_step": 10})), (20, state)):
        folder = tmp_path / "work" / f"checkpoint-{step}"
        folder.mkdir()
        (folder / TRAINER_STATE_NAME).write_text(text, encoding="utf-8")
    assert resumable(tmp_path / "work", "key") == str(tmp_path / "work" / "checkpoint-10")
    assert resumable(tmp_path / "work", "another key") is None
    assert not (tmp_path / "work" / "checkpoint-10").exists()
