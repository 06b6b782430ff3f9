"""Who may call: named keys with a rate limit and a quota each.

From the environment, `TRITONRANK_GATEWAY_KEYS="shop=SECRET,search=SECRET"`, or from a TOML file:

    [keys.shop]
    sha256 = "9f86d0..."          # of the key; or key = "..."
    requests_per_second = 50      # both limits are optional
    candidates_per_day = 1000000

Only digests are kept, and they are compared in constant time. Limits count in this process: of n gateways each allows
them.
"""

import hashlib
import hmac
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritonrank_gateway.refusal import Refusal

KEYS_VARIABLE = "TRITONRANK_GATEWAY_KEYS"
SECONDS_PER_DAY = 86_400
SHORTEST_KEY = 16
"""Characters: a key that can be guessed is none."""


@dataclass
class Key:
    """A caller: what it may do, and what it has done."""

    name: str
    digest: bytes
    requests_per_second: float | None = None
    candidates_per_day: int | None = None
    _tokens: float = field(default=0.0, init=False)
    _filled_at: float = field(default=-1.0, init=False)
    _day: int = field(default=-1, init=False)
    _candidates: int = field(default=0, init=False)

    def take_request(self, now: float) -> None:
        """Count one request; bursts of a second's worth are allowed.

        Raises:
            Refusal: too many in this second.
        """
        rate = self.requests_per_second
        if rate is None:
            return
        most = max(1.0, rate)
        self._tokens = most if self._filled_at < 0 else min(most, self._tokens + rate * (now - self._filled_at))
        self._filled_at = now
        if self._tokens < 1:
            wait = (1 - self._tokens) / rate
            raise Refusal("rate_limited", f"key {self.name!r} may send {rate:g} requests per second", wait)
        self._tokens -= 1

    def take_candidates(self, candidates: int, now: float) -> None:
        """Count the candidates of an admitted request against the day's (UTC).

        Args:
            candidates: of this request.
            now: seconds since the epoch.

        Raises:
            Refusal: the day's are used up.
        """
        most = self.candidates_per_day
        if most is None:
            return
        day, into_day = divmod(now, SECONDS_PER_DAY)
        if day != self._day:
            self._day, self._candidates = int(day), 0
        if self._candidates + candidates > most:
            said = f"key {self.name!r} may rank {most} candidates per day, and {self._candidates} are used"
            raise Refusal("rate_limited", said, SECONDS_PER_DAY - into_day)
        self._candidates += candidates

    def give_back(self, candidates: int) -> None:
        """Those of a request that was admitted and then refused as a whole: nothing was ranked."""
        self._candidates = max(0, self._candidates - candidates)


class Keys:
    """All keys; without any, everybody may call."""

    def __init__(self, keys: list[Key]) -> None:
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    def of(self, headers: Mapping[str, str]) -> Key | None:
        """The key that a request shows, as bearer token or in `X-API-Key` or `api-key`; None where none is needed.

        Raises:
            Refusal: no key, or an unknown one.
        """
        if not self._keys:
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        # Cohere, Jina, OpenAI and TEI clients say Bearer; llama-index's TEI client sends what it is given.
        shown = token.strip() if scheme.lower() == "bearer" else scheme
        shown = shown or headers.get("x-api-key", "") or headers.get("api-key", "")
        if not shown:
            raise Refusal("unauthorized", "no key: send the header 'Authorization: Bearer KEY'")
        digest = hashlib.sha256(shown.encode("utf-8", "surrogateescape")).digest()
        found = [key for key in self._keys if hmac.compare_digest(key.digest, digest)]
        if not found:
            raise Refusal("unauthorized", "the key is not known")
        return found[0]


def read_keys(path: Path | None, environment: Mapping[str, str]) -> Keys:
    """The keys of a file and of the environment.

    Raises:
        ValueError: a key is wrong; the message names it and never shows it.
    """
    keys = [_written(name, secret) for name, secret in _from_environment(environment.get(KEYS_VARIABLE, ""))]
    if path is not None:
        keys += _from_file(path)
    names = [key.name for key in keys]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"keys: named twice: {', '.join(sorted(twice))}")
    return Keys(keys)


def _from_environment(text: str) -> list[tuple[str, str]]:
    pairs = [part.strip().partition("=") for part in text.split(",") if part.strip()]
    if any(not (name and equals and secret) for name, equals, secret in pairs):
        raise ValueError(f"{KEYS_VARIABLE}: expected NAME=KEY,NAME=KEY")
    return [(name, secret) for name, _, secret in pairs]


def _from_file(path: Path) -> list[Key]:
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))["keys"]
    except (tomllib.TOMLDecodeError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected TOML with tables [keys.NAME] ({type(error).__name__} {error})") from None
    if not isinstance(told, dict):
        raise ValueError(f"{path}: keys: expected tables [keys.NAME]")  # noqa: TRY004 - a wrong file, not a wrong call
    return [_from_table(path, name, values) for name, values in told.items()]


def _from_table(path: Path, name: str, values: Any) -> Key:
    where = f"{path}: keys.{name}"
    known = {"key", "sha256", "requests_per_second", "candidates_per_day"}
    if not isinstance(values, dict) or set(values) - known or ("key" in values) == ("sha256" in values):
        raise ValueError(f"{where}: expected one of key and sha256, and of {', '.join(sorted(known))} what applies")
    limits = {limit: values[limit] for limit in ("requests_per_second", "candidates_per_day") if limit in values}
    for limit, value in limits.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ValueError(f"{where}.{limit}: expected a number above 0, got {value!r}")
    if "sha256" not in values:
        return _written(name, values["key"], **limits)
    if not re.fullmatch("[0-9a-f]{64}", str(values["sha256"])):
        raise ValueError(f"{where}.sha256: expected 64 hexadecimal digits, as of: printf %s KEY | sha256sum")
    return Key(name, bytes.fromhex(values["sha256"]), **limits)


def _written(name: str, secret: Any, **limits: Any) -> Key:
    if not isinstance(secret, str) or len(secret) < SHORTEST_KEY:
        raise ValueError(f"key {name!r}: expected at least {SHORTEST_KEY} characters, as of: openssl rand -hex 24")
    return Key(name, hashlib.sha256(secret.encode()).digest(), **limits)
