"""The verbs of the model store: bring an artifact to a URL, fetch it anywhere, and look after what is kept there."""

import json
import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from tritonrank.artifacts.store.signing import SIGNING_KEY, TRUSTED_KEYS
from tritonrank.artifacts.store.urls import LATEST
from tritonrank.cli.options import app
from tritonrank.cli.panels import Panel
from tritonrank.errors import StoreError
from tritonrank.system.literal_help import LiteralGroup

store_app = typer.Typer(
    cls=LiteralGroup,
    no_args_is_help=True,
    help="Look after a model store: list, verify, tag, collect garbage, make keys. docs/store.md tells all of it.",
)
app.add_typer(store_app, name="store", rich_help_panel=Panel.OPERATE)

Url = Annotated[
    str, typer.Argument(metavar="URL", help="s3://bucket/path, gs://, az://, hdfs://, file:// or a folder; one model")
]
Sign = Annotated[
    str | None,
    typer.Option("--sign", metavar="FILE.key", help=f"Private key that signs; default: {SIGNING_KEY}, else unsigned"),
]
Trusted = Annotated[
    str | None,
    typer.Option(
        "--trusted",
        metavar="FILE.pub",
        help=f"Public keys, or folders of them, separated by colons; what none of them signed is refused; default: "
        f"{TRUSTED_KEYS}, else signatures are not looked at",
    ),
]
DEFAULT_TAGS = [LATEST]  # Typer reads it as the default and never changes it
NO_RANKS: list[int] = []
SHOWN = 12


@app.command("push", rich_help_panel=Panel.OPERATE)
def push_command(
    artifacts: Annotated[
        Path,
        typer.Argument(
            metavar="ARTIFACTS", help="artifacts/<recipe> (its served build, else the newest), or one artifact's folder"
        ),
    ],
    url: Url,
    build: Annotated[str | None, typer.Option(metavar="ID", help="This build: an id, the beginning of it, newest")] = (
        None
    ),
    tags: Annotated[
        list[str], typer.Option("--tag", metavar="TAG", help="What leads to it from then on; may be repeated")
    ] = DEFAULT_TAGS,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="What the store calls the model; default: the recipe's name")
    ] = None,
    sign: Sign = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Parts of 64 MB at a time, each in memory")] = 4,
) -> None:
    """Bring an artifact to a store; only parts that are not there travel. Run again after a cut, it goes on.

    For example: tritonrank push artifacts/shop s3://bucket/models/shop --tag canary
    """
    from tritonrank.artifacts.store.index import Index
    from tritonrank.artifacts.store.objects import open_objects
    from tritonrank.artifacts.store.push import artifact_of, describe, push_version
    from tritonrank.artifacts.store.signing import signer_of
    from tritonrank.artifacts.store.transfer import shown_progress

    signer = signer_of(sign)
    _require_no_tag(url)
    folder, name = artifact_of(artifacts, build)
    version = describe(folder, model or name)
    started = time.monotonic()
    with shown_progress(f"push {version.digest[:SHOWN]}", version.size) as advance:
        index = Index(open_objects(url, make=True))
        pushed = push_version(index, folder, version, tags=tags, signer=signer, jobs=jobs, advance=advance)
    seconds = time.monotonic() - started
    there = sum(part.size for part in version.parts.values()) - pushed.bytes
    typer.echo(
        f"version  {version.digest}\nof       {version.model}, {version.name}, {len(version.files)} files, "
        f"{version.size / 1e6:,.1f} MB\nsigned   {f'by {signer.key_id}' if signer else 'by nobody'}\n"
        f"uploaded {pushed.bytes / 1e6:,.1f} MB in {seconds:.1f} s; {there / 1e6:,.1f} MB were there already"
    )
    for move in pushed.moves:
        typer.echo(f"tagged   {move.tag} (move {move.number})")
    typer.echo(f"\nServe it anywhere: tritonrank serve {shlex.quote(f'{url}@{tags[-1]}')}")


@app.command("pull", rich_help_panel=Panel.OPERATE)
def pull_command(
    source: Annotated[
        str, typer.Argument(metavar="URL[@TAG|@DIGEST]", help="What to fetch; without a tag: what is tagged latest")
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Becomes the artifact; what pull put there before")],
    trusted: Trusted = None,
    ranks: Annotated[
        list[int],
        typer.Option("--rank", metavar="N", help="Of tensor parallel: only this rank's shards; may be repeated"),
    ] = NO_RANKS,
    or_keep: Annotated[
        bool, typer.Option("--or-keep", help="Where the store does not answer, keep what an earlier pull put there")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Parts at a time")] = 6,
) -> None:
    """Fetch an artifact from a store, verified part by part. Run again after a cut, it goes on at the byte.

    For example: tritonrank pull s3://bucket/models/shop@latest models/shop
    """
    from tritonrank.artifacts.store.into_folder import pull_into
    from tritonrank.artifacts.store.signing import trust_of

    started = time.monotonic()
    found = pull_into(source, folder, trust=trust_of(trusted), ranks=ranks or None, or_keep=or_keep, jobs=jobs)
    seconds = time.monotonic() - started
    typer.echo(f"version  {found.digest}\nof       {found.version.model}, {found.version.name}\nin       {folder}")
    if found.away:
        typer.echo(f"kept     as it was: {found.away}", err=True)
    elif found.pulled is None:
        typer.echo("nothing  had to be fetched: every file is there as it should be")
    else:
        pulled = found.pulled
        typer.echo(
            f"fetched  {pulled.bytes / 1e6:,.1f} MB in {seconds:.1f} s; {pulled.kept_bytes / 1e6:,.1f} MB were there "
            f"from before, {pulled.copied_bytes / 1e6:,.1f} MB came from other versions on this machine"
        )


@store_app.command("list")
def list_command(
    url: Url, as_json: Annotated[bool, typer.Option("--json", help="For scripts")] = False, trusted: Trusted = None
) -> None:
    """List the versions of a model, newest first: tags, sizes, who signed them."""
    from tritonrank.artifacts.store.listing import rows, show

    _require_no_tag(url)
    found = rows(url, trusted)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        show(url, found)


@store_app.command("verify")
def verify_command(
    url: Url,
    trusted: Trusted = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove damaged parts, so that the next push uploads them again")
    ] = False,
) -> None:
    """Read everything that is kept and compare it with its hash and signature; exit code 1 where something is wrong."""
    from tritonrank.artifacts.store.collect import verify
    from tritonrank.artifacts.store.index import Index
    from tritonrank.artifacts.store.objects import open_objects
    from tritonrank.artifacts.store.signing import trust_of
    from tritonrank.artifacts.store.transfer import shown_progress

    _require_no_tag(url)
    index = Index(open_objects(url), trust_of(trusted))
    total = sum(one.size for one in index.objects.below("parts"))
    with shown_progress("verify", total) as advance:
        found = verify(index, remove=remove, advance=advance)
    for fault in found.faults:
        typer.echo(fault)
    removed = f", {len(found.damaged)} removed" if remove else ""
    typer.echo(
        f"{found.versions} versions, {found.parts} parts, {found.bytes / 1e6:,.1f} MB read: "
        f"{len(found.faults)} faults{removed}"
    )
    if found.faults:
        raise typer.Exit(1)


@store_app.command("tag")
def tag_command(
    url: Url,
    tag: Annotated[str, typer.Argument(metavar="TAG", help="Such as latest, canary or 2026-11-27")],
    version: Annotated[str, typer.Argument(metavar="TAG|DIGEST", help="The version, by another tag or its digest")],
    sign: Sign = None,
    trusted: Trusted = None,
) -> None:
    """Let a tag lead to a version that is in the store; who serves that tag follows.

    For example, back to an older one: tritonrank store tag s3://bucket/models/shop latest 3f9a12bc
    """
    from tritonrank.artifacts.store.index import Index
    from tritonrank.artifacts.store.objects import open_objects
    from tritonrank.artifacts.store.push import move_tag
    from tritonrank.artifacts.store.signing import signer_of, trust_of
    from tritonrank.artifacts.store.urls import Source

    _require_no_tag(url)
    index = Index(open_objects(url), trust_of(trusted))
    digest, _ = index.find(Source(url, version))
    move = move_tag(index, tag, digest, signer_of(sign))
    typer.echo(f"{move.tag} leads to version {move.version[:SHOWN]} (move {move.number})")


@store_app.command("gc")
def collect_command(
    url: Url,
    keep: Annotated[int, typer.Option(min=0, help="So many of the newest versions stay, besides those with a tag")] = 5,
    grace: Annotated[
        float, typer.Option(min=0, metavar="DAYS", help="What was pushed or uploaded since then stays, too")
    ] = 7.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed")] = False,
) -> None:
    """Remove versions without a tag and parts that no version needs; nobody can push meanwhile."""
    from tritonrank.artifacts.store.collect import collect
    from tritonrank.artifacts.store.index import Index
    from tritonrank.artifacts.store.objects import open_objects

    _require_no_tag(url)
    found = collect(Index(open_objects(url)), keep=keep, grace_days=grace, only_look=dry_run)
    for digest in found.versions:
        typer.echo(f"{'would remove' if dry_run else 'removed'} version {digest[:SHOWN]}")
    typer.echo(
        f"{len(found.versions)} of {len(found.versions) + found.kept} versions and {found.parts} parts "
        f"{'would go' if dry_run else 'are gone'}: {found.bytes / 1e6:,.1f} MB"
    )


@store_app.command("prune-cache")
def prune_cache_command(
    keep: Annotated[int, typer.Option(min=0, help="So many of those fetched last stay")] = 3,
) -> None:
    """Remove older versions that were fetched to this machine; none that a running server started from."""
    from tritonrank.artifacts.store.cache import cache_folder, prune_cache

    gone, stay = prune_cache(keep)
    for digest in gone:
        typer.echo(f"removed version {digest[:SHOWN]}")
    typer.echo(f"{len(gone)} of {len(gone) + stay} versions in {cache_folder()} are gone")


@store_app.command("keygen")
def keygen_command(
    name: Annotated[Path, typer.Argument(metavar="NAME", help="Writes NAME.key, for this user alone, and NAME.pub")],
) -> None:
    """Make a pair of Ed25519 keys: the private one signs what is pushed, the public one is given to who pulls."""
    from tritonrank.artifacts.store.signing import make_keys

    private, public, key_id = make_keys(name)
    typer.echo(
        f"{private}  keep it secret: {SIGNING_KEY}={shlex.quote(str(private))}\n"
        f"{public}  give it to who pulls: {TRUSTED_KEYS}={shlex.quote(str(public))}\nid {key_id}"
    )


def _require_no_tag(url: str) -> None:
    from tritonrank.artifacts.store.urls import parse_source

    source = parse_source(url)
    if source.url != url.rstrip("/"):
        raise StoreError(f"{url}: names a version; here the store is wanted: {source.url}")
