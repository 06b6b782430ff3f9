"""What a release is made of: locks hold all that is needed, by hash; bills agree; the wheel is always the same."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from conftest import TESTS
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.supply import bills, locks
from deploy.supply.__main__ import check

ROOT = TESTS.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
}
SOURCES = (
    "pyproject.toml",
    "README.md",
    "LICENSE",
    ".gitignore",
    "build",
    "clients",
    "gateway",
    "model_repository",
    "deploy",
)


@pytest.mark.parametrize("image", locks.IMAGES, ids=lambda image: image.name)
def test_a_lock_holds_what_its_image_asks_for_in_the_versions_of_the_constraints(image: locks.Image) -> None:
    found = {canonicalize_name(one.name): one for one in locks.read(image)}
    asked = [
        *PROJECT["dependencies"],
        *(one for extra in image.extras for one in PROJECT["optional-dependencies"][extra]),
    ]
    for requirement in map(Requirement, asked):
        name = canonicalize_name(requirement.name)
        if not (image.leaves_out_torch and name in locks.FROM_THE_ARGUMENT):
            assert requirement.specifier.contains(found[name].version), name
    for name, one in found.items():
        assert one.sha256
        assert PINS.get(name, one.version) == one.version, f"{name}: type: make locks"


@pytest.mark.parametrize("image", locks.IMAGES, ids=lambda image: image.name)
def test_a_lock_holds_what_its_own_distributions_need(image: locks.Image) -> None:
    """As far as they are installed here: pip with --require-hashes refuses what is not in the lock."""
    found = {canonicalize_name(one.name) for one in locks.read(image)}
    known = {canonicalize_name(one.metadata["Name"]): one for one in metadata.distributions()}
    environment = {"python_version": locks.PYTHON, "python_full_version": f"{locks.PYTHON}.0", "extra": ""}
    looked = 0
    for name in found & set(known):
        for requirement in map(Requirement, known[name].requires or []):
            needed = canonicalize_name(requirement.name)
            from_argument = image.leaves_out_torch and needed in locks.FROM_THE_ARGUMENT
            if (requirement.marker is None or requirement.marker.evaluate(environment)) and not from_argument:
                assert needed in found, f"{name} needs {needed}"
                looked += 1
    assert looked > 10


def test_a_lock_without_hashes_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "FOLDER", tmp_path)
    (tmp_path / "client.txt").write_text("numpy==1.26.4\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"client.txt: 'numpy==1.26.4'.*deploy.supply lock"):
        locks.read(locks.IMAGES[0])


def test_bills_say_what_the_locks_say() -> None:
    assert check() is None


def test_a_bill_that_says_otherwise_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(bills.FOLDER, tmp_path / "sbom")
    monkeypatch.setattr(bills, "FOLDER", tmp_path / "sbom")
    assert check() is None
    bill = tmp_path / "sbom" / "client.cdx.json"
    bill.write_text(bill.read_text(encoding="utf-8").replace("pkg:pypi/numpy@", "pkg:pypi/numpie@"), encoding="utf-8")
    assert "client.cdx.json" in (check() or "")


def test_the_wheel_brings_its_bill_which_is_valid(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = [one for one in archive.namelist() if one.endswith(".dist-info/sboms/tritonrank.cdx.json")]
    text = archive.read(name).decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    told = json.loads(text)
    assert {one["scope"] for one in told["components"]} == {"required", "optional"}
    assert f"tritonrank-{told['metadata']['component']['version']}-" in wheel.name


@pytest.mark.slow
def test_the_wheel_is_the_same_bytes_whenever_and_wherever_it_is_built(wheel: Path, tmp_path: Path) -> None:
    for name in SOURCES:
        source, target = ROOT / name, tmp_path / "sources" / name
        copied = shutil.copytree if source.is_dir() else shutil.copy
        target.parent.mkdir(exist_ok=True)
        copied(source, target)
    for path in (tmp_path / "sources").rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
        path.chmod(0o777 if path.is_dir() else 0o600)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "out")]
    subprocess.run([*command, str(tmp_path / "sources")], capture_output=True, check=True, timeout=120, cwd=tmp_path)
    (again,) = (tmp_path / "out").glob("*.whl")
    first, second = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (wheel, again))
    assert first == second
