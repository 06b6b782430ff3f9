"""The verbs that build a store anew from a stream or a training log, and that show what a store holds."""

import asyncio
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tritonrank.cli.options import app
from tritonrank.cli.panels import Panel
from tritonrank.errors import DataError

if TYPE_CHECKING:
    from tritonrank_recommend.streams.replay import Replayed

StoreUrl = Annotated[
    str, typer.Option("--store", metavar="URL", help="As the gateway's: sqlite:FILE or redis://HOST:PORT/DB")
]


@app.command("replay-events", rich_help_panel=Panel.OPERATE)
def replay_events(
    source: Annotated[
        str,
        typer.Argument(
            metavar="STREAM|LOG", help="As --events-stream names it (local:FILE, redis://, kafka://), or a log's folder"
        ),
    ],
    store: StoreUrl,
    start: Annotated[
        str, typer.Option("--from", metavar="OFFSET", help="Of a stream: the first message; default: its oldest")
    ] = "",
    go_on: Annotated[
        bool, typer.Option("--go-on", help="Into a store that is not empty, as after an interruption")
    ] = False,
) -> None:
    """Build profiles and counters anew, in a fresh store, from a stream or from the training log.

    They are equal to those that the gateways built, to the byte of `tritonrank dump-store`. Gateways may go on
    meanwhile with their own store; nothing is taken out of the stream.

    For example: tritonrank replay-events log --store sqlite:fresh.db
    """
    done = _run(_replay(source, store, start, go_on))
    poison = f"; {done.poison:,} messages that nobody can take" if done.poison else ""
    typer.echo(f"{done.events:,} events replayed; {done.duplicates:,} came again{poison}")
    shown = store if store.startswith("sqlite:") else "URL"  # a URL may hold a password
    typer.echo(f"Next: tritonrank dump-store --store {shown}, to compare; then gateways with --store {shown}")


@app.command("dump-store", rich_help_panel=Panel.OPERATE)
def dump_store(
    store: StoreUrl,
    to: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: standard output")] = None,
) -> None:
    """Write what a store knows of users and items, as lines of JSON that are equal where two stores hold the same."""
    if to is None:
        _run(_dump(store, sys.stdout.buffer.write))
        return
    draft = to.with_name(f"{to.name}.tmp")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as opened:
        _run(_dump(store, opened.write))
    draft.replace(to)


async def _replay(source: str, url: str, start: str, go_on: bool) -> "Replayed":
    from tritonrank_recommend.privacy import read_privacy
    from tritonrank_recommend.stores import open_store
    from tritonrank_recommend.streams.opening import open_stream
    from tritonrank_recommend.streams.replay import replay_log, replay_stream

    from tritonrank.system.progress import step

    is_log = Path(source).is_dir()
    if is_log and start:
        raise DataError("--from: a training log has no offsets; leave it out, or name a stream")
    # Opened first: a fresh store must not come to be where there is nothing to replay.
    stream = None if is_log else open_stream(source)
    if not is_log and stream is None:
        raise DataError(f"{source}: no stream and no folder of a training log")
    store = open_store(url)
    try:
        if not go_on and await store.user_ids():
            raise DataError("--store: is not empty; name a fresh one, or add --go-on to finish a replay into it")
        with step("replaying events") as bar:
            if stream is None:
                return await replay_log(Path(source), store, advance=bar.advance)
            return await replay_stream(
                stream, store, privacy=read_privacy(os.environ), start=start, advance=bar.advance
            )
    finally:
        await store.close()
        if stream is not None:
            await stream.close()


async def _dump(url: str, write: Any) -> None:
    from tritonrank_recommend.stores import open_store
    from tritonrank_recommend.streams.dump import dump

    store = open_store(url)
    try:
        async for line in dump(store):
            write(line)
    finally:
        await store.close()


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    from tritonrank_recommend.stores.interface import StoreError

    try:
        return asyncio.run(work)
    except (StoreError, ValueError, OSError) as error:
        raise DataError(str(error)) from error
