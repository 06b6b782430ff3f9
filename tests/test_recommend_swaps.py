"""Artifacts that are replaced, damaged or removed while they are served, and changes of items beside them."""

import asyncio
import datetime
import gc
import json
import shutil
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from recommend_stand_ins import StandInRanker
from tiny_catalogue import ITEMS, tiny_catalogue
from tritonrank_gateway.compose import compose_recommender
from tritonrank_gateway.settings import GatewaySettings
from tritonrank_recommend.engine import Recommender
from tritonrank_recommend.engine.artifact_folder import ArtifactFolder
from tritonrank_recommend.engine.memory import set_aside_what_is_open
from tritonrank_recommend.engine.ranker import Scored
from tritonrank_recommend.engine.wire import RecommendAnswer, RecommendRequest
from tritonrank_recommend.stores.interface import ItemChange


class LengthRanker(StandInRanker):
    """Ranks longer texts higher."""

    async def score(self, query: str, history: object, items: list[str], **_: object) -> Scored:  # type: ignore[override]
        return Scored(np.array([len(text) for text in items], np.float32), "ranker-1")


async def until(is_so: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


def ids(answer: RecommendAnswer) -> set[str]:
    return {item.item_id for item in answer.items}


async def test_a_catalogue_that_was_set_aside_from_garbage_collection_is_freed_when_it_is_replaced(
    tmp_path: Path,
) -> None:
    folder = tiny_catalogue(tmp_path / "catalogue")
    async with Recommender.open(catalogue=folder, ranker=LengthRanker()) as recommender:
        before = recommender.parts.catalogue.opened
        assert before is not None
        vars(before)["itself"] = before  # so that only the collector can free it
        gone = weakref.ref(before)
        del before
        set_aside_what_is_open()
        try:
            await asyncio.sleep(1.1)  # a manifest tells whole seconds
            tiny_catalogue(tmp_path / "next", ITEMS[:30])
            shutil.rmtree(folder)
            (tmp_path / "next").rename(folder)
            await until(lambda: gone() is None)
            assert gc.get_freeze_count()
        finally:
            gc.unfreeze()


async def test_the_next_catalogue_takes_over_with_the_changes_that_are_newer_than_it(tmp_path: Path) -> None:
    folder = tiny_catalogue(tmp_path / "catalogue")
    url = f"sqlite:{tmp_path / 'store.db'}"
    everything = RecommendRequest(size=200)
    async with Recommender.open(catalogue=folder, store_url=url, ranker=LengthRanker()) as recommender:
        before = recommender.parts.catalogue.opened
        assert before is not None
        fields = {"title": "Acme pink lantern", "brand": "Acme", "price": 3.0}
        assert await recommender.change_items([ItemChange("item-00", None), ItemChange("pink", fields)])
        shown = ids(await recommender.recommend(everything, seconds=10))
        assert "pink" in shown
        assert "item-00" not in shown
        first = await recommender.recommend(RecommendRequest(size=5), seconds=10)

        await asyncio.sleep(1.1)  # a manifest tells whole seconds
        tiny_catalogue(tmp_path / "next", [*ITEMS[:30], {"item_id": "later", "title": "Corvid green kettle"}])
        shutil.rmtree(folder)
        (tmp_path / "next").rename(folder)
        await until(lambda: recommender.parts.catalogue.opened is not before)
        shown = ids(await recommender.recommend(everything, seconds=10))
        # What the store took before it was built is superseded by it.
        assert {"item-00", "later"} <= shown
        assert not {"pink", "item-33"} & shown
        assert await recommender.change_items([ItemChange("item-01", None)])
        assert "item-01" not in ids(await recommender.recommend(everything, seconds=10))
        # The list of before goes on, with what there still is.
        second = await recommender.recommend(RecommendRequest(size=200, cursor=first.cursor), seconds=10)
        assert second.page == first.page
        assert not ids(second) & (ids(first) | {"later", "item-01", "item-33"})
        assert [item.position for item in second.items] == sorted(item.position for item in second.items)
    async with Recommender.open(catalogue=folder, store_url=url, ranker=LengthRanker()) as restarted:
        shown = ids(await restarted.recommend(everything, seconds=10))
        assert "item-00" in shown
        assert "item-01" not in shown


async def test_what_changed_while_the_next_catalogue_was_made_is_not_lost(tmp_path: Path) -> None:
    """Data are read, items change, then the catalogue of the data as they were is published."""
    folder = tiny_catalogue(tmp_path / "catalogue")
    url = f"sqlite:{tmp_path / 'store.db'}"
    everything = RecommendRequest(size=200)
    fields = {"title": "Acme pink lantern", "brand": "Acme", "price": 3.0}
    async with Recommender.open(catalogue=folder, store_url=url, ranker=LengthRanker()) as recommender:
        before = recommender.parts.catalogue.opened
        await recommender.change_items([ItemChange("item-02", None)])
        data_read = datetime.datetime.now(datetime.UTC)
        await recommender.change_items([ItemChange("item-00", None), ItemChange("pink", fields)])
        await asyncio.sleep(1.1)  # a manifest tells whole seconds of when it was written
        tiny_catalogue(tmp_path / "next", data_read=data_read)
        shutil.rmtree(folder)
        (tmp_path / "next").rename(folder)
        await until(lambda: recommender.parts.catalogue.opened is not before)
        shown = ids(await recommender.recommend(everything, seconds=10))
        assert "pink" in shown
        assert "item-00" not in shown
        assert "item-02" in shown, "it was gone before the data were read that have it again"
    async with Recommender.open(catalogue=folder, store_url=url, ranker=LengthRanker()) as restarted:
        assert "pink" in ids(await restarted.recommend(everything, seconds=10))


def test_a_folder_that_cannot_be_opened_leaves_things_as_they_were(tmp_path: Path) -> None:
    def read(folder: Path) -> str:
        return (folder / "value").read_text()

    folder = ArtifactFolder(tmp_path / "artifact", read, "thing")
    assert (folder.opened, folder.problem) == (None, "missing")
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "manifest.json").write_text('{"created": "2026-01-02T03:04:05+00:00"}')
    assert (folder.look(), folder.problem) == (None, "damaged")
    (tmp_path / "artifact" / "value").write_text("one")
    assert folder.look() is None  # the same artifact is not tried again and again
    (tmp_path / "artifact" / "manifest.json").write_text('{"created": "2026-01-02T03:04:06+00:00"}')
    assert folder.look() == "one"
    assert (folder.problem, folder.data_read) == ("", 1_767_323_046.0)
    folder.opened = "one"
    told = {"created": "2026-01-02T03:04:06Z", "metrics": {"data_read": "2026-01-02T02:04:05.5+00:00", "items": 3}}
    (tmp_path / "artifact" / "manifest.json").write_text(json.dumps(told))
    assert (folder.look(), folder.data_read) == ("one", 1_767_319_445.5)
    (tmp_path / "artifact" / "value").unlink()
    (tmp_path / "artifact" / "manifest.json").write_text('{"created": ""}')
    assert (folder.look(), folder.opened, folder.problem) == (None, "one", "")
    shutil.rmtree(tmp_path / "artifact")
    assert (folder.look(), folder.opened, folder.problem) == (None, "one", "")


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"store": "nothing:here"}, "--store"), ({"rules": "wrong"}, "cap[0].most")],
    ids=["store", "rules"],
)
def test_a_gateway_with_a_wrong_store_or_wrong_rules_does_not_start(
    settings: dict[str, object], named: str, tmp_path: Path
) -> None:
    if "rules" in settings:
        settings = {"rules": tmp_path / "rules.toml"}
        (tmp_path / "rules.toml").write_text("[[cap]]\nfield = 'brand'\nmost = 0\n")
    with pytest.raises(ValueError, match=named.replace("[", r"\[")):
        compose_recommender(GatewaySettings(catalogue=tmp_path, **settings))  # type: ignore[arg-type]
    assert compose_recommender(GatewaySettings()) is None
