"""An answer is right or it is a failure, and each failure has its kind."""

import json
import math
from pathlib import Path

import pytest
from tritonrank_client import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RankedItem,
    RankResult,
    ServerFault,
    Unavailable,
)

from loadtests.checks import (
    GOLDEN_FILE,
    GoldenRequest,
    WrongAnswerError,
    check_golden,
    check_ranking,
    failure_kind,
    read_golden,
)
from loadtests.workload import WorkloadError

GOLDEN = GoldenRequest("desk", [], ["a", "b", "c"], [0.5, 2.0, -1.0])


def answer(*ranking: tuple[int, float]) -> RankResult:
    return RankResult(tuple(RankedItem(index, score, "item") for index, score in ranking), "demo", 0.1, 1)


def test_a_right_answer_passes() -> None:
    check_ranking(answer((1, 2.0), (0, 0.5), (2, 0.5)), 3)
    check_golden(answer((1, 2.00005), (0, 0.5), (2, -1.0)), GOLDEN)


@pytest.mark.parametrize(
    ("ranking", "said"),
    [
        ([(1, 2.0), (0, 1.0)], "2 different candidates"),
        ([(1, 2.0), (0, 1.0), (1, 0.5)], "2 different candidates"),
        ([(1, 2.0), (0, 1.0), (3, 0.5)], "3 different candidates"),
        ([(1, 1.0), (0, 2.0), (2, 0.5)], "descending"),
        ([(1, math.inf), (0, 2.0), (2, 0.5)], "finite"),
        ([(1, math.nan), (0, math.nan), (2, math.nan)], "finite"),
    ],
)
def test_a_wrong_ranking_is_found(ranking: list[tuple[int, float]], said: str) -> None:
    with pytest.raises(WrongAnswerError, match=said):
        check_ranking(answer(*ranking), 3)


def test_a_golden_score_that_moved_is_found() -> None:
    with pytest.raises(WrongAnswerError, match=r"differs by 1\.0e-03"):
        check_golden(answer((1, 2.0), (0, 0.501), (2, -1.0)), GOLDEN)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (WrongAnswerError("x"), "wrong"),
        (Overloaded("x"), "rejected"),
        (DeadlineExceeded("x"), "expired"),
        (Unavailable("x"), "unavailable"),
        (InvalidRequest("x"), "invalid"),
        (ServerFault("CUDA error"), "fault"),
        (RuntimeError("the client is closed"), "fault"),
    ],
)
def test_every_error_has_its_kind(error: Exception, kind: str) -> None:
    assert failure_kind(error) == kind


@pytest.mark.parametrize("place", [GOLDEN_FILE, f"repository/{GOLDEN_FILE}"])
def test_golden_requests_are_found_in_artifacts_and_repositories(place: str, tmp_path: Path) -> None:
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"artifact": "abc", "cases": [vars(GOLDEN)]}), encoding="utf-8")
    assert read_golden(tmp_path) == read_golden(path) == [GOLDEN]


def test_a_repository_for_gpus_says_how_far_a_score_may_be(tmp_path: Path) -> None:
    text = json.dumps({"tolerance": 0.05, "cases": [{"query": "", "history": [], "items": ["a"], "scores": [1.0]}]})
    (tmp_path / GOLDEN_FILE).write_text(text, encoding="utf-8")
    (golden,) = read_golden(tmp_path)
    check_golden(answer((0, 1.04)), golden)
    with pytest.raises(WrongAnswerError, match=r"differs by 6\.0e-02 \(tolerance 5e-02\)"):
        check_golden(answer((0, 1.06)), golden)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cases": [{"items": ["a"]}]}', '{"cases": [1]}'])
def test_a_damaged_golden_file_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / GOLDEN_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(WorkloadError, match="not golden requests"):
        read_golden(tmp_path)
    with pytest.raises(WorkloadError, match=r"nowhere: No such file.*tritonrank assemble"):
        read_golden(tmp_path / "nowhere")


def test_a_golden_case_has_one_score_for_each_item(tmp_path: Path) -> None:
    case = vars(GOLDEN) | {"scores": [1.0]}
    (tmp_path / GOLDEN_FILE).write_text(json.dumps({"cases": [case]}), encoding="utf-8")
    with pytest.raises(WorkloadError, match="one score for each"):
        read_golden(tmp_path)
