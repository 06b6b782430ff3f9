"""A promotion that moves the catalogue with the ranker, while visitors look at pages: `tritonrank up` at one URL."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_promote_live import TwoBuilds, artifact_of, two_builds
from tiny_catalogue import ITEMS, tiny_catalogue
from tritonrank.artifacts import MANIFEST, read_manifest, sha256_file, sha256_json
from tritonrank.artifacts.builds import RecordedBuild
from tritonrank.artifacts.promotions import back, promote
from tritonrank.artifacts.workspace import Workspace
from tritonrank.recipe import Recipe

pytestmark = pytest.mark.slow  # servers of its own
PATIENCE_SECONDS = 120.0
VISITORS = 2
ADDED = {"item_id": "added-by-the-build", "title": "Corvid purple kettle", "brand": "Corvid", "price": 9.0}
CHANGED = {"title": "Acme pink lantern", "brand": "Acme", "price": 3.0}


@pytest.fixture(scope="module")
def built(workspace: Workspace, tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> TwoBuilds:
    two = two_builds(workspace, tiny_recipe, tmp_path_factory.mktemp("promoted") / "tiny")
    made = tmp_path_factory.mktemp("catalogues")
    add_catalogue(two.int8, tiny_catalogue(made / "before"))
    add_catalogue(two.fp32, tiny_catalogue(made / "after", [*ITEMS, ADDED]))
    return two


def add_catalogue(build: RecordedBuild, catalogue: Path) -> None:
    """What a recipe with a retrieval section would have recorded beside the repository."""
    shutil.copytree(catalogue, build.folder / "catalogue")
    path = build.folder / MANIFEST
    manifest = json.loads(path.read_text())
    found = [one for one in build.folder.rglob("*") if one.is_file() and one != path]
    manifest["files"] = {one.relative_to(build.folder).as_posix(): sha256_file(one) for one in found}
    manifest["artifact"] = sha256_json(manifest["files"])
    path.write_text(json.dumps(manifest))


@contextmanager
def up(root: Path, folder: Path) -> Iterator[str]:
    """The URL of a gateway in front of what is served of a recipe's folder."""
    log = folder / "up.log"
    command = [sys.executable, "-m", "tritonrank", "up", str(root), "--port", "0"]
    command += ["--store", f"sqlite:{folder}/store.db"]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {"COLUMNS": "200"})
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := re.search(r"(http://127\.0\.0\.1:\d+)/v1/recommend", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield found[1]
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(60)
    assert code == 0, log.read_text()


@dataclass
class Visits:
    """What visitors saw who keep looking."""

    pages: list[tuple[float, str, str]] = field(default_factory=list)
    """when, and by which catalogue and which ranker; "" where the ranker was not heard"""
    failed: list[str] = field(default_factory=list)

    @property
    def last(self) -> tuple[str, str]:
        return self.pages[-1][1:] if self.pages else ("", "")


@contextmanager
def visitors(url: str) -> Iterator[Visits]:
    visits, ended = Visits(), threading.Event()

    def look(name: str) -> None:
        while not ended.is_set():
            try:
                # A connection of its own each time: one that is kept may be closed just when it is used again.
                answer = httpx.post(f"{url}/v1/recommend", json={"user_id": name, "size": 5}, timeout=30)
            except httpx.HTTPError as error:
                visits.failed.append(repr(error))
                continue
            told = answer.json()
            if answer.status_code != 200 or len(told.get("items", ())) != 5:
                visits.failed.append(answer.text)
                continue
            artifacts = told["artifacts"]
            visits.pages.append((time.monotonic(), artifacts.get("catalogue", ""), artifacts.get("ranker", "")))

    threads = [threading.Thread(target=look, args=(f"v{number}",)) for number in range(VISITORS)]
    for thread in threads:
        thread.start()
    try:
        yield visits
    finally:
        ended.set()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)


def wait_for(visits: Visits, artifacts: tuple[str, str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while visits.last != artifacts:
        assert time.monotonic() < deadline, (visits.last, artifacts, visits.failed[-3:])
        time.sleep(0.05)


def recommend(url: str, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{url}/v1/recommend", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def ids(told: dict[str, Any]) -> set[str]:
    return {item["item_id"] for item in told["items"]}


def test_the_catalogue_moves_with_the_ranker_and_every_page_is_shown(built: TwoBuilds, tmp_path: Path) -> None:
    before, after = (
        (read_manifest(one.folder / "catalogue").artifact, artifact_of(one)) for one in (built.int8, built.fp32)
    )
    assert before[0] != after[0]
    with up(built.root, tmp_path) as url, visitors(url) as visits:
        wait_for(visits, before)
        changed = httpx.put(f"{url}/v1/items/pink", json={"fields": CHANGED}, timeout=30)
        assert changed.status_code == 200, changed.text
        whole = ids(recommend(url, size=200))
        assert "pink" in whole
        assert ADDED["item_id"] not in whole
        first = recommend(url, user_id="pager", size=5)

        promote(built.root, "newest")
        wait_for(visits, after)
        whole = ids(recommend(url, size=200))
        assert {"pink", ADDED["item_id"]} <= whole
        second = recommend(url, user_id="pager", size=200, cursor=first["cursor"])
        assert second["page"] == first["page"]
        assert not ids(second) & ids(first)
        assert ADDED["item_id"] not in ids(second), "it is the list from before"

        back(built.root)
        wait_for(visits, before)
        assert ADDED["item_id"] not in ids(recommend(url, size=200))
    assert not visits.failed, visits.failed[:3]
    times = [at for at, *_ in sorted(visits.pages)]
    silence = max(later - earlier for earlier, later in pairwise(times))
    print(f"{len(times)} pages, {sum(not ranker for *_, ranker in visits.pages)} without the ranker, {silence:.1f} s")
    catalogues = [catalogue for _, catalogue, _ in sorted(visits.pages)]
    assert set(catalogues) == {before[0], after[0]}
