"""The versions of a store for people and for scripts."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tritonrank.artifacts.store.faults import DamagedStoreError, MissingObjectError, UntrustedError
from tritonrank.artifacts.store.index import SHOWN, Index
from tritonrank.artifacts.store.objects import open_objects
from tritonrank.artifacts.store.signing import trust_of

console = Console()


def rows(url: str, trusted: str | None = None) -> list[dict[str, Any]]:
    """Every version, newest first, as JSON has it; what cannot be read or trusted says so in ``fault``.

    Raises:
        StoreError: the store cannot be read, or there is none.
    """
    index = Index(open_objects(url), trust_of(trusted))
    if index.model() is None:
        raise MissingObjectError(f"{url}: no store is there. Make one: tritonrank push ARTIFACTS {url}")
    tags: dict[str, list[str]] = {}
    faults: dict[str, str] = {}
    for tag, found in sorted(index.tags().items()):
        try:
            tags.setdefault(index.move(found.name).version, []).append(tag)
        except (DamagedStoreError, UntrustedError) as error:
            faults[tag] = str(error)
    listed: list[dict[str, Any]] = []
    for one in reversed(index.versions()):
        row: dict[str, Any] = {"digest": one.digest, "tags": tags.get(one.digest, []), "signed_by": list(one.signers)}
        row["pushed"] = one.pushed.strftime("%Y-%m-%dT%H:%M:%SZ")
        try:
            version = index.version(one.digest)
        except (DamagedStoreError, UntrustedError) as error:
            listed.append(row | {"fault": str(error)})
            continue
        row |= {"model": version.model, "name": version.name, "created": version.created}
        listed.append(row | {"files": len(version.files), "bytes": version.size})
    return listed + [{"digest": None, "tags": [tag], "fault": fault} for tag, fault in faults.items()]


def show(url: str, found: list[dict[str, Any]]) -> None:
    """The same as a table."""
    table = Table(box=box.SIMPLE, title=url)
    for heading in ("version", "tags", "name", "MB", "pushed (UTC)", "signed by"):
        table.add_column(heading, no_wrap=heading == "version", overflow="fold")
    for row in found:
        what = row.get("name") or "cannot be used, see below"
        size = f"{row['bytes'] / 1e6:,.1f}" if "bytes" in row else ""
        signers = ", ".join(row.get("signed_by", ())) or "nobody"
        version = (row["digest"] or "")[:SHOWN]
        pushed = row.get("pushed", "")[5:16].replace("T", " ")
        table.add_row(version, ", ".join(row["tags"]), what, size, pushed, signers)
    console.print(table)
    for row in found:
        if "fault" in row:
            console.print(row["fault"], markup=False, highlight=False, soft_wrap=True)
