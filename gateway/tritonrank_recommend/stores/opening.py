"""A store by its URL."""

from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from tritonrank_recommend.stores.interface import Store, StoreRefusedError
from tritonrank_recommend.stores.profiles import MOST_EVENTS, PROFILE_DAYS

REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster")
REDIS_OPTIONS = ("db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs")
FORMS = "sqlite:FILE, redis://HOST:PORT/DB, rediss://, redis+cluster://HOST:PORT or unix://SOCKET"


def open_store(url: str, *, most_events: int = MOST_EVENTS) -> Store:
    """A store by its URL; several processes may open the same.

    Args:
        url: ``sqlite:FILE``, ``sqlite::memory:`` (ends with the process), ``redis://HOST:PORT/DB`` and its relatives;
            ``?profile_days=90`` behind it says after how many days without an event a profile goes.
        most_events: kept of a user.

    Raises:
        StoreRefusedError: the URL is none, a package is missing, or the file is not ours; with what to type instead.
    """
    scheme, found, _ = url.partition(":")
    place, _, query = url.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    profile_days = _days(options.pop("profile_days", str(PROFILE_DAYS)))
    known = REDIS_OPTIONS if scheme in REDIS_SCHEMES else ()
    if unknown := sorted(options.keys() - set(known)):
        named = ", ".join(["profile_days", *known])
        raise StoreRefusedError(f"--store: {', '.join(unknown)} is no option of this store; there is {named}")
    if scheme == "sqlite" and found and (path := place.removeprefix("sqlite:")):
        from tritonrank_recommend.stores.sqlite import SqliteStore

        file = None if path == ":memory:" else Path("/" + path.lstrip("/") if path.startswith("//") else path)
        return SqliteStore(file, most_events=most_events, profile_days=profile_days)
    if scheme in REDIS_SCHEMES and place.startswith(f"{scheme}://"):
        from tritonrank_recommend.stores.redis_store import RedisStore

        server = f"{place}?{urlencode(options)}" if options else place
        return RedisStore(server, most_events=most_events, profile_days=profile_days)
    shown = f"{scheme}:" if found else url  # what stands behind it may be a password
    raise StoreRefusedError(f"--store: {shown!r} is no store; expected {FORMS}")


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = 0.0
    if not 0 < days < 36_525:
        raise StoreRefusedError(f"--store: profile_days={text} is no number of days above 0; such as ?profile_days=365")
    return days
