"""The benchmark that a session with a GPU runs, rehearsed on the CPU: what is timed scores alike."""

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tritonrank.errors import ArtifactError, GateError
from tritonrank.gpu_check import decoder as benchmark
from tritonrank.gpu_check import decoder_ways
from tritonrank.gpu_check.decoder import PAIRS, Timed, check_decoder, flop_of, gains, requests_of
from tritonrank.gpu_check.decoder_shapes import LOADS, SHAPES, Load
from tritonrank.gpu_check.decoder_ways import (
    Pairs,
    Shared,
    TransformersPairs,
    TransformersPrefixReuse,
    VllmPrefixReuse,
    network_config,
    random_network,
)
from tritonrank.rankers.decoder_modeling import DecoderConfig

TINY = SHAPES["tiny"]
SMALL = Load(7, 3, 4)


def test_a_rehearsal_writes_a_record_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "REHEARSED", (SMALL,))
    record = check_decoder("tiny", tmp_path / "record.json", cpu=True)
    assert json.loads((tmp_path / "record.json").read_text()) == json.loads(json.dumps(record))
    assert record["kind"] == "rehearsal on CPU"
    assert record["machine"]["gpu"] == ""
    ways = {one["way"]: one["tokens"] for one in record["timed"]}
    assert ways == {
        "shared, eager": 7 + 3 * 4,
        "shared, eager, prefix kept": 3 * 4,
        "shared, packed": 7 + 3 * 4,
        "shared, packed, prefix kept": 3 * 4,
        "pair by pair, eager": 3 * (7 + 4),
        "pair by pair, transformers": 3 * (7 + 4),
        "prefix reuse, transformers": 7 + 3 * 4,
    }
    assert max(record["differences"].values()) < 1e-4
    assert len(record["differences"]) == 5
    assert all(0 < one["share_of_product"] < 1 for one in record["timed"])
    assert {one["what"] for one in record["missing"]} == {"shared, CUDA graph", "prefix reuse, vLLM"}
    page = (tmp_path / "record.md").read_text()
    assert "vllm is not installed: pip install vllm" in page
    assert "1.7 times fewer tokens" in page


def test_ways_are_chosen_by_how_their_names_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is there whatever is wanted, since the others are held against it."""
    monkeypatch.setattr(benchmark, "REHEARSED", (SMALL,))
    record = check_decoder("tiny", tmp_path / "record.json", cpu=True, wanted=["shared, packed"], with_parts=True)
    assert {"attention", "gate and in", "sum and norm"} < {one["part"] for one in record["parts"]}
    assert all(one["microseconds"] > 0 for one in record["parts"])
    assert "| attention | " in (tmp_path / "record.md").read_text()
    assert [*record["differences"]] == ["shared, eager", "shared, packed", "shared, packed, prefix kept"]
    assert {"what": "pair by pair, eager", "why": "left out by --ways"} in record["missing"]


def test_a_way_that_cannot_be_opened_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "REHEARSED", (SMALL,))

    def refused(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(decoder_ways.Packed, "__init__", refused)
    record = check_decoder("tiny", tmp_path / "record.json", cpu=True, wanted=["shared, "])
    missing = {one["what"]: one["why"] for one in record["missing"]}
    assert missing["shared, packed"] == "it failed: RuntimeError: no kernel image"
    assert {one["way"] for one in record["timed"]} == {"shared, eager", "shared, eager, prefix kept"}


def test_what_a_way_has_to_compute() -> None:
    """Of a model whose weights outweigh its attention, by its tokens; pairs compute the prefix for every candidate."""
    shape, load = SHAPES["qwen3-0.6b"], Load(100, 10, 30)
    shared, kept, pairs = (
        flop_of(name, load, shape) for name in ("shared, packed", "shared, packed, prefix kept", "pair by pair, eager")
    )
    assert shared == pytest.approx(2 * shape.layer_weights * 400, rel=0.05)
    assert kept == pytest.approx(shared * 300 / 400, rel=0.05)
    assert pairs == pytest.approx(shared * 1_300 / 400, rel=0.05)


def test_sharing_is_held_against_the_fastest_pair_by_pair() -> None:
    times = {"shared, eager": 5.0, "shared, CUDA graph": 2.0, "shared, eager, prefix kept": 1.0}
    times |= {f"{PAIRS}, eager": 30.0, f"{PAIRS}, transformers": 20.0, "prefix reuse, vLLM": 1.5}
    (found,) = gains([Timed(way, LOADS[1], p50, p50, 8, 0) for way, p50 in times.items()])
    assert (found.rival, found.shared) == (f"{PAIRS}, transformers", "shared, CUDA graph")
    assert found.times_as_fast == 10
    assert found.times_fewer_tokens == round(100 * 530 / (500 + 3_000), 2)


def test_scores_that_differ_close_the_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "REHEARSED", (SMALL,))
    monkeypatch.setattr(decoder_ways.Pairs, "run", lambda self, request: np.full(3, 0.5, np.float32))
    with pytest.raises(GateError, match="other scores with the same weights: pair by pair, eager"):
        check_decoder("tiny", tmp_path / "record.json", cpu=True)
    assert (tmp_path / "record.json").is_file()


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"--shape huge: expected one of qwen3-0\.6b"):
        check_decoder("huge", tmp_path / "record.json", cpu=True)
    with pytest.raises(ArtifactError, match=r"no GPU is here.*--cpu --shape tiny"):
        check_decoder("tiny", tmp_path / "record.json")


def test_scores_of_candidates_differ_by_more_than_rounding() -> None:
    """Or else equal scores would prove nothing."""
    network = random_network(TINY, "cpu")
    (request,) = requests_of(Load(20, 9, 5), TINY, 1)
    found = Shared(network, "cpu").run(request)
    assert np.ptp(found) > 0.1
    np.testing.assert_allclose(Pairs(network, "cpu").run(request), found, atol=1e-5)


def test_reusing_a_prefix_changes_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """More candidates than one run takes, with the same weights both times."""
    monkeypatch.setattr(decoder_ways, "PAIRS_PER_RUN", 4)
    (request,) = requests_of(Load(20, 9, 5), TINY, 1)
    found = []
    for way in (TransformersPairs, TransformersPrefixReuse):
        torch.manual_seed(3)
        found.append(way(TINY, "cpu").run(request))
    assert np.ptp(found[0]) > 0.1
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)


def test_the_settings_are_those_of_a_decoder_config() -> None:
    assert set(network_config(TINY)) <= set(DecoderConfig().to_dict())


def test_the_sizes_are_those_of_the_published_models() -> None:
    """0.6, 4.0 and 7.6 billion: the largest has a head of its own, which a ranker drops."""
    found = [round(SHAPES[name].weights / 1e9, 1) for name in ("qwen3-0.6b", "qwen3-4b", "qwen3-8b")]
    assert found == [0.6, 4.0, 7.6]


def test_vllm_computes_the_prefix_once_in_every_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as that can be seen without it: what it is asked, in which order."""
    asked: list[Any] = []

    class Engine:
        def __init__(self, folder: str, **settings: Any) -> None:
            assert json.loads((Path(folder) / "config.json").read_text())["num_key_value_heads"] == TINY.kv_heads
            assert settings["enable_prefix_caching"]

        def reset_prefix_cache(self) -> bool:
            asked.append("reset")
            return True

        def generate(self, prompts: list[Any], sampling: Any, use_tqdm: bool) -> list[Any]:
            asked.append([one["prompt_token_ids"] for one in prompts])
            output = SimpleNamespace(logprobs=[{5: SimpleNamespace(logprob=-1.0)}])
            return [SimpleNamespace(outputs=[output]) for _ in prompts]

    vllm = ModuleType("vllm")
    vllm.__dict__.update(LLM=Engine, SamplingParams=SimpleNamespace, __spec__=ModuleSpec("vllm", None))
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    (request,) = requests_of(SMALL, TINY, 1)
    assert len(VllmPrefixReuse(TINY, tmp_path).run(request)) == SMALL.candidates
    reset, first, others = asked
    assert reset == "reset"
    assert [len(first), len(others)] == [1, SMALL.candidates - 1]
    prefix = request["prefix_ids"].tolist()
    assert all(prompt[: SMALL.prefix] == prefix for prompt in [*first, *others])
    assert [prompt[SMALL.prefix :] for prompt in [*first, *others]] == request["branch_ids"].tolist()
