"""A stream by its URL."""

from pathlib import Path

from tritonrank_recommend.privacy import Privacy
from tritonrank_recommend.stores.interface import Store
from tritonrank_recommend.stores.opening import REDIS_SCHEMES
from tritonrank_recommend.streams.consumer import Consumer
from tritonrank_recommend.streams.dead_letters import DeadLetters
from tritonrank_recommend.streams.intake import Intake
from tritonrank_recommend.streams.interface import Stream, StreamRefusedError
from tritonrank_recommend.streams.settings import StreamSettings

FORMS = "auto, off, local:FILE, redis://HOST:PORT/DB and its relatives, or kafka://HOST:PORT/TOPIC"
SUFFIX = "-stream"
"""Behind the name of a SQLite store: the file of its events."""
DEAD_LETTERS = "dead-letters.jsonl"


def stream_of_store(store_url: str) -> str:
    """The URL of the stream that goes with a store where none is named; "" for a store that ends with its process."""
    scheme, _, rest = store_url.partition(":")
    place = rest.partition("?")[0]
    if scheme == "sqlite":
        return "" if place == ":memory:" else f"local:{place}{SUFFIX}"
    return store_url.partition("?")[0] + _connection_options(store_url)


def _connection_options(url: str) -> str:
    """``?db=1`` and what else belongs to the connection, without what belongs to profiles."""
    query = url.partition("?")[2]
    kept = [one for one in query.split("&") if one and not one.startswith("profile_days=")]
    return f"?{'&'.join(kept)}" if kept else ""


def open_stream(url: str, store_url: str = "") -> Stream | None:
    """A stream by its URL; several processes may open the same.

    Args:
        url: ``auto`` is in the store's own server, or in a file beside it; ``off`` is none.
        store_url: for ``auto``.

    Returns:
        None for ``off``, and for ``auto`` where nothing is kept.

    Raises:
        StreamRefusedError: the URL is none, a package is missing, or the file is not ours; with what to type instead.
    """
    if url == "auto":
        url = stream_of_store(store_url) if store_url else "off"
    if url in ("off", ""):
        return None
    scheme, _, place = url.partition(":")
    if scheme == "local" and place:
        from tritonrank_recommend.streams.local import LocalStream

        return LocalStream(_file(url))
    if scheme in REDIS_SCHEMES and place.startswith("//"):
        from tritonrank_recommend.streams.redis_streams import RedisStream

        return RedisStream(url)
    if scheme == "kafka" and place.startswith("//"):
        from tritonrank_recommend.streams.kafka import KafkaStream

        return KafkaStream(url)
    shown = f"{scheme}:" if place else url  # what stands behind it may be a password
    raise StreamRefusedError(f"--events-stream: {shown!r} is no stream; expected {FORMS}")


def open_intake(
    settings: StreamSettings, store_url: str, store: Store, privacy: Privacy, events_log: Path | None
) -> Intake | None:
    """The stream of a gateway and its consumer.

    Args:
        settings: of the stream.
        store_url: where ``store`` is.
        store: takes events.
        privacy: what of them is kept.
        events_log: folder of the training log; None where there is none.

    Returns:
        None where events go to the store alone.

    Raises:
        StreamRefusedError: see ``open_stream``.
    """
    stream = open_stream(settings.url, store_url)
    if stream is None:
        return None
    url = stream_of_store(store_url) if settings.url == "auto" else settings.url
    folder = events_log or (_file(url).parent if url.startswith("local:") else Path())
    letters = DeadLetters(settings.dead_letters or folder / DEAD_LETTERS)
    log = events_log is not None
    consumer = Consumer(stream, store, letters, privacy=privacy, log=log, keep=settings.keep)
    return Intake(stream, store, consumer, letters, privacy, log)


def _file(url: str) -> Path:
    place = url.removeprefix("local:")
    return Path("/" + place.lstrip("/") if place.startswith("//") else place)
