"""The page says what the run's file says, needs nothing from elsewhere, and takes no text for markup."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from loadtests.__main__ import app
from loadtests.machine import Machine
from loadtests.page import differences, headline, render
from loadtests.page_server import server_figures
from loadtests.report import write_page
from loadtests.results import (
    ClientHealth,
    ModelSecond,
    PerfLevel,
    PerfModel,
    Phase,
    Run,
    RunFileError,
    Second,
    ServerSecond,
    Shape,
    Spread,
    Target,
    Totals,
    Verdict,
    WorkloadFile,
    write_run,
)
from loadtests.session import show, show_measured

HOSTILE = "wrong: <script>alert('x')</script> & \"quotes\""
PHASE_SECONDS = 5


def totals(rate: float, milliseconds: float, rejected: int = 0, seconds: float = PHASE_SECONDS) -> Totals:
    answered = int(rate * seconds)
    offered = answered + rejected
    return Totals(
        seconds=seconds,
        offered=offered,
        sent=offered,
        answered=answered,
        good=answered,
        failed={"rejected": rejected} if rejected else {},
        offered_per_second=offered / seconds,
        answered_per_second=rate,
        goodput_per_second=rate,
        candidates_per_second=100 * rate,
        error_rate=rejected / offered,
        latency=Spread.of([milliseconds, 2 * milliseconds]),
        service=Spread.of([milliseconds]),
        rejection=Spread.of([5.0]) if rejected else Spread(),
    )


def server_second(second: float, requests: int, batches: dict[int, int] | None = None) -> ServerSecond:
    def model(name: str, compute_ms: float, queue_ms: float = 0.0, rest_ms: float = 0.0) -> ModelSecond:
        return ModelSecond(
            model=name,
            requests=requests,
            executions=requests,
            duration_us=1_000 * requests * (compute_ms + queue_ms + rest_ms),
            queue_us=1_000 * requests * queue_ms,
            compute_us=1_000 * requests * compute_ms,
            batch_sizes=batches or {1: requests} if name == "score" else {},
        )

    return ServerSecond(
        second=second,
        interval_seconds=1.0,
        models=[model("rank", 120.0), model("tokenize", 2.0, 1.0), model("score", 90.0, 20.0), model("select", 3.0)],
        context_cache_hits=1,
        context_cache_misses=3,
        cpu_seconds=1.5,
        rss_bytes=500_000_000,
        counters={
            "tritonrank_tokens_computed_total": 110,
            "tritonrank_tokens_needed_total": 100,
            "tritonrank_requests_rejected_total": 2,
            "tritonrank_requests_expired_total": 0,
        },
    )


def made_run(milliseconds: float = 100.0, **changes: Any) -> Run:
    phases = [
        Phase(name=name, start_second=start, end_second=start + PHASE_SECONDS, rate=rate, counts=counts,
              totals=totals(rate, milliseconds, rejected))
        for name, start, rate, counts, rejected in (
            ("warm-up", 0, 2.0, False, 0), ("ramp 4/s", 5, 4.0, True, 0), ("steady", 10, 8.0, True, 7),
        )
    ]  # fmt: skip
    seconds = [
        Second(
            second=second,
            phase=phases[second // PHASE_SECONDS].name,
            offered=4,
            sent=4,
            answered=3,
            good=3,
            failed={"rejected": 1},
            latency=Spread.of([milliseconds + second]) if second != 7 else Spread(),
            service=Spread(),
            rejection=Spread(),
            candidates=300,
            bytes=10,
            in_flight=1,
        )
        for second in range(3 * PHASE_SECONDS)
    ]
    values: dict[str, Any] = {
        "name": "candidate",
        "started": datetime(2026, 11, 22, tzinfo=UTC),
        "seconds": 15.0,
        "machine": Machine(
            processor="AMD EPYC", cores=2, flags=["avx2"], memory_gb=25.3, system="Linux", load_average=0.1
        ),
        "versions": {"python": "3.11.7", "locust": "2.46.7"},
        "command": ["python", "-m", "loadtests", "run", "artifacts/<demo>"],
        "workload": WorkloadFile(
            path="workload.jsonl", sha256="ab" * 32, requests=100, laps=0.5, candidates_p50=100, candidates_max=100
        ),
        "shape": Shape(name="steady", parameters={"seconds": 15}),
        "target": Target(
            url="grpc://127.0.0.1:8001", protocol="grpc", artifact="e597", settings={"score.instances": "2"}
        ),
        "deadline_ms": 2_000,
        "phases": phases,
        "totals": totals(6.0, milliseconds, 7, seconds=10),
        "per_second": seconds,
        "server": [server_second(float(second), 4) for second in range(1, 16)],
        "failures": [HOSTILE],
        "client": ClientHealth(
            lag=Spread.of([1.0]), allowed_lag_ms=50, senders=16, most_in_flight=3, cpu_share=0.2, valid=True
        ),
    }
    return Run(**values | changes)


def verdict(met: bool) -> Verdict:
    return Verdict(
        objective="p99 latency", phase="steady", wanted="<= 400 ms", limit=400, found=312, unit="ms", met=met
    )


def level(mode: str, value: float, failed: str = "") -> PerfLevel:
    model = {"queue_us": 10.0, "compute_input_us": 20.0, "compute_us": 30_000.0, "compute_output_us": 40.0}
    return PerfLevel.model_validate(
        {
            "mode": mode,
            "value": value,
            "requests": 0 if failed else 50,
            "seconds": 5.0,
            "answered_per_second": 10.0,
            "latency": Spread.of([80.0]),
            "models": [PerfModel(model="rank", **model), PerfModel(model="score", overhead_us=3.0, **model)],
            "failed": failed,
        }
    )


def svgs(page: str) -> Iterator[ElementTree.Element]:
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        yield ElementTree.fromstring(svg)


def text_of(page: str) -> str:
    without = re.sub(r"<(style|svg).*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", without))


def test_the_page_needs_nothing_but_itself() -> None:
    page = render(made_run(verdicts=[verdict(True)]), made_run(150.0), made_run(perf=[level("rate", 5)]))
    assert not re.search(r"<(script|link|img|iframe|object)\b", page)
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?\s*(https?:)?//""", page)
    assert "@import" not in page
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page
    assert len(page) < 200_000


def test_texts_are_not_markup() -> None:
    hostile = made_run(name="<b>run</b>", verdicts=[verdict(True).model_copy(update={"why": HOSTILE})])
    phases = [phase.model_copy(update={"name": f"<i>{phase.name}"}) for phase in hostile.phases]
    page = render(hostile.model_copy(update={"phases": phases}), perf=made_run(perf=[level("rate", 5, HOSTILE)]))
    assert "<script>alert" not in page
    assert "<b>run" not in page
    assert "<i>" not in page
    assert page.count("&lt;script&gt;alert") == 3  # failure, verdict, level
    assert all(svg.tag == "svg" for svg in svgs(page))


ENOUGH_ANSWERED = verdict(True).model_copy(update={"objective": "error rate"})


@pytest.mark.parametrize(
    ("changes", "style", "words"),
    [
        ({"verdicts": [verdict(True), ENOUGH_ANSWERED]}, "good", "All 2 objectives met."),
        ({"verdicts": [verdict(True), verdict(False)]}, "bad", "1 of 2 objectives missed."),
        ({"verdicts": [verdict(True)]}, "bad", "7 of 67 requests failed"),
        ({}, "bad", "7 of 67 requests failed"),
        ({"totals": totals(6.0, 100.0, 0, seconds=10)}, "plain", "Measured without objectives: nothing was judged."),
        ({"totals": totals(0.0, 100.0, 60, seconds=10), "verdicts": [ENOUGH_ANSWERED]}, "bad", "nothing was answered"),
    ],
)
def test_the_headline_is_the_verdict(changes: dict[str, Any], style: str, words: str) -> None:
    run = made_run(**changes)
    found_style, sentence = headline(run)
    assert (found_style, words in sentence) == (style, True), sentence
    assert words in text_of(render(run))
    assert run.passed == (style != "bad")


def test_a_run_that_does_not_count_says_so_first() -> None:
    run = made_run(verdicts=[verdict(True)])
    client = run.client.model_copy(update={"valid": False, "why": "p99 of its own delay is 900 ms"})
    style, words = headline(run.model_copy(update={"client": client}))
    assert style == "bad"
    assert "does not count: p99 of its own delay" in words


def test_a_verdict_is_a_sentence() -> None:
    text = text_of(render(made_run(verdicts=[verdict(False)])))
    assert "missed p99 latency , steady: 312 ms, wanted &lt;= 400 ms" in text


def test_every_part_is_there() -> None:
    page = render(made_run())
    for title in (
        "Latency against throughput", "Latency over time", "Offered and answered over time",
        "Where the time goes in the server", "Batches formed", "CPU of the server", "Memory of the server",
    ):  # fmt: skip
        assert f"<h3>{title}</h3>" in page
    text = text_of(page)
    for told in ("AMD EPYC", "locust 2.46.7", "ab" * 32, "score.instances=2", "artifacts/&lt;demo&gt;", "e597"):
        assert told in text
    assert "rejected 7" in text  # failures by kind
    assert "seed" not in text  # there is none
    assert len(list(svgs(page))) == 7


def test_ratios_stand_beside_the_baseline() -> None:
    text = text_of(render(made_run(100.0), made_run(200.0)))
    assert "p50 latency 100 ms 200 ms 0.50 x better" in text
    assert "answered per second 6 6 1.00 x about the same" in text
    assert "p99 latency 400 ms 200 ms 2.00 x worse" in text_of(render(made_run(200.0), made_run(100.0)))
    assert "baseline" not in text_of(render(made_run())).lower()


def test_what_makes_two_runs_incomparable_is_said() -> None:
    run, other = made_run(), made_run()
    assert differences(run, other) == []
    target = other.target.model_copy(update={"settings": {"score.instances": "4"}})
    workload = other.workload.model_copy(update={"sha256": "cd" * 32})
    other = other.model_copy(update={"target": target, "workload": workload, "versions": {"python": "3.12.0"}})
    found = differences(run, other)
    assert "workload: abababababab, baseline cdcdcdcdcdcd" in found
    assert "setting score.instances: 2, baseline 4" in found
    assert "version of locust: 2.46.7, baseline none" in found
    assert "differ in more than their results" in text_of(render(run, other))


def test_server_figures_are_means_of_the_phase() -> None:
    figures = server_figures([server_second(1, 4), server_second(2, 12, {1: 2, 4: 1}), server_second(9, 100)], 0, 3)
    assert figures is not None
    assert figures.requests == 16
    assert figures.milliseconds == pytest.approx(
        {"tokenize": 2, "queue": 21, "score": 90, "select": 3, "rest": 120 - 116}
    )
    assert figures.batches == {1: 6, 4: 1}
    assert figures.hit_share == 0.25
    assert figures.computed_per_needed == pytest.approx(1.1)
    assert (figures.rejected, figures.expired) == (4, 0)
    assert figures.cores == pytest.approx(1.5)
    assert figures.rss_bytes == 500_000_000
    assert server_figures([], 0, 3) is None


def test_what_is_unknown_is_called_unknown() -> None:
    page = render(made_run(server=[], per_second=[]))
    text = text_of(page)
    assert "The server's statistics are unknown" in text.replace("&#39;", "'")
    assert "CPU of the server: Unknown" in text
    assert len(list(svgs(page))) == 1


def test_an_empty_run_has_a_page() -> None:
    nothing = Totals(
        seconds=0, offered=0, sent=0, answered=0, good=0, offered_per_second=0, answered_per_second=0,
        goodput_per_second=0, candidates_per_second=0, error_rate=0, latency=Spread(), service=Spread(),
        rejection=Spread(),
    )  # fmt: skip
    page = render(made_run(server=[], per_second=[], phases=[], totals=nothing))
    assert "No phase was answered" in page


def test_levels_of_perf_analyzer_join_the_plot() -> None:
    perf = made_run(perf=[level("concurrency", 1), level("rate", 7.5), level("rate", 60, "the queue is full")])
    text = text_of(render(made_run(), perf=perf))
    assert "perf_analyzer p50, clients that wait" in text
    assert "7.5 / s 50 10 80 80 80" in text
    assert "60 / s the queue is full" in text
    assert "score 0.01 + 30.1 + 0.003" in text
    alone = text_of(render(perf))
    assert "all phases that count" not in alone  # the sum over levels says nothing


def test_long_runs_are_thinned_to_their_worst_seconds() -> None:
    (one, *_) = made_run().per_second
    seconds = [
        one.model_copy(update={"second": n, "latency": Spread.of([900.0 if n == 777 else 50.0])}) for n in range(1_200)
    ]
    server = [server_second(float(n), 1) for n in range(1_200)]
    page = render(made_run(per_second=seconds, server=server))
    assert "each point is the worst of 6 seconds" in page
    (plot,) = re.findall(r"<h3>Latency over time</h3>\s*(<svg.*?</svg>)", page, re.DOTALL)
    highest, lowest = min(points_y(plot)), max(points_y(plot))
    assert lowest - highest > 100  # the one bad second still stands out
    assert len(page) < 200_000


def points_y(svg: str) -> list[float]:
    lines = re.findall(r'points="([^"]+)"', svg)
    return [float(point.split(",")[1]) for line in lines for point in line.split()]


def test_the_verb_writes_the_page_beside_the_run(tmp_path: Path) -> None:
    write_run(made_run(), tmp_path / "run.json")
    write_run(made_run(200.0), tmp_path / "before.json")
    done = CliRunner().invoke(app, ["report", str(tmp_path / "run.json"), "--baseline", str(tmp_path / "before.json")])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert "0.50 x" in page
    assert str(tmp_path / "run.html") in done.output.replace("\n", "")
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("content", [None, "{", '{"name": "no run"}'])
def test_a_file_that_is_no_run_is_named(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    if content is not None:
        file.write_text(content)
    done = CliRunner().invoke(app, ["report", str(file)])
    assert done.exit_code == 2
    assert not (tmp_path / "run.html").exists()


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunFileError, match="--out"):
        write_page(made_run(), tmp_path / "file" / "run.html")


def test_a_ramp_that_looks_for_the_saturation_is_shown_and_not_judged(capsys: pytest.CaptureFixture[str]) -> None:
    run = made_run()
    lost = run.totals.model_copy(update={"failed": {"expired": 3}})
    run = run.model_copy(update={"totals": lost, "verdicts": []})
    show(run)
    judged = capsys.readouterr().out
    show_measured(run)
    shown = capsys.readouterr().out
    assert judged.startswith(shown)
    assert "--slo" in judged.removeprefix(shown)
