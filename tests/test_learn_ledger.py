"""The ledger of nights: what a line says counts, what was cut off does not, and which nights the next one stands on."""

from pathlib import Path

from tritonrank.artifacts.lines import append_line
from tritonrank.learn.ledger import LEDGER_FILE, Ledger


def accepted(ledger: Ledger, parent: str, base: str = "a") -> str:
    night = ledger.end(ledger.begin(parent, base, now=1_795_744_000), "accepted", "better")
    return night.id


def test_a_step_is_done_when_its_line_is_there(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    night = ledger.begin("", "a", now=1_795_744_000)
    ledger.finish_step(night, "collect", 1.25, {"rows": 3})
    with (ledger.folder / LEDGER_FILE).open("a") as file:
        file.write(f'{{"night": "{night.id}", "time": 1, "event": "step", "step": "inspe')  # killed within a line
    assert list(ledger.night(night.id).steps) == ["collect"]
    resumed = ledger.resume(night)
    assert (resumed.attempts, resumed.is_open, resumed.told("collect")) == (2, True, {"rows": 3, "seconds": 1.25})
    assert not resumed.told("inspect")


def test_nights_of_one_second_have_names_of_their_own(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    names = [ledger.begin("", "a", now=1_795_744_000).id for _ in range(3)]
    assert names == ["20261127T014640Z", "20261127T014641Z", "20261127T014642Z"]


def test_the_next_night_stands_on_what_was_accepted_and_not_taken_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.standing("a") == []
    first = accepted(ledger, "")
    second = accepted(ledger, first)
    ledger.end(ledger.begin(second, "a", now=1_795_744_000), "refused", "worse")
    assert [night.id for night in ledger.standing("a")] == [first, second]
    ledger.decide(ledger.night(second), "back", "slow")
    assert [night.id for night in ledger.standing("a")] == [first]
    third = accepted(ledger, first)
    assert [night.id for night in ledger.standing("a")] == [first, third]
    ledger.decide(ledger.night(third), "live", "all rules are good")
    assert [night.id for night in ledger.standing("a")] == [first, third]
    ledger.decide(ledger.night(first), "back", "by a person")
    assert ledger.standing("a") == [], "what was learnt on top of what was taken back went with it"


def test_another_build_begins_a_chain_of_its_own(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    accepted(ledger, "", "a")
    assert ledger.standing("b") == []
    assert len(ledger.standing("a")) == 1


def test_lines_of_others_are_passed_over(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.begin("", "a")
    append_line(ledger.folder / LEDGER_FILE, {"event": "note"})
    assert len(ledger.nights()) == 1
