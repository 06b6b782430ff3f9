"""Who may call, and for what: named keys with roles, a rate limit and a quota each.

From the environment, `TRITONRANK_GATEWAY_KEYS="shop=SECRET,search:rank=SECRET"`, or from a TOML file:

    [keys.shop]
    sha256 = "9f86d0..."          # of the key; or key = "..."
    roles = ["rank", "events"]    # these two by default
    requests_per_second = 50      # both limits are optional
    candidates_per_day = 1000000

A role is what a key is for: **rank** asks for rankings and lists, **events** tells what users did, **admin** changes
what is served and kept (items, a user's export and erasure, the private port) and may do all that the others may.
`TRITONRANK_ADMIN_KEY` is an admin key, too. Once there is one, what needs it is closed to everybody else, even where
ranking needs no key.

Only digests are kept, and they are compared in constant time. Limits count in this process: of n gateways each allows
them.
"""

import hashlib
import hmac
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from tritonrank_gateway.refusal import Refusal

Role = Literal["rank", "events", "admin"]
KEYS_VARIABLE = "TRITONRANK_GATEWAY_KEYS"
ADMIN_VARIABLE = "TRITONRANK_ADMIN_KEY"
ADMIN_NAME = "the admin key"
"""How limits, logs and messages call the one of that variable."""
SECONDS_PER_DAY = 86_400
SHORTEST_KEY = 16
"""Characters: a key that can be guessed is none."""
USUAL_ROLES: frozenset[Role] = frozenset({"rank", "events"})
"""Of a key that names none: a shop's pages need these, and whoever steals that key can erase nobody."""


@dataclass
class Key:
    """A caller: what it may do, and what it has done."""

    name: str
    digest: bytes
    roles: frozenset[Role] = USUAL_ROLES
    requests_per_second: float | None = None
    candidates_per_day: int | None = None
    _tokens: float = field(default=0.0, init=False)
    _filled_at: float = field(default=-1.0, init=False)
    _day: int = field(default=-1, init=False)
    _candidates: int = field(default=0, init=False)

    def may(self, role: Role) -> bool:
        """Whether it is for that; an admin key is for everything."""
        return role in self.roles or "admin" in self.roles

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
    """All keys; without any, everybody may rank and tell events."""

    def __init__(self, keys: list[Key]) -> None:
        self._keys = keys
        self._has_callers = any(key.name != ADMIN_NAME for key in keys)

    def __len__(self) -> int:
        """Keys of callers; none where everybody may rank."""
        return len(self._keys) if self._has_callers else 0

    @property
    def has_admin(self) -> bool:
        """Whether there is a key that may change what is served."""
        return any(key.may("admin") for key in self._keys)

    def of(self, headers: Mapping[str, str], role: Role = "rank") -> Key | None:
        """The key that a request shows, as bearer token or in `X-API-Key` or `api-key`; None where none is needed.

        Args:
            headers: of the request.
            role: what the request needs.

        Raises:
            Refusal: no key, an unknown one, or one that is for other things.
        """
        if not self._has_callers and not (role == "admin" and self._keys):
            return None
        return self._shown(headers, role)

    def admin(self, headers: Mapping[str, str]) -> Key:
        """The admin key that a request to the private port shows: there, no key at all opens nothing.

        Raises:
            Refusal: there is none, or the request shows none that is.
        """
        if not self.has_admin:
            said = f"nothing can be changed here without an admin key; start the gateway with {ADMIN_VARIABLE} set"
            raise Refusal("forbidden", said)
        return self._shown(headers, "admin")

    def _shown(self, headers: Mapping[str, str], role: Role) -> Key:
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
        if not found[0].may(role):
            has = ", ".join(sorted(found[0].roles))
            said = f"key {found[0].name!r} is for {has}; this needs the role {role}: give it that role, or send another"
            raise Refusal("forbidden", said)
        return found[0]


def read_keys(path: Path | None, environment: Mapping[str, str]) -> Keys:
    """The keys of a file and of the environment.

    Raises:
        ValueError: a key is wrong; the message names it and never shows it.
    """
    keys = list(_from_environment(environment.get(KEYS_VARIABLE, "")))
    if path is not None:
        keys += _from_file(path)
    if secret := environment.get(ADMIN_VARIABLE, ""):
        keys.append(_written(ADMIN_NAME, secret, roles=frozenset({"admin"})))
    names = [key.name for key in keys]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"keys: named twice: {', '.join(sorted(twice))}")
    digests = [key.digest for key in keys]
    if same := [key.name for key in keys if digests.count(key.digest) > 1]:
        raise ValueError(f"keys: {' and '.join(map(repr, same))} are equal; each needs a key of its own")
    return Keys(keys)


def _from_environment(text: str) -> Iterator[Key]:
    for part in filter(None, (part.strip() for part in text.split(","))):
        told, equals, secret = part.partition("=")
        name, colon, roles = told.partition(":")
        if not (name and equals and secret):
            raise ValueError(f"{KEYS_VARIABLE}: expected NAME=KEY,NAME=KEY or NAME:ROLE+ROLE=KEY")
        own = {"roles": _roles(f"{KEYS_VARIABLE}: {name}", roles.split("+"))} if colon else {}
        yield _written(name, secret, **own)


def _roles(where: str, told: object) -> frozenset[Role]:
    known = get_args(Role)
    if not isinstance(told, list) or not told or any(role not in known for role in told):
        raise ValueError(f"{where}: roles: expected some of {', '.join(known)}")
    return frozenset(told)


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
    known = {"key", "sha256", "roles", "requests_per_second", "candidates_per_day"}
    if not isinstance(values, dict) or set(values) - known or ("key" in values) == ("sha256" in values):
        raise ValueError(f"{where}: expected one of key and sha256, and of {', '.join(sorted(known))} what applies")
    limits: dict[str, Any] = {
        limit: values[limit] for limit in ("requests_per_second", "candidates_per_day") if limit in values
    }
    for limit, value in limits.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ValueError(f"{where}.{limit}: expected a number above 0, got {value!r}")
    if "roles" in values:
        limits["roles"] = _roles(where, values["roles"])
    if "sha256" not in values:
        return _written(name, values["key"], **limits)
    if not re.fullmatch("[0-9a-f]{64}", str(values["sha256"])):
        raise ValueError(f"{where}.sha256: expected 64 hexadecimal digits, as of: printf %s KEY | sha256sum")
    return Key(name, bytes.fromhex(values["sha256"]), **limits)


def _written(name: str, secret: Any, **limits: Any) -> Key:
    if not isinstance(secret, str) or len(secret) < SHORTEST_KEY:
        raise ValueError(f"key {name!r}: expected at least {SHORTEST_KEY} characters, as of: openssl rand -hex 24")
    return Key(name, hashlib.sha256(secret.encode()).digest(), **limits)
