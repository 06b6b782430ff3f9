"""The report tells what the artifacts hold: figures, rankings and texts are compared with their sources."""

import html
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
from browser import PHONE, open_browser, open_page
from onnx import TensorProto, helper
from tritonrank import cli
from tritonrank.artifacts import read_manifest, write_artifact
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.requests import requests_of
from tritonrank.errors import ArtifactError
from tritonrank.judge.evaluate import judge_artifact, judgement_file
from tritonrank.judge.gate import paired_difference
from tritonrank.pipeline.stages import run_stages
from tritonrank.quantize.calibration_record import CalibrationRecord, bulk_steps
from tritonrank.quantize.int8 import calibration_requests, graph_feeds, quantize_graphs, split_for_noise
from tritonrank.quantize.sensitivity import NoiseMeter
from tritonrank.rankers.scorers import Request, tensors_of
from tritonrank.recipe import Recipe
from tritonrank.report import summary
from tritonrank.report.answer import SUMMARY_FILE
from tritonrank.report.comparison import comparison
from tritonrank.report.compression import layer_name
from tritonrank.report.ladder import ladder, read_build
from tritonrank.report.page import escape_markdown, make_report
from tritonrank.report.plots.kept_matrix import LayerParts, kept_matrix
from tritonrank.report.plots.svg import figure
from tritonrank.shrink.cut import Kept
from tritonrank_runtime.item_text import render_fields
from tritonrank_runtime.sessions import open_session
from tritonrank_runtime.shared_context import CANDIDATES_FILE, CONTEXT_FILE
from tritonrank_runtime.text import RequestTokenizer, TextRules

RUNGS = {"fine-tuned": "teacher", "pruned": "pruned", "student": "student", "ONNX FP32": "onnx", "INT8": "int8"}
NASTY = "<img src=x onerror=alert(1)> & | **bold** [link](http://example.com/) `code`\n# title"


@pytest.fixture(scope="module")
def pruned(workspace: Workspace, tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The tiny ranker with half of everything cut off; its INT8 layers had to be looked at one by one."""
    made = Workspace(tmp_path_factory.mktemp("report") / "tiny")
    for folder in (workspace.dataset, workspace.teacher, workspace.judgements):
        shutil.copytree(folder, made.root / folder.name)
    values = tiny_recipe.model_dump(mode="json")
    values["prune"] = {"layers": 1, "heads": 2, "ffn_neurons": 64, "reserve_tokens": 10}
    values["distill"] = {"examples": 8, "pool": 4, "epochs": 1}
    values["finetune"] |= {"examples_per_step": 4, "evaluations": 1}
    values["gate"] = {"budget": 0.99, "prune_budget": 1}
    run_stages(Recipe.model_validate(values), made, until="export")
    rules, scratch = TextRules.load(made.onnx), tmp_path_factory.mktemp("scratch")
    requests = calibration_requests(tiny_recipe, Dataset.read(made.dataset), rules)
    quantize_graphs(made.onnx, scratch, requests, tiny_recipe.quantize)
    record = CalibrationRecord.load(scratch)
    assert record is not None
    values["quantize"] |= {"noise": 0.7 * record.noise.all_layers}
    run_stages(Recipe.model_validate(values), made)
    return made


@pytest.fixture(scope="module")
def pages(pruned: Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The report as HTML and as Markdown."""
    page, markdown = make_report(pruned.root, tmp_path_factory.mktemp("out") / "deep" / "page.html")
    return page.read_text(encoding="utf-8"), markdown.read_text(encoding="utf-8")


@pytest.fixture
def copied(pruned: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(pruned.root, tmp_path / "tiny")
    return Workspace(tmp_path / "tiny")


def command_line(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of ``tritonrank`` with these arguments, in this process."""
    monkeypatch.setattr("sys.argv", ["tritonrank", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as done:
        return int(done.code or 0)
    return 0


class Outline(HTMLParser):
    """The elements and the visible text of a page; fails on tags that do not match."""

    EMPTY = frozenset({"meta", "line", "rect", "circle", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open += [tag] if tag not in self.EMPTY else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


# The page


def test_the_page_needs_nothing_from_elsewhere(pages: tuple[str, str]) -> None:
    outline = Outline(pages[0])
    assert not re.search(r"https?:|//[a-z]|url\(|@import", pages[0])
    assert not {tag for tag, _ in outline.elements} & {"script", "link", "img", "iframe", "object", "image", "use"}
    assert not {name for _, attributes in outline.elements for name in attributes if name.startswith("on")}
    assert not {"src"} & {name for _, attributes in outline.elements for name in attributes}
    links = [attributes["href"] or "" for _, attributes in outline.elements if "href" in attributes]
    assert len(links) > 4
    places = {f"#{attributes['id']}" for _, attributes in outline.elements if "id" in attributes}
    assert set(links) == places  # contents name every section, and nothing else
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in outline.elements
    assert "prefers-color-scheme: dark" in pages[0]
    assert len(pages[0]) < 300_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_its_contents_lead_somewhere(pruned: Workspace, tmp_path: Path, scheme: str) -> None:
    page, _ = make_report(pruned.root, tmp_path / "page.html")
    with open_browser() as browser, open_page(browser, page.as_uri(), viewport=PHONE, color_scheme=scheme) as shown:
        assert shown.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        shown.click("nav a:last-of-type")
        assert shown.evaluate("document.querySelector(location.hash).getBoundingClientRect().top") < PHONE["height"]
        colour = shown.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", colour))) < 3 * 128) == (scheme == "dark")


def test_every_number_of_a_plot_is_one(pages: tuple[str, str]) -> None:
    shapes = [(tag, one) for tag, one in Outline(pages[0]).elements if tag in {"rect", "line", "circle", "text"}]
    assert len(shapes) > 100
    for tag, attributes in shapes:
        for name in {"x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height"} & set(attributes):
            value = float(attributes[name] or "")
            assert -1 <= value <= 2_000, (tag, attributes)


def test_texts_are_escaped(copied: Workspace) -> None:
    """Texts of items are users' data."""
    items = pl.read_parquet(copied.dataset / "items.parquet")
    kept = {
        name: judgement_file(copied.root / folder, copied.dataset, copied.judgements) for name, folder in RUNGS.items()
    }
    nasty = html.escape(NASTY)  # tags are taken out of texts, and then entities decoded
    items.with_columns(pl.lit(nasty).alias("title")).write_parquet(copied.dataset / "items.parquet")
    for name, folder in RUNGS.items():  # as if they had been judged with these texts
        kept[name].rename(judgement_file(copied.root / folder, copied.dataset, copied.judgements))
    page, markdown = (path.read_text(encoding="utf-8") for path in make_report(copied.root))
    worst = comparison(read_build(copied.root))
    assert worst
    assert worst.worst, "a cut model ranks some request worse"
    assert "img" not in {tag for tag, _ in Outline(page).elements}
    assert "&lt;img src=x onerror=alert(1)&gt; &amp; | **bold**" in page
    assert "<img src=x onerror=alert(1)> & | **bold** [link](http://example.com/)" in Outline(page).text
    assert "<img" not in markdown
    assert "\n# title" not in markdown
    assert r"&lt;img src=x onerror=alert\(1\)&gt; &amp; \| \*\*bold\*\* \[link\]\(http:&#47;&#47;example" in markdown
    tables = [line for line in markdown.splitlines() if line.startswith("|") and "img" in line]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} == {4}


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain, words: 1.5", "plain, words: 1.5"),
        ("a|b\nc", r"a\|b c"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("*x* _y_ `z` \\", r"\*x\* \_y\_ \`z\` \\"),
        ("[a](http://b)", r"\[a\]\(http:&#47;&#47;b\)"),
    ],
)
def test_markdown_shows_text_as_it_is(text: str, escaped: str) -> None:
    assert escape_markdown(text) == escaped


# The ladder and the gates


def test_every_rung_is_there_with_its_own_figures(pruned: Workspace, pages: tuple[str, str]) -> None:
    rows = {row.name: row for row in ladder(read_build(pruned.root))}
    told = {row["name"]: row for row in json.loads((pruned.summary / SUMMARY_FILE).read_text())["rows"]}
    assert list(rows) == list(RUNGS)
    judged = {n: judge_artifact(n, pruned.root / f, pruned.dataset, pruned.judgements) for n, f in RUNGS.items()}
    for name, row in rows.items():
        assert row.ndcg == judged[name].interval()
        assert row.difference == paired_difference(judged[name], judged["fine-tuned"])
        assert row.parameters == told[name]["parameters"]
        assert row.gflop == told[name]["gflop_per_request"]
        assert row.size_bytes == pytest.approx(told[name]["megabytes"] * 1e6)
        assert row.milliseconds == told[name]["milliseconds_per_100"]
        assert row.latency_ratio == told[name]["latency_ratio"]["median"]
        assert row.artifact == read_manifest(pruned.root / RUNGS[name]).artifact
        for page in (Outline(pages[0]).text, pages[1].replace("\\", "")):
            assert name in page
            assert f"[{row.ndcg.low:.3f}, {row.ndcg.high:.3f}]" in page
    assert rows["student"].gflop_ratio == pytest.approx(rows["student"].gflop / rows["fine-tuned"].gflop)
    assert [row.name for row in rows.values() if row.is_served] == ["INT8"]
    for name in ("random", "popularity", "item kNN", "zero-shot cosine", "untrained"):
        assert name in Outline(pages[0]).text


def test_the_latency_ratio_is_the_median_over_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the ratio of medians: here every request of the fast one takes half as long as the same of the slow one."""
    clock = [0.0]

    class Timed:
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def score(self, request: Request) -> None:
            clock[0] += self.factor * len(request.items)

    monkeypatch.setattr(summary.time, "perf_counter", lambda: clock[0])
    requests = [Request("", [], ["item"] * count) for count in (1, 7, 3, 100, 20)]
    found = summary.latencies({"slow": Timed(2.0), "fast": Timed(1.0)}, requests, "slow")
    assert found["fast"] == {"milliseconds_per_100": 7_000, "latency_ratio": {"median": 0.5, "low": 0.5, "high": 0.5}}
    assert found["slow"]["latency_ratio"]["median"] == 1


def test_every_gate_is_there_in_plain_words(pruned: Workspace, pages: tuple[str, str]) -> None:
    verdicts = [
        verdict
        for folder in RUNGS.values()
        for name, verdict in read_manifest(pruned.root / folder).metrics.items()
        if name.startswith("gate against ")
    ]
    assert [(v["child"], v["parent"]) for v in verdicts] == [
        ("pruned", "fine-tuned"),
        ("student", "pruned"),
        ("student", "fine-tuned"),
        ("INT8", "ONNX FP32"),
        ("INT8", "fine-tuned"),
    ]
    text = Outline(pages[0]).text
    for verdict in verdicts:
        assert f"{verdict['child']} against {verdict['parent']}" in text
        assert f"from {verdict['parent_ndcg']:.4f} to {verdict['child_ndcg']:.4f} on {verdict['examples']} req" in text
        assert f"{100 * verdict['budget']:.3g}% was allowed" in text
        assert f"below {verdict['bound']:.2%}" in text


# What was cut, and what INT8 does


def test_what_was_pruned_is_drawn_head_by_head(pruned: Workspace, pages: tuple[str, str]) -> None:
    kept = Kept.load(pruned.pruned)
    (layer,) = kept.layers
    for head in range(4):
        told = f"layer {layer}, head {head}: {'kept' if head in kept.heads[0] else 'removed'}"
        assert told in pages[0]
    assert f"layer {1 - layer}, head 0: removed" in pages[0]
    assert f"layer {layer}: 64 of 128 neurons kept" in pages[0]
    assert f"layer {1 - layer}: 0 of 128 neurons kept" in pages[0]
    assert f"Of 30,522 tokens {len(kept.tokens):,} stay" in pages[0]
    assert f"| {layer} | {kept.heads[0][0]}, {kept.heads[0][1]} | 64 |" in pages[1]
    for criteria, value in read_manifest(pruned.pruned).metrics["validation ndcg@10 by criteria"].items():
        assert f"{criteria}: {value:.3f}" in Outline(pages[0]).text


def test_a_strip_is_as_full_as_neurons_stayed() -> None:
    plot = kept_matrix([LayerParts(0, [0], list(range(48)))], heads=1, neurons=96)
    heights = [float(height) for height in re.findall(r'class="fill3".*?height="([\d.]+)"', plot)]
    assert heights == [14.0] * 24  # 48 cells of two neurons each; the first half stayed whole
    plot = kept_matrix([LayerParts(0, [0], list(range(0, 96, 2)))], heads=1, neurons=96)
    assert re.findall(r'class="fill3".*?height="([\d.]+)"', plot) == ["7.00"] * 48


def test_the_noise_of_each_layer_is_that_of_the_layer_alone(
    pruned: Workspace, pages: tuple[str, str], tiny_recipe: Recipe, tmp_path: Path
) -> None:
    record = CalibrationRecord.load(pruned.int8)
    assert record is not None
    metrics = read_manifest(pruned.int8).metrics
    assert set(record.noise.by_layer) == {*metrics["int8_nodes"], *metrics["fp32_nodes"]}
    assert metrics["fp32_nodes"], "the limit was set so that something has to stay in FP32"
    assert record.noise.final <= record.noise.limit < record.noise.all_layers
    loudest = max(record.noise.by_layer, key=lambda node: record.noise.by_layer[node])
    others = [re.escape(node) + "$" for node in record.noise.by_layer if node != loudest]
    settings = tiny_recipe.quantize.model_copy(update={"exclude": others})
    requests = calibration_requests(tiny_recipe, Dataset.read(pruned.dataset), TextRules.load(pruned.onnx))
    quantize_graphs(pruned.onnx, tmp_path, requests, settings)
    tokenizer = RequestTokenizer.from_folder(pruned.onnx)
    _, kept_aside = split_for_noise([tensors_of(request, tokenizer) for request in requests])
    alone = NoiseMeter(pruned.onnx, kept_aside).roughly(tmp_path)
    assert record.noise.by_layer[loudest] == pytest.approx(alone, rel=1e-3)
    for node, value in record.noise.by_layer.items():
        assert f"{layer_name(node)}: {figure(value)}" in pages[0]


def test_activations_are_recorded_as_the_graph_sees_them(
    pruned: Workspace, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    """Without SmoothQuant the quantized activations are tensors of the FP32 graph: each is looked up there."""
    requests = calibration_requests(tiny_recipe, Dataset.read(pruned.dataset), TextRules.load(pruned.onnx))
    quantize_graphs(pruned.onnx, tmp_path, requests, tiny_recipe.quantize, smooths=False)
    record = CalibrationRecord.load(tmp_path)
    assert record is not None
    assert {activation.graph for activation in record.activations} == {CONTEXT_FILE, CANDIDATES_FILE}
    assert [a.bulk_steps for a in record.activations] == sorted(a.bulk_steps for a in record.activations)
    tokenizer = RequestTokenizer.from_folder(pruned.onnx)
    fitted, _ = split_for_noise([tensors_of(request, tokenizer) for request in requests])
    feeds = graph_feeds(pruned.onnx, fitted)
    for activation in record.activations:
        source = pruned.onnx / activation.graph
        model = onnx.load(source)
        (name,) = {node.input[0] for node in model.graph.node if node.name in activation.layers}
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        onnx.save(model, tmp_path / "watched.onnx")
        session = open_session(tmp_path / "watched.onnx")
        values = np.concatenate([session.run([name], feed)[0].ravel() for feed in feeds[source]])
        assert (activation.smallest, activation.largest) == pytest.approx((values.min(), values.max()), rel=1e-4)
        step = (activation.high - activation.low) / 255
        inner = np.quantile(values, [0.0005, 0.9995])
        assert activation.bulk_steps == pytest.approx(
            (inner[1] - inner[0]) / step + 1, abs=3
        )  # whole steps, at both ends
        assert sum(activation.counts) == values.size
        assert activation.clipped_share <= 1e-3  # min-max: what was seen is covered, but for rounding at the ends


def test_steps_are_counted_from_the_first_to_the_last_of_the_bulk() -> None:
    counts = np.zeros(256, dtype=np.int64)
    counts[100:110] = 1_000
    assert bulk_steps(counts) == 10
    counts[255] = 1  # one outlier in 10,001
    assert bulk_steps(counts) == 10
    counts[255] = 100
    assert bulk_steps(counts) == 156


@pytest.mark.parametrize(
    ("node", "name"),
    [
        ("/key/MatMul", "L0 key"),
        ("/ffn_out_5/MatMul", "L5 ffn out"),
        ("/attention_out_11/MatMul", "L11 attention out"),
        ("/bert/encoder/layer.3/attention/self/query/MatMul", "L3 attention query"),
        ("/roberta/encoder/layer.0/output/dense/MatMul", "L0 output"),
        ("/distilbert/transformer/layer.2/ffn/lin1/MatMul", "L2 ffn lin1"),
        ("MatMul_17", "MatMul_17"),
    ],
)
def test_layers_are_named_as_people_say(node: str, name: str) -> None:
    assert layer_name(node) == name


# The worst requests


def test_the_worst_requests_show_what_both_rankers_put_on_top(pruned: Workspace, pages: tuple[str, str]) -> None:
    found = comparison(read_build(pruned.root))
    assert found is not None
    dataset, rules = Dataset.read(pruned.dataset), TextRules.load(pruned.teacher)
    requests = dict(zip((e.example_id for e in dataset.test), requests_of(dataset, dataset.test, rules), strict=True))
    examples = {example.example_id: example for example in dataset.test}
    tables = {
        name: judge_artifact(name, folder, pruned.dataset, pruned.judgements).table.rows_by_key(
            "example_id", named=True, unique=True
        )
        for name, folder in (("fine-tuned", pruned.teacher), ("INT8", pruned.int8))
    }
    losses = sorted(tables["INT8"][name]["ndcg@10"] - tables["fine-tuned"][name]["ndcg@10"] for name in requests)
    assert (found.worse, found.better) == (sum(one < 0 for one in losses), sum(one > 0 for one in losses))
    assert found.requests == len(dataset.test)
    assert [one.child_ndcg - one.teacher_ndcg for one in found.worst] == pytest.approx(losses[: len(found.worst)])
    assert len(found.worst) == min(10, found.worse) > 0
    for one in found.worst:
        example, request = examples[one.example_id], requests[one.example_id]
        ranked = {}
        for name, table in tables.items():
            scores = table[one.example_id]["scores"]
            ranked[name] = sorted(range(30), key=lambda item, scores=scores: (-scores[item], item))
        for name, other, shown in (("fine-tuned", "INT8", one.teacher_top), ("INT8", "fine-tuned", one.child_top)):
            assert [item.text for item in shown] == [request.items[item] for item in ranked[name][:10]]
            assert [item.rank for item in shown] == list(range(1, 11))
            assert [item.other_rank for item in shown] == [ranked[other].index(item) + 1 for item in ranked[name][:10]]
            assert [item.is_liked for item in shown] == [bool(example.labels[item]) for item in ranked[name][:10]]
        (liked,) = [item for item, label in zip(example.candidates, example.labels, strict=True) if label]
        assert [item.text for item in one.liked] == [render_fields(rules.item_template, dataset.items[liked])]
        first = [f"{item.text} {'★' if item.is_liked else ''}".strip() for item in one.child_top[:2]]
        assert all(text in Outline(pages[0]).text for text in first)


# Builds that are not as they should be


def test_without_a_summary_the_error_names_the_command(
    copied: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.rmtree(copied.summary)
    assert command_line(monkeypatch, "report", copied.root) == 2
    told = capsys.readouterr().err
    assert "ArtifactError" in told
    assert f"{copied.root}: a build that is not finished" in told
    assert "summary (summarize)" in told
    assert "tritonrank build RECIPE" in told
    assert not (copied.root / "report.html").exists()
    assert command_line(monkeypatch, "report", tmp_path / "nowhere") == 2
    assert "no such file or folder" in capsys.readouterr().err


def test_the_command_writes_both_files_and_says_where(
    copied: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line(monkeypatch, "report", copied.root) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {"html": str(copied.root / "report.html"), "markdown": str(copied.root / "report.md")}
    assert Path(last["html"]).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert Path(last["markdown"]).read_text(encoding="utf-8").startswith("# tiny: ")
    assert list(copied.root.glob("*.tmp")) == []


def test_a_page_that_cannot_be_written_is_an_error(copied: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"an HTML page; name it so: --out .*report\.html"):
        make_report(copied.root, tmp_path / "report.pdf")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match=r"cannot be written.*--out FILE\.html"):
        make_report(copied.root, tmp_path / "file" / "page.html")


def test_a_ranker_that_loses_to_a_free_baseline_is_no_success_story(copied: Workspace) -> None:
    """The tiny one does lose, to item kNN."""
    told = json.loads((copied.summary / SUMMARY_FILE).read_text())
    page, markdown = make_report(copied.root)
    (defeat,) = re.findall(r'<div class="answer bad">(.*?)</div>', page.read_text(encoding="utf-8"), re.DOTALL)
    lost = told["verdict"]["loses_to"][0]
    for said in (defeat, markdown.read_text(encoding="utf-8").replace("\\", "")):
        assert f"{lost['name']} (NDCG@10 higher by {lost['difference']:.3f}" in said
        assert all(step in html.unescape(said) for step in told["verdict"]["next"])
    told["verdict"] |= {"success": True, "loses_to": [], "next": []}
    (copied.summary / SUMMARY_FILE).write_text(json.dumps(told))
    assert "answer bad" not in make_report(copied.root)[0].read_text(encoding="utf-8")


def test_what_the_model_reads_is_told_with_figures_of_prepare(workspace: Workspace, tmp_path: Path) -> None:
    counts = read_manifest(workspace.dataset).metrics["text"]
    page, markdown = make_report(workspace.root, tmp_path / "page.html")
    text = Outline(page.read_text(encoding="utf-8")).text
    for said in (text, markdown.read_text(encoding="utf-8").replace("\\", "")):
        assert "What the model reads" in said
        assert f"{counts['items']['cut_share']:.1%} cut" in said
        assert f"{counts['history']['read']:.1f} of {counts['history']['wanted']:.1f} items fit" in said
    table = page.read_text(encoding="utf-8").partition(">What the model reads</h2>")[0]
    for baseline in ("popularity", "item kNN", "zero-shot cosine"):
        assert baseline in table  # with its figures, beside the rungs


def test_stages_that_are_missing_are_left_out(copied: Workspace) -> None:
    for folder in (copied.int8, copied.repository):
        shutil.rmtree(folder)
    page, _ = make_report(copied.root)
    outline = Outline(page.read_text(encoding="utf-8"))
    assert [row.name for row in ladder(read_build(copied.root))] == ["fine-tuned", "pruned", "student", "ONNX FP32"]
    assert "ONNX FP32 is served" in outline.text
    assert "layers and activations" not in outline.text
    assert "rebuilt after the last summary" in outline.text


def test_precisions_of_tensorrt_join_the_ladder(copied: Workspace) -> None:
    """With the graph in signed INT8, whose ranges are in its manifest, and a plan, of which only the size is known."""

    def as_tensorrt(manifest: dict[str, Any]) -> None:
        manifest["artifact"], manifest["created"] = "e" * 64, "2100-01-01T00:00:00Z"
        seen = {"range": 2.0, "largest": 4.0, "counts": [999, *[0] * 62, 1]}
        manifest["metrics"]["activations"] = {"/ffn_norm/Add_output_0": seen}

    shutil.copytree(copied.int8, copied.root / "int8-tensorrt")
    (copied.root / "int8-tensorrt" / "calibration.json").unlink()
    changed(copied.root / "int8-tensorrt", as_tensorrt)
    graph = {"graph": read_manifest(copied.root / "int8-tensorrt")}
    for precision, names in (
        ("int8", ["model.plan"]),
        ("int8-tp2", ["model.plan", "model.plan.rank0", "model.plan.rank1"]),
    ):
        with write_artifact(copied.plans / precision, "compile", {}, graph) as draft:
            for name in names:
                (draft.folder / name).write_bytes((b"1" if name.endswith("1") else b"0") * 2_500_000)
    with write_artifact(
        copied.root / "repository-tensorrt", "assemble", {}, {"model": read_manifest(copied.plans / "int8")}
    ):
        pass
    build = read_build(copied.root)
    rows = ladder(build)
    assert build.warnings == []
    assert [row.name for row in rows] == [*RUNGS, "INT8 (TensorRT)", "plan int8", "plan int8-tp2"]
    assert rows[-3].ndcg == rows[-4].ndcg  # the same graph, judged already
    assert rows[-3].milliseconds is None
    assert rows[-3].parameters == rows[-4].parameters
    assert [(row.size_bytes, row.ndcg) for row in rows[-2:]] == [(2_500_000, None), (5_000_000, None)]
    text = Outline(make_report(copied.root)[0].read_text(encoding="utf-8")).text
    assert "INT8 (TensorRT): layers and activations" in text
    assert "4 of 127 steps hold 99.9% of the values; seen -4 to 4" in text  # 1/64 of 4.0 is 1/32 of the range


def test_a_ranker_that_is_not_pruned_has_no_such_section(workspace: Workspace, tmp_path: Path) -> None:
    page, markdown = make_report(workspace.root, tmp_path / "page.html")
    text = Outline(page.read_text(encoding="utf-8")).text
    assert "What was pruned where" not in text
    assert "so that single layers were not measured" in text  # noise: 1000
    assert "pruned" not in markdown.read_text(encoding="utf-8")


def test_what_was_rebuilt_since_has_no_latency(copied: Workspace) -> None:
    """Its own quality is known from the gate; the summary's latency is of something else."""
    changed(copied.int8, lambda manifest: manifest.update(artifact="f" * 64))
    rows = {row.name: row for row in ladder(read_build(copied.root))}
    assert rows["INT8"].milliseconds is None
    assert rows["INT8"].latency_ratio is None
    assert rows["INT8"].ndcg is not None
    assert rows["INT8"].parameters == rows["ONNX FP32"].parameters
    assert rows["ONNX FP32"].milliseconds is not None


def test_what_was_pruned_anew_has_no_counts_of_another_model(copied: Workspace) -> None:
    """Neither those of its last summary nor those of the unpruned graph, which is left out."""
    changed(copied.pruned, lambda manifest: manifest.update(artifact="f" * 64))
    build = read_build(copied.root)
    rows = {row.name: row for row in ladder(build)}
    assert list(rows) == ["fine-tuned", "pruned"]
    assert rows["fine-tuned"].parameters
    assert (rows["pruned"].parameters, rows["pruned"].gflop) == (None, None)


def test_artifacts_of_another_teacher_are_left_out(copied: Workspace) -> None:
    changed(copied.teacher, lambda manifest: manifest.update(artifact="f" * 64))
    build = read_build(copied.root)
    assert list(build.rungs()) == ["fine-tuned"]
    for name, parent in [("pruned", "teacher"), ("student", "teacher"), ("onnx", "checkpoint"), ("int8", "onnx")]:
        assert any(f"{name} was made from another" in warning and parent in warning for warning in build.warnings)


def test_a_build_from_before_the_records_has_a_page(copied: Workspace) -> None:
    """No calibration record, no ratio of latencies, no machine, no Kendall's tau."""
    (copied.int8 / "calibration.json").unlink()
    told = json.loads((copied.summary / SUMMARY_FILE).read_text())
    for key in ("machine", "command", "timed_requests"):
        del told[key]
    for row in told["rows"]:
        row.pop("latency_ratio", None)
    (copied.summary / SUMMARY_FILE).write_text(json.dumps(told))
    for folder in RUNGS.values():
        changed(copied.root / folder, without_later_records)
    text = Outline(make_report(copied.root)[0].read_text(encoding="utf-8")).text
    assert "that of the medians, because this build did not record it" in text
    assert "did not record the noise of single layers" in text
    assert "Kendall" not in text


@pytest.mark.parametrize("contents", ["half a fil", "{}", '{"rows": [1]}'])
def test_a_damaged_summary_is_an_error(contents: str, copied: Workspace) -> None:
    (copied.summary / SUMMARY_FILE).write_text(contents)
    with pytest.raises(ArtifactError, match=r"summary\.json: damaged .*tritonrank build"):
        make_report(copied.root)


def test_a_damaged_calibration_record_is_an_error(copied: Workspace) -> None:
    (copied.int8 / "calibration.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"calibration\.json: damaged .*tritonrank build"):
        make_report(copied.root)


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite an artifact's manifest."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def without_later_records(manifest: dict[str, Any]) -> None:
    for verdict in manifest["metrics"].values():
        if isinstance(verdict, dict):
            verdict.pop("kendall_tau", None)
            verdict.pop("worst_requests", None)


def test_the_choice_of_an_engine_is_shown_with_its_figures(pruned: Workspace, tmp_path: Path) -> None:
    copied = shutil.copytree(pruned.root, tmp_path / "tiny")
    assert "What computes" not in make_report(copied)[0].read_text(encoding="utf-8")
    measured = {"roof_share": 0.5, "precision": "INT8", "gflops": 1.0}
    rows = [
        measured | {"name": "ONNX Runtime, INT8", "executor": "onnxruntime", "milliseconds": 14.25, "ndcg@10": None}
        | {"ratio": {"median": 1.0, "low": 1.0, "high": 1.0}, "passed": None},
        measured | {"name": "native INT8", "executor": "native", "milliseconds": 7.5, "ndcg@10": 0.321}
        | {"ratio": {"median": 0.53, "low": 0.5, "high": 0.56}, "passed": True},
    ]  # fmt: skip
    told = {"chosen": "native INT8", "executor": "native", "processor": "<Some> CPU", "cores": 2, "flags": ["avx2"]}
    told |= {"timed_requests": 12, "candidates": 100, "notes": ["A note."], "rows": rows}
    (copied / "engine").mkdir()
    (copied / "engine" / "engine.json").write_text(json.dumps(told), encoding="utf-8")
    page, text = (path.read_text(encoding="utf-8") for path in make_report(copied))
    for said in ("What computes", "14.2", "0.53 ", "A note.", "0.321", "passed"):
        assert said in page
        assert said in text
    assert "&lt;Some&gt; CPU" in page
    (copied / "engine" / "engine.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"engine\.json: damaged.*tritonrank build RECIPE"):
        make_report(copied)
