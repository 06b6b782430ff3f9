"""The verbs of the model store, as somebody types them."""

import json
from pathlib import Path

import pytest
from made_builds import make_build
from tritonrank import cli
from tritonrank.artifacts.builds import RecordedBuild
from tritonrank.artifacts.store.objects import open_objects
from tritonrank.errors import StoreError
from typer.testing import CliRunner


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, [*map(str, arguments)], env={"COLUMNS": "200", "TERM": "dumb"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TRITONRANK_CACHE", str(tmp_path / "cache"))
    for name in ("TRITONRANK_TRUSTED_KEYS", "TRITONRANK_SIGNING_KEY"):
        monkeypatch.delenv(name, raising=False)
    return str(tmp_path / "store")


def listed(url: str, *options: object) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads(run("store", "list", url, "--json", *options))
    return rows


def test_from_a_build_to_a_folder_elsewhere_and_back_to_an_older_version(url: str, tmp_path: Path) -> None:
    root, key = tmp_path / "artifacts" / "shop", tmp_path / "signer"
    first, second = make_build(root, "a"), make_build(root, "bb")
    assert "TRITONRANK_SIGNING_KEY=" in run("store", "keygen", key)
    said = run("push", root, url, "--sign", f"{key}.key")
    assert f"of       shop, {first}" in said
    run("push", root, url, "--build", "newest", "--tag", "canary", "--tag", "latest", "--sign", f"{key}.key")
    newer, older = listed(url, "--trusted", f"{key}.pub")
    assert (newer["name"], newer["tags"]) == (second, ["canary", "latest"])
    assert (older["name"], older["tags"]) == (first, [])
    assert str(newer["digest"])[:12] in run("store", "list", url)
    target = tmp_path / "served"
    run("pull", url, target, "--trusted", f"{key}.pub")
    assert RecordedBuild(target).manifest.metrics
    assert "nothing" in run("pull", url, target)
    run("store", "tag", url, "latest", str(older["digest"])[:9])  # by nobody
    with pytest.raises(StoreError, match="not signed"):
        run("pull", url, target, "--trusted", f"{key}.pub")
    run("store", "tag", url, "latest", str(older["digest"])[:9], "--sign", f"{key}.key")
    run("pull", url, target, "--trusted", f"{key}.pub")
    assert str(older["digest"])[:12] in run("store", "list", url)
    assert "0 faults" in run("store", "verify", url)
    assert "0 of 2 versions" in run("store", "gc", url, "--dry-run")
    part = next(one for one in open_objects(url).below("parts") if one.size > 1_000)
    open_objects(url).write(part.name, b"!" * part.size)
    assert part.name in run("store", "verify", url, code=1)


def test_what_was_mistyped_says_what_to_type(url: str, tmp_path: Path) -> None:
    root = tmp_path / "artifacts" / "shop"
    make_build(root, "a")
    for command in ("list", "gc"):
        (tmp_path / "store").mkdir(exist_ok=True)
        with pytest.raises(StoreError, match="tritonrank push ARTIFACTS"):
            run("store", command, url)
    with pytest.raises(StoreError, match="names a version"):
        run("push", root, f"{url}@latest")
    with pytest.raises(StoreError, match="name a version"):
        run("push", root, url, "--tag", "deadbeef")
    run("push", root, url)
    with pytest.raises(StoreError, match="tritonrank store list"):
        run("pull", f"{url}@canary", tmp_path / "served")
    with pytest.raises(StoreError, match="not by --build"):
        run("serve", url, "--build", "newest")
