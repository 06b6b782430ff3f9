"""What ``up`` tells the gateway to recommend with: of the build that is served, whichever that becomes."""

import asyncio
import shutil
from pathlib import Path

import polars as pl
import pytest
from made_builds import make_build
from tritonrank.artifacts.builds import find_build
from tritonrank.artifacts.promotions import promote
from tritonrank.artifacts.workspace import Workspace
from tritonrank.serve.first_history import give_first_history
from tritonrank.serve.recommending import SOMEBODY, Recommending, example_user, has_catalogue
from tritonrank.serve.servable import repository_of
from tritonrank_recommend.stores import open_store
from tritonrank_recommend.stores.interface import Profile


def by_name(flags: list[str]) -> dict[str, str]:
    return dict(zip(flags[::2], flags[1::2], strict=True))


def test_a_build_without_retrieval_only_ranks(tmp_path: Path) -> None:
    root = tmp_path / "shop"
    make_build(root, "a")
    assert not has_catalogue(repository_of(root))
    assert Recommending.of(repository_of(root)).flags(repository_of(root)) == []


def test_catalogue_and_blend_are_those_of_the_served_build(tmp_path: Path) -> None:
    root = tmp_path / "shop"
    first, second = (make_build(root, "a", catalogue=items) for items in ("desks", "desks and lamps"))
    assert first != second, "another catalogue is another build"
    recommends = Recommending.of(repository_of(root))
    assert recommends.root == root, "what users do outlives builds"
    for name, items in ((first, "desks"), (second, "desks and lamps")):
        promote(root, name)
        flags = by_name(recommends.flags(repository_of(root)))
        build = find_build(root, name)
        assert flags["--catalogue"] == str(build.folder / "catalogue")
        assert flags["--blend"] == str(build.folder / "blend")
        assert (Path(flags["--catalogue"]) / "catalogue.json").read_text() == items
        assert flags["--store"] == f"sqlite:{root / 'store' / 'store.db'}"
        assert flags["--events-log"] == str(root / "events")
        assert "--rules" not in flags
        build.verify()
    assert (root / "catalogue" / "catalogue.json").samefile(build.folder / "catalogue" / "catalogue.json")


def test_a_damaged_catalogue_is_not_promoted(tmp_path: Path) -> None:
    root = tmp_path / "shop"
    build = find_build(root, make_build(root, "a", catalogue="desks"))
    (build.folder / "catalogue" / "catalogue.json").write_text("lamps")
    with pytest.raises(Exception, match=r"catalogue\.json"):
        promote(root, build.name)


def test_store_and_rules_can_be_elsewhere(tmp_path: Path) -> None:
    root = tmp_path / "shop"
    make_build(root, "a", catalogue="desks")
    repository = repository_of(root)
    (root / "rules.toml").write_text("")
    assert by_name(Recommending.of(repository).flags(repository))["--rules"] == str(root / "rules.toml")
    other = Recommending.of(repository, "redis://127.0.0.1:6379/0", tmp_path / "mine.toml")
    flags = by_name(other.flags(repository))
    assert flags["--store"] == "redis://127.0.0.1:6379/0"
    assert flags["--rules"] == str(tmp_path / "mine.toml")


def profile_of(store_file: Path, user_id: str, *, erase: bool = False) -> Profile:
    async def read() -> Profile:
        store = open_store(f"sqlite:{store_file}")
        try:
            found = await store.profile(user_id)
            if erase:
                await store.erase_user(user_id)
            return found
        finally:
            await store.close()

    return asyncio.run(read())


def test_the_sample_users_have_a_past_once(workspace: Workspace, tmp_path: Path) -> None:
    root = tmp_path / "tiny"
    shutil.copytree(workspace.dataset, root / "dataset")
    store_file = Recommending(root).store_file
    assert give_first_history(root, store_file) > 1_000
    first = profile_of(store_file, "user-00001", erase=True)
    assert len(first.events) >= 8
    assert {seen.type for seen in first.events} <= {"purchase", "skip"}
    assert [seen.timestamp for seen in first.events] == sorted(seen.timestamp for seen in first.events)
    # At the next start who was erased stays erased.
    assert give_first_history(root, store_file) == 0
    assert profile_of(store_file, "user-00001").events == ()
    # Killed before it was done: what is there already counts once.
    second = profile_of(store_file, "user-00002")
    (store_file.parent / "history.json").unlink()
    give_first_history(root, store_file)
    assert profile_of(store_file, "user-00002") == second


def test_other_data_bring_no_past(tmp_path: Path) -> None:
    assert give_first_history(tmp_path, tmp_path / "store" / "store.db") == 0
    assert not (tmp_path / "store").exists()


def test_a_command_to_try_names_somebody_of_the_data(tmp_path: Path) -> None:
    assert example_user(tmp_path) == SOMEBODY, "there is no dataset"
    (tmp_path / "dataset").mkdir()
    pl.DataFrame({"user_id": ["331", "7"]}).write_parquet(tmp_path / "dataset" / "test.parquet")
    assert example_user(tmp_path) == "331"
    (tmp_path / "dataset" / "test.parquet").write_bytes(b"torn")
    assert example_user(tmp_path) == SOMEBODY
