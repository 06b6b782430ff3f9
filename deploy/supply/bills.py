"""Bills of materials (CycloneDX 1.6, JSON): what is inside, in the form that scanners and auditors read.

One for each image, of its lock; one for the wheel, of what it may need: the base install is required, each extra is
optional. They hold what Python installs. What the base images bring is in those images' own bills.
"""

import importlib.metadata
import json
import re
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.utils import canonicalize_name

from deploy.supply.locks import IMAGES, ROOT, Locked, read

FOLDER = ROOT / "deploy" / "sbom"
WHEEL = "tritonrank"
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://cyclonedx.org/schema/bom-1.6.schema.json")
LONGEST_LICENSE = 64
"""Characters; some metadata holds the whole text where a name is meant."""


def bills(version: str) -> Mapping[Path, str]:
    """All bills of a version of tritonrank, by their files."""
    base = {one.name for one in read(IMAGES[0])}
    everything = {one.name: one for image in IMAGES for one in read(image)}
    made = {
        FOLDER / f"{WHEEL}.cdx.json": _bill(
            WHEEL, version, ((one, one.name in base) for _, one in sorted(everything.items()))
        )
    }
    for image in IMAGES:
        name = f"{WHEEL}-{image.name}"
        made[FOLDER / f"{image.name}.cdx.json"] = _bill(name, version, ((one, True) for one in read(image)))
    return made


def told_in(bill: str) -> tuple[str, set[tuple[str, str, str]]]:
    """The version that a bill is of, and its components by package URL, version and scope."""
    read = json.loads(bill)
    parts = {(one["purl"], one["version"], one["scope"]) for one in read["components"]}
    return read["metadata"]["component"]["version"], parts


def _bill(name: str, version: str, parts: Iterable[tuple[Locked, bool]]) -> str:
    itself = Component(name=name, version=version, type=ComponentType.APPLICATION, bom_ref=f"{name}@{version}")
    itself.licenses.add(LicenseExpression("Apache-2.0"))
    bom = Bom()
    bom.metadata.component = itself
    components = [_component(one, is_required) for one, is_required in parts]
    bom.components.update(components)
    bom.register_dependency(itself, components)
    told: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    # The same contents give the same bytes: no clock, and a number made of what is inside.
    del told["metadata"]["timestamp"]
    told.pop("serialNumber")
    number = uuid.uuid5(NAMESPACE, json.dumps(told, sort_keys=True))
    return json.dumps({"serialNumber": f"urn:uuid:{number}"} | told, indent=1, sort_keys=True) + "\n"


def _component(one: Locked, is_required: bool) -> Component:
    name = canonicalize_name(one.name)
    part = Component(
        name=name,
        version=one.version,
        type=ComponentType.LIBRARY,
        purl=PackageURL("pypi", name=name, version=one.version),
        bom_ref=f"pkg:pypi/{name}@{one.version}",
        scope=ComponentScope.REQUIRED if is_required else ComponentScope.OPTIONAL,
    )
    if len(one.sha256) == 1:  # of several files, the lock says which there are
        part.hashes.add(HashType(alg=HashAlgorithm.SHA_256, content=one.sha256[0]))
    if said := _license(name, one.version):
        try:
            part.licenses.add(LicenseExpression(canonicalize_license_expression(said)))
        except InvalidLicenseExpression:
            part.licenses.add(DisjunctiveLicense(name=said))
    return part


def _license(name: str, version: str) -> str:
    """As the installed distribution says it; "" where it is not installed in this version, or says nothing short."""
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
    if metadata["Version"].partition("+")[0] != version:
        return ""
    said = next((metadata[name] for name in ("License-Expression", "License") if name in metadata), "")
    if not said or "\n" in said or len(said) > LONGEST_LICENSE:
        classifiers = [
            one for one in metadata.get_all("Classifier") or [] if one.startswith("License :: OSI Approved ::")
        ]
        said = classifiers[0].rpartition(" :: ")[2] if classifiers else ""
    return re.sub(r"\s+", " ", said).strip()
