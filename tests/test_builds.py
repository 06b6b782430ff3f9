"""The history of builds: recorded whole and once, promoted and taken back, removed without harm to what is served."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import TESTS
from made_builds import make_build, make_stages, record_stages
from tritonrank import cli
from tritonrank.artifacts.builds import find_build, recorded_builds, served_build, served_name
from tritonrank.artifacts.promotions import HISTORY, back, history, promote, prune_builds, served_before
from tritonrank.artifacts.record_builds import current_build
from tritonrank.errors import ArtifactError, StorageError
from tritonrank.report.build_table import against, build_rows, differences, serve_command, served_in_words
from tritonrank.serve.servable import followed_root, repository_of
from typer.testing import CliRunner

DEADLINE_SECONDS = 60


def run(*arguments: object, code: int = 0, columns: int = 160) -> str:
    result = CliRunner().invoke(cli.app, [*map(str, arguments)], env={"COLUMNS": str(columns)})
    if code:
        assert isinstance(result.exception, ArtifactError), result.output
        return str(result.exception)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


def names(root: Path) -> list[str]:
    return [build.name for build in recorded_builds(root)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "artifacts" / "shop"


@pytest.fixture
def three(root: Path) -> list[str]:
    """Three good builds, the first of which is served."""
    return [make_build(root, weights) for weights in ("a", "bb", "ccc")]


# Recorded


def test_the_first_good_build_is_served_and_the_next_stands_beside_it(root: Path) -> None:
    assert served_in_words(root) == []
    first = make_build(root, "a")
    assert served_name(root) == first
    assert (root / "served").readlink() == Path("builds", first)
    assert served_in_words(root) == [f"build {first} is the one that is served"]
    assert serve_command(root) == f"tritonrank serve {root}"
    second = make_build(root, "bb", quality=0.6)
    assert names(root) == [first, second]
    assert served_name(root) == first
    said = " ".join(served_in_words(root))
    assert f"tritonrank promote {root} {second}" in said
    assert "+0.200 [+0.200 +0.200]" in said
    assert "better" in said
    assert serve_command(root) == f"tritonrank promote {root} {second} && tritonrank serve {root}"


def test_a_build_that_is_no_success_is_served_only_when_it_is_promoted(root: Path) -> None:
    lost = make_build(root, "a", is_success=False)
    assert served_name(root) is None
    assert f"tritonrank promote {root} {lost}" in served_in_words(root)[0]
    assert repository_of(root) == root / "repository"
    good = make_build(root, "bb")
    assert served_name(root) == good
    promote(root, lost)
    assert repository_of(root) == root / "builds" / lost / "repository"


def test_the_same_build_is_recorded_once(root: Path) -> None:
    make_build(root, "a")
    make_build(root, "bb")
    make_build(root, "a")
    assert len(names(root)) == 2
    again = current_build(root)
    assert again is not None
    assert again.name == names(root)[0]


def test_a_record_is_links_and_stays_as_it_was(root: Path) -> None:
    first = find_build(root, make_build(root, "a"))
    weights = Path("repository", "ranker", "1", "weights.bin")
    assert (first.folder / weights).samefile(root / weights)
    make_build(root, "bb")
    assert (first.folder / weights).read_text() == "a" * 2_000
    assert not (first.folder / weights).samefile(root / weights)
    first.verify()
    assert {path.stem for path in (first.folder / "stages").iterdir()} == {"dataset", "int8", "repository", "summary"}


def test_files_are_copied_where_there_are_no_links(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    build = find_build(root, make_build(root, "a"))
    weights = Path("repository", "ranker", "1", "weights.bin")
    assert not (build.folder / weights).samefile(root / weights)
    build.verify()


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from made_builds import record_stages
    from tritonrank.artifacts import record_builds

    link, calls = os.link, []

    def die_at(source, target):
        calls.append(target)
        if len(calls) == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        link(source, target)

    os.link = die_at
    record_stages(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("links", [1, 4])
def test_a_process_that_is_killed_while_it_records_leaves_no_build(root: Path, links: int) -> None:
    first = make_build(root, "a")
    make_stages(root, "bb")
    program = "\n".join(line.removeprefix("    ") for line in KILLED.splitlines())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    done = subprocess.run([sys.executable, "-c", program, str(root), str(links)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert names(root) == [first]
    assert list((root / "builds").glob("*.tmp"))
    second = record_stages(root)
    assert names(root) == [first, second.name]
    assert not list((root / "builds").glob("*.tmp"))
    second.verify()


def test_a_full_disk_is_one_error_and_leaves_nothing(root: Path) -> None:
    """A limit on the size of files stands for the end of the disk; links need none, the manifest does."""
    first = make_build(root, "a")
    make_stages(root, "bb")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(StorageError, match="builds"):
            record_stages(root)
        (root / "served").unlink()
        with pytest.raises(StorageError, match=HISTORY):  # it has a line already, and no room for another
            promote(root, first)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert names(root) == [first]
    assert len(history(root)) == len((root / "builds" / HISTORY).read_text().splitlines())
    promote(root, first)
    assert served_name(root) == first


# Promoted


def test_promote_and_back_take_steps(root: Path, three: list[str]) -> None:
    first, second, third = three
    assert promote(root, "newest").before == first
    assert promote(root, second).build.name == second
    assert [served_name(root), served_before(root)] == [second, third]
    assert back(root).build.name == third
    assert back(root).build.name == first
    with pytest.raises(ArtifactError, match="tritonrank promote"):
        back(root)
    promote(root, third)
    assert [served_name(root), served_before(root)] == [third, first]
    assert [line["by"] for line in history(root)] == ["build", "promote", "promote", "back", "back", "promote"]
    assert promote(root, third).before == third
    assert len(history(root)) == 6


def test_what_two_promote_at_once_is_one_of_theirs_and_the_history_has_both(root: Path, three: list[str]) -> None:
    start = threading.Barrier(2, timeout=DEADLINE_SECONDS)

    def change(name: str) -> list[bool]:
        start.wait()
        served = []
        for _ in range(20):
            promote(root, name)
            served.append(served_build(root) is not None)
        return served

    with ThreadPoolExecutor(2) as threads:
        served = [*threads.map(change, three[1:], timeout=DEADLINE_SECONDS)]
    assert served == [[True] * 20] * 2
    assert served_name(root) == history(root)[-1]["build"]
    assert set(three[1:]) <= {line["build"] for line in history(root)}
    assert not list(root.glob(".served*"))


def test_two_processes_promote_one_after_the_other(root: Path, three: list[str]) -> None:
    command = [sys.executable, "-m", "tritonrank", "promote", str(root)]
    programs = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in three[1:]]
    for program in programs:
        program.communicate(timeout=DEADLINE_SECONDS)
        assert program.returncode == 0
    assert served_name(root) == history(root)[-1]["build"]
    assert {served_name(root), served_before(root)} == set(three[1:])


def damage(folder: Path) -> None:
    path = folder / "repository" / "ranker" / "1" / "weights.bin"
    content = path.read_text()
    path.unlink()
    path.write_text(content[:-1] + "x")


@pytest.mark.parametrize(
    ("harm", "names_file"),
    [
        (damage, "weights.bin"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json"),
        (lambda folder: (folder / "repository" / "manifest.json").unlink(), "manifest.json"),
        (lambda folder: shutil.rmtree(folder / "summary"), "summary"),
    ],
)
def test_a_damaged_build_is_refused_by_name(
    harm: Callable[[Path], object], names_file: str, root: Path, three: list[str]
) -> None:
    harm(root / "builds" / three[1])
    with pytest.raises(ArtifactError) as caught:
        promote(root, three[1])
    assert three[1] in str(caught.value)
    assert names_file in str(caught.value)
    assert f"tritonrank builds {root}" in str(caught.value)
    assert served_name(root) == three[0]
    assert three[1][-8:] in run("builds", root)


def test_a_history_that_was_cut_off_goes_on(root: Path, three: list[str]) -> None:
    with (root / "builds" / HISTORY).open("a") as file:
        file.write('{"event": "served", "bu')
    promote(root, three[1])
    assert back(root).build.name == three[0]
    assert len(history(root)) == 3


def test_a_promotion_that_died_before_the_link_moved_did_not_happen(root: Path, three: list[str]) -> None:
    promote(root, three[1])
    with (root / "builds" / HISTORY).open("a") as file:
        file.write(json.dumps({"event": "served", "build": three[2], "by": "promote"}) + "\n")
    assert [served_name(root), served_before(root)] == [three[1], three[0]]


@pytest.mark.parametrize("target", ["../elsewhere", "builds/nothing", "builds/20260101T000000Z-00000000"])
def test_a_link_that_leads_astray_is_named_with_the_way_out(target: str, root: Path, three: list[str]) -> None:
    (root / "served").unlink()
    (root / "served").symlink_to(target)
    with pytest.raises(ArtifactError, match="tritonrank promote") as caught:
        repository_of(root)
    assert str(root / "served") in str(caught.value)
    promote(root, three[1])
    assert served_name(root) == three[1]


# Removed


def test_pruning_spares_what_is_served_and_what_was_before(root: Path, three: list[str]) -> None:
    three += [make_build(root, weights) for weights in ("dddd", "eeeee")]
    promote(root, three[1])
    told = prune_builds(root, keep=1, only_look=True)
    assert [build.name for build in told.builds] == [three[2], three[3]]
    assert len(names(root)) == 5
    removed = prune_builds(root, keep=1)
    assert removed.bytes == told.bytes > 0
    assert names(root) == [three[0], three[1], three[4]]
    assert back(root).build.name == three[0]
    assert prune_builds(root, keep=0, older_than_days=1).builds == []
    assert [build.name for build in prune_builds(root, keep=0).builds] == three[1:2] + three[4:]


def test_what_a_build_shares_with_the_stages_frees_nothing(root: Path) -> None:
    make_build(root, "a")
    make_build(root, "b" * 500)
    shared = (root / "repository" / "ranker" / "1" / "weights.bin").stat().st_size
    assert prune_builds(root, keep=0).bytes < shared


def test_a_removal_that_was_cut_off_is_ended(root: Path, three: list[str]) -> None:
    folder = root / "builds" / three[1]
    folder.rename(folder.with_name(f".removed-{three[1]}"))
    prune_builds(root, keep=9)
    assert sorted(path.name for path in (root / "builds").iterdir()) == sorted([HISTORY, three[0], three[2]])


# Looked at


@pytest.mark.parametrize("wanted", ["newest", "served", "whole", "hash", "time"])
def test_a_build_is_found_by_what_people_type(wanted: str, root: Path, three: list[str]) -> None:
    last = three[2]
    promote(root, last)
    (root / "builds" / three[0]).rename(root / "builds" / f"20200101T000000Z-{three[0][-8:]}")
    (root / "builds" / three[1]).rename(root / "builds" / f"20210101T000000Z-{three[1][-8:]}")
    typed = {"whole": last, "hash": last[-8:-2], "time": last[:13]}.get(wanted, wanted)
    assert find_build(root, typed).name == last


@pytest.mark.parametrize("typed", ["", "2", "zzzzzzzz", "20"])
def test_what_is_no_build_is_said_so(typed: str, root: Path, three: list[str]) -> None:
    with pytest.raises(ArtifactError, match="tritonrank builds"):
        find_build(root, typed)


def test_the_beginning_of_several_builds_names_them(root: Path, three: list[str]) -> None:
    with pytest.raises(ArtifactError) as caught:
        find_build(root, three[0][:8])
    assert all(name in str(caught.value) for name in three)


def test_the_table_and_its_json(root: Path, three: list[str]) -> None:
    lost = make_build(root, "dddd", is_success=False, quality=0.2)
    promote(root, three[1])
    shown = run("builds", root)
    row_of = {name: next(line for line in shown.splitlines() if name[-8:] in line).split() for name in three}
    assert [row_of[name][0] for name in three] == ["<", ">", three[2][-8:]]
    assert max(map(len, run("builds", root, columns=80).splitlines()[:5])) <= 80
    assert "+0.000 [+0.000 +0.000]" in run("builds", root, columns=80)
    rows = {row["build"]: row for row in json.loads(run("builds", root, "--json"))}
    assert rows == {row["build"]: row for row in build_rows(root)}
    assert list(rows) == [lost, *reversed(three)]
    assert rows[lost]["success"] is False
    assert rows[lost]["is_current"]
    assert rows[lost]["against_served"]["better"] is False
    assert rows[lost]["against_served"]["difference"] == pytest.approx(-0.2)
    assert rows[three[1]]["against_served"] is None


def test_what_differs_is_settings_data_and_code(root: Path) -> None:
    first, second = make_build(root, "a"), make_build(root, "bb", data="more events")
    found = differences(find_build(root, first), find_build(root, second))
    assert found["settings"] == {"finetune.epochs": [1, 2]}
    assert found["data"]["events"] == [6, 11]
    assert set(found["data"]) == {"events", "sha256.test.parquet"}
    assert found["code"] == {"revision.int8": [1, 2]}
    assert json.loads(run("builds", root, "served", "newest", "--json"))["settings"] == found["settings"]
    shown = run("builds", root, first, second)
    assert "finetune.epochs" in shown
    assert "not judged on the same requests" in shown
    assert against(find_build(root, second), find_build(root, first)) is None


def test_the_folder_may_be_left_out_where_only_one_has_builds(root: Path, three: list[str]) -> None:
    artifacts = root.parent
    assert three[1] in run("promote", three[1], "--artifacts", artifacts)
    assert three[0] in run("back", "--artifacts", artifacts)
    assert f"build {three[2]} is served" in run("promote", root / "builds" / three[2])
    make_build(artifacts / "other", "z")
    assert "other" in run("promote", "--artifacts", artifacts, code=2)
    assert "tritonrank build" in run("builds", "--artifacts", artifacts / "nowhere", code=2)
    assert "no such folder" in run("builds", artifacts / "nowhere", code=2)


def test_what_is_pruned_is_said_with_its_size(root: Path, three: list[str]) -> None:
    assert "would remove" in run("prune-builds", root, "--keep", "1", "--dry-run")
    said = run("prune-builds", root, "--keep", "1")
    assert "1 of 3 builds" in said
    assert "MB" in said


# Served


def test_what_is_served_follows_the_link_unless_a_build_is_named(root: Path, three: list[str]) -> None:
    promote(root, three[1])
    place = root / "builds"
    assert repository_of(root) == repository_of(root / "served") == place / three[1] / "repository"
    assert repository_of(root, "newest") == place / three[2] / "repository"
    assert repository_of(place / three[0]) == place / three[0] / "repository"
    assert repository_of(root / "repository") == root / "repository"
    assert followed_root(root) == followed_root(root / "served") == root
    assert followed_root(root, "newest") is None
    assert followed_root(place / three[0]) is None
    assert followed_root(root / "repository") is None
