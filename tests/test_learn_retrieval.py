"""Nights of a recipe that finds items, too: a new catalogue and blend are published with the ranker, or nothing is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from learning_shop import learning_recipe, likes_of, own_copy, write_hours
from tritonrank.artifacts import read_manifest, verify_artifact
from tritonrank.artifacts.builds import find_build, recorded_builds, served_name
from tritonrank.artifacts.promotions import promote
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.errors import GateError
from tritonrank.learn import compress
from tritonrank.learn.ledger import Ledger, Night
from tritonrank.learn.night import run_night
from tritonrank.learn.steps import ALL
from tritonrank.pipeline.stages import run_stages
from tritonrank_recommend.blend import open_blend
from tritonrank_recommend.catalogue import open_catalogue
from tritonrank_recommend.catalogue.interface import Liked, Wish

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]

CONTROLLER = "http://127.0.0.1:9"
FINDING = ("retrieval={}", "blend.method=linear", "learn.release=promote")
ENCODER, COUNTED = "vectors.npy", "popularity.npy"


@dataclass(frozen=True)
class Shop:
    """A build that finds items and is served, and a log of what happened since."""

    own: Workspace
    base: Path
    log: Path
    now: float

    def night(self, *overrides: str) -> Night:
        recipe = learning_recipe(self.base, self.log, *FINDING, *overrides)
        return run_night(recipe, self.own, ALL, controller=CONTROLLER, now=self.now)

    def served(self) -> Path:
        """The folder of what is served."""
        name = served_name(self.own.root)
        assert name is not None
        return find_build(self.own.root, name).folder


@pytest.fixture(scope="module")
def shop(workspace: Workspace, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    root = tmp_path_factory.mktemp("finding")
    own, log = own_copy(workspace, root / "tiny"), root / "log"
    run_stages(learning_recipe(tiny_base, log, *FINDING), own)
    promote(own.root, recorded_builds(own.root)[-1].name)
    return Shop(own, tiny_base, log, write_hours(workspace, log, 12) + 300)


def hashes(folder: Path) -> Mapping[str, str]:
    return verify_artifact(folder).files


def changed(before: Path, after: Path) -> set[str]:
    """Names of the files that differ."""
    old, new = hashes(before), hashes(after)
    return {name for name in {*old, *new} if old.get(name) != new.get(name)}


def popularity(catalogue: Path) -> Any:
    counted = np.load(catalogue / COUNTED)
    return counted / counted.sum()


def follows_the_log(shop: Shop, before: Path, night: Night) -> bool:
    """Whether items that were liked in the hours that were learnt became more popular."""
    after = Ledger(shop.own.root).workspace_of(night)
    learnt = Dataset.read(after.dataset).training_events.filter(pl.col("label") > 0)
    base = Dataset.read(shop.own.dataset).training_events.filter(pl.col("label") > 0)
    ids = list(Dataset.read(after.dataset).items)
    new, old = (dict(one.group_by("item_id").len().iter_rows()) for one in (learnt, base))
    more = [new.get(item, 0) - old.get(item, 0) for item in ids]
    assert sum(more) > 0, "the log has likes to learn"
    return bool(np.corrcoef(more, popularity(after.catalogue) - popularity(before))[0, 1] > 0.5)


def test_nights_publish_what_finds_items_anew_or_leave_it_alone(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    before, builds = shop.served(), len(recorded_builds(shop.own.root))
    live = {name: hashes(before / name) for name in ("catalogue", "blend", "repository")}

    def refuses(*_: Any) -> Any:
        raise GateError("the blend is worse than the ranker alone")

    with monkeypatch.context() as patch:
        patch.setattr(compress, "record", refuses)  # after all stages: everything is made, and nothing is published
        refused = shop.night()
    assert (refused.outcome, refused.reason) == ("refused", "build: the blend is worse than the ranker alone")
    made = Ledger(shop.own.root).workspace_of(refused)
    assert shop.served() == before
    assert len(recorded_builds(shop.own.root)) == builds
    assert {name: hashes(before / name) for name in live} == live, "what serves is as it was, to the byte"

    # By default the encoder stays: items are where they were, and only what is counted is new.
    assert read_manifest(made.retriever).artifact == read_manifest(shop.own.retriever).artifact
    differs = changed(before / "catalogue", made.catalogue)
    assert {COUNTED, "popular_order.npy"} <= differs
    assert any(name.startswith("knn.") for name in differs), "items that were liked together"
    assert not {ENCODER, "items.db"} & differs
    assert not any(name.startswith("encoder/") for name in differs)
    assert follows_the_log(shop, before / "catalogue", refused)

    accepted = shop.night("learn.retriever=anew")
    assert (accepted.outcome, accepted.decision) == ("accepted", "live"), accepted.reason
    assert accepted.parent == "", "it starts where the refused one started"
    after = shop.served()
    assert after.name == accepted.told("build")["build"]
    assert ENCODER in changed(before / "catalogue", after / "catalogue"), "items lie elsewhere"
    assert COUNTED in changed(before / "catalogue", after / "catalogue")
    assert hashes(after / "blend") != live["blend"]
    assert follows_the_log(shop, before / "catalogue", accepted)
    assert hashes(before / "catalogue") == live["catalogue"], "the way back is whole"
    can_be_handed_to_a_gateway(shop, after)


def can_be_handed_to_a_gateway(shop: Shop, served: Path) -> None:
    """Catalogue and blend open as a gateway opens them, and fit each other: its features are found."""
    catalogue = open_catalogue(served / "catalogue")
    user, liked = next(iter(likes_of(shop.own).items()))
    found = catalogue.retrieve(Wish(query="", history=[Liked(item) for item in liked], filters={}, size=20))
    assert len(found.ids) == 20
    assert not found.missing, user
    assert catalogue.artifact == read_manifest(served / "catalogue").artifact
    assert "ranker" in open_blend(served / "blend").names
