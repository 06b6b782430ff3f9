"""The verb ``catalogue``: how long a catalogue of many items takes to build and to search, and how large it is.

Items are generated: titles of words as frequent as in any language, vectors in groups as an encoder's are, people who
like what is popular and what is of one kind. Texts of so many items are not embedded here: a thousand are, and the
hours that all would take are computed from it. A catalogue that was built once is measured again without a build, and
a build that was interrupted goes on from the graph that it had.
"""

import json
import multiprocessing
import resource
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Column, Table
from tritonrank.artifacts import read_manifest, work_folder, write_artifact
from tritonrank.errors import TritonRankError
from tritonrank_recommend.catalogue import open_catalogue
from tritonrank_recommend.catalogue.encoder import EncoderError, QueryEncoder
from tritonrank_recommend.catalogue.interface import SOURCES, Liked, Wish
from tritonrank_recommend.catalogue.opened import OpenCatalogue
from tritonrank_recommend.stores.interface import ItemChange

from loadtests.catalogue_items import TEMPLATE, Shop
from loadtests.console import fail
from loadtests.machine import describe_machine
from loadtests.peers.load import percentile

MOST_BUILD_SECONDS = 1_800.0
MOST_P50_MS = {10_000: 5.0, 1_000_000: 10.0}
"""By catalogues up to so many items, for a history of 20 and a query."""
HISTORY, SIZE = 20, 200
EMBEDDED = 1_000
CHANGES = 1_000
WARM_UP = 20


def catalogue(
    artifacts: Annotated[Path, typer.Argument(help="Of a recipe with a retriever, such as artifacts/demo")],
    items: Annotated[int, typer.Option(min=1_000, help="To generate")] = 10_000,
    requests: Annotated[int, typer.Option(min=20, help="Of each kind")] = 200,
    folder: Annotated[Path | None, typer.Option(help="Of the catalogue; default: below ARTIFACTS")] = None,
    out: Annotated[Path | None, typer.Option(help="A file to which the figures are added, by number of items")] = None,
) -> None:
    """Build a catalogue of generated items and search it. Exits with 1 when it is slower than its goals."""
    place = folder or artifacts / f"catalogue-{items}"
    try:
        encoder = QueryEncoder.open(artifacts / "retriever")
        if not (place / "manifest.json").is_file():
            build(place, items, artifacts / "retriever", encoder)
        built = read_manifest(place)
    except (TritonRankError, EncoderError) as error:
        fail(str(error))
    machine = describe_machine().model_dump()
    with multiprocessing.get_context("spawn").Pool(1) as alone:  # so that memory is that of a reader
        searched = alone.apply(search, (place, requests))
    found = {
        "what": f"python -m loadtests catalogue {artifacts} --items {items}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine,
        "items": items,
        "build": built.metrics,
        "search": searched,
    } | verdict(items, built.metrics, searched)
    show(found)
    if out is not None:
        before = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
        out.write_text(json.dumps(before | {str(items): found}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found))
    sys.exit(0 if found["passed"] else 1)


def build(place: Path, items: int, retriever: Path, encoder: QueryEncoder) -> None:
    """Write the catalogue of a generated shop; its seconds go into its manifest, without those of generating it."""
    from tritonrank.retrieval.catalogue_writer import Contents, write_catalogue

    shop = Shop(items, encoder.dimension)
    frame, texts = shop.items()
    began = time.perf_counter()
    encoder.embed(texts[:EMBEDDED])
    texts_per_second = min(EMBEDDED, items) / (time.perf_counter() - began)
    shutil.rmtree(place.with_name(f"{place.name}.tmp"), ignore_errors=True)
    with write_artifact(place, "catalogue", {"generated": items}, {}) as draft:
        contents = Contents(
            items=frame,
            texts=texts,
            template=TEMPLATE,
            vectors=shop.vectors(),
            encoder=retriever,
            events=shop.events(),
            half_life_days=30.0,
            sources=("two-tower", "lexical", "knn", "ease", "popular", "new", "next"),
        )
        work = work_folder(place) / f"{items}.usearch"
        draft.metrics["went_on_from_an_interrupted_build"] = work.exists()
        began, used = time.perf_counter(), time.process_time()
        draft.metrics |= write_catalogue(contents, draft.folder, work=work)
        draft.metrics |= {
            "seconds": round(time.perf_counter() - began, 1),
            "cpu_seconds": round(time.process_time() - used, 1),
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
            "embedded_per_second_and_core": round(texts_per_second, 1),
            "hours_to_embed_all_on_one_core": round(items / texts_per_second / 3600, 2),
            "bytes_by_kind": sizes_by_kind(draft.folder),
        }


def sizes_by_kind(folder: Path) -> dict[str, int]:
    """Bytes of files that belong together: all of ``knn.*``, all below ``lexical``."""
    found: dict[str, int] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            kind = path.relative_to(folder).parts[0].split(".")[0]
            if path.parent == folder and path.suffix in (".db", ".usearch"):
                kind = path.name
            found[kind] = found.get(kind, 0) + path.stat().st_size
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def search(place: Path, requests: int) -> dict[str, Any]:
    """Milliseconds and CPU milliseconds of searches, and the memory of the process that made them."""
    before = memory_mb()
    began = time.perf_counter()
    opened = open_catalogue(place)
    found: dict[str, Any] = {"open_seconds": round(time.perf_counter() - began, 2)}
    encoder = opened.encoder
    assert encoder is not None, opened.broken
    random = np.random.default_rng(5)
    ids = [f"item-{number}" for number in random.integers(0, len(opened), 20_000)]
    titles = [str(fields["title"]) for fields in opened.fields(ids[:2_000]) if fields]
    words = [" ".join(title.split()[:2]) for title in titles]
    kinds: dict[str, Any] = {
        "history and query": {"query": True},
        "history": {},
        "query": {"query": True, "history": 0},
        "nothing known": {"history": 0},
        "with filter of one category": {"query": True, "filters": {"category": "category-007"}},
        "with filter of a third": {"query": True, "filters": {"price": {"lt": 40.0}}},
    } | {f"source {source}": {"query": source in ("two-tower", "lexical"), "sources": (source,)} for source in SOURCES}
    found["milliseconds"] = {}

    def wish(kind: dict[str, Any], number: int) -> Wish:
        query = words[number % len(words)] if kind.get("query") else ""
        newest = kind.get("history", HISTORY)
        start = number * HISTORY % (len(ids) - HISTORY)
        return Wish(
            query=query,
            history=[Liked(item_id) for item_id in ids[start : start + newest]],
            size=SIZE,
            filters=kind.get("filters", {}),
            sources=kind.get("sources", SOURCES),
        )

    for name, kind in kinds.items():
        for number in range(WARM_UP):
            opened.retrieve(wish(kind, number))
        encoder.embed([wish(kind, number).query for number in range(requests)])  # a known query costs no encoding
        wishes = [wish(kind, number) for number in range(requests)]
        found["milliseconds"][name] = timed(partial(_ask, opened, wishes), requests)
    found["milliseconds"]["similar"] = timed(lambda number: opened.similar(ids[number], 20, {}), requests)
    found["milliseconds"]["fields and texts of 200"] = timed(
        lambda number: (opened.fields(ids[number * 50 :][:SIZE]), opened.texts(ids[number * 50 :][:SIZE])), requests
    )
    fresh = [f"query {number} {words[number]}" for number in range(min(100, requests))]
    found["milliseconds"]["embedding a new query"] = timed(lambda number: encoder.embed([fresh[number]]), len(fresh))
    found["memory_mb"] = {"before": before, "after": memory_mb()}
    changes = [ItemChange(f"new-{n}", {"title": titles[n % len(titles)], "price": float(n)}) for n in range(CHANGES)]
    used = time.thread_time()
    opened.apply(changes)
    found["change_cpu_ms"] = round(1_000 * (time.thread_time() - used) / CHANGES, 3)
    return found


def _ask(opened: OpenCatalogue, wishes: list[Wish], number: int) -> None:
    opened.retrieve(wishes[number])


def timed(ask: Callable[[int], Any], count: int) -> dict[str, float]:
    wall, cpu = [], []
    for number in range(count):
        began, used = time.perf_counter(), time.thread_time()
        ask(number)
        cpu.append(1_000 * (time.thread_time() - used))
        wall.append(1_000 * (time.perf_counter() - began))
    values = {"p50": (wall, 0.5), "p99": (wall, 0.99), "cpu_p50": (cpu, 0.5), "cpu_p99": (cpu, 0.99)}
    return {name: round(percentile(taken, share), 3) for name, (taken, share) in values.items()}


def memory_mb() -> dict[str, float]:
    """What this process has for itself, and what it shares with others that map the same files."""
    memory = psutil.Process().memory_info()
    shared = getattr(memory, "shared", 0)
    return {"own": round((memory.rss - shared) / 1e6, 1), "shared": round(shared / 1e6, 1)}


def verdict(items: int, built: dict[str, Any], searched: dict[str, Any]) -> dict[str, Any]:
    """Whether the goals are met; CPU time, because other work on the machine is not the catalogue's."""
    most = next((goal for most_items, goal in MOST_P50_MS.items() if items <= most_items), None)
    p50 = searched["milliseconds"]["history and query"]["cpu_p50"]
    reasons = []
    if most is not None and p50 > most:
        reasons.append(f"retrieval takes {p50:.1f} ms of a core at p50; the goal is {most:g}")
    if built["seconds"] > MOST_BUILD_SECONDS:
        reasons.append(f"building took {built['seconds']:.0f} s; the goal is {MOST_BUILD_SECONDS:.0f}")
    return {"passed": not reasons, "reasons": reasons}


def show(found: dict[str, Any]) -> None:
    """Two tables for people, on stderr: the last line of stdout is JSON."""
    console = Console(stderr=True)
    built, searched = found["build"], found["search"]
    times = Table(
        Column("request"),
        *(Column(f"{name} ms", justify="right") for name in ("p50", "p99", "CPU p50", "CPU p99")),
        title=f"{found['items']:,} items",
    )
    for name, taken in searched["milliseconds"].items():
        times.add_row(name, *(f"{value:.2f}" for value in taken.values()))
    console.print(times)
    sizes = Table(Column("files"), Column("MB", justify="right"), Column("bytes per item", justify="right"))
    for name, size in built["bytes_by_kind"].items():
        sizes.add_row(name, f"{size / 1e6:,.1f}", f"{size / found['items']:,.0f}")
    console.print(sizes)
    own = searched["memory_mb"]["after"]
    console.print(
        f"built in {built['seconds']:.0f} s ({built['cpu_seconds']:.0f} s of CPU); embedding all texts would take "
        f"{built['hours_to_embed_all_on_one_core']:g} h more on one core\n"
        f"recall of the graph: {built['index'] if isinstance(built['index'], str) else built['index']['recall']}\n"
        f"memory of a reader: {own['own']:.0f} MB of its own, {own['shared']:.0f} MB shared with others\n"
        f"{'passed' if found['passed'] else 'failed: ' + '; '.join(found['reasons'])}",
        highlight=False,
    )
