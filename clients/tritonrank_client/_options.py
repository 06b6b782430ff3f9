"""The settings of a client, grouped in frozen value objects.

Each is checked when it is made, so that a mistake shows at the line that holds it and not at the first call.
`Settings` is the checked sum of a client's arguments, shared by the four transports.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

DEFAULT_MODEL = "rank"
DEFAULT_TIMEOUT_SECONDS = 5.0  # generous for a real-time ranker, yet short enough that a caller notices

SCHEMES = {"grpc": False, "grpcs": True, "http": False, "https": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """When to send a request again: only if the server is overloaded or cannot be reached, never past the deadline.

    The pause before attempt n + 1 is drawn from `initial_seconds` * 2**(n - 1), at most `max_seconds`, where
    `jitter` is the share that is random: 1 is the "full jitter" of
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/, 0 a fixed pause.

    The budget keeps retries from amplifying an overload. It starts with `budget_burst` tokens; every call adds
    `budget_ratio` of one, every retry takes one, and without one there is no retry. So over time at most
    `budget_ratio` of the calls are retried. All threads of a client share it.

    Raises:
        ValueError: a value is out of range.
    """

    attempts: int = 3
    initial_seconds: float = 0.05
    max_seconds: float = 1.0
    jitter: float = 1.0
    budget_ratio: float = 0.1
    budget_burst: float = 10.0

    def __post_init__(self) -> None:
        _require(self.attempts >= 1, "Retry.attempts", self.attempts, "at least 1 (1 never retries)")
        _require(0 <= self.initial_seconds < math.inf, "Retry.initial_seconds", self.initial_seconds, "0 or more")
        _require(
            self.initial_seconds <= self.max_seconds < math.inf,
            "Retry.max_seconds",
            self.max_seconds,
            "at least initial_seconds",
        )
        _require(0 <= self.jitter <= 1, "Retry.jitter", self.jitter, "between 0 and 1")
        _require(0 <= self.budget_ratio <= 1, "Retry.budget_ratio", self.budget_ratio, "between 0 and 1")
        _require(0 <= self.budget_burst < math.inf, "Retry.budget_burst", self.budget_burst, "0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class TLS:
    """Certificates for grpcs:// and https://, as PEM files.

    Attributes:
        root_certificates: authorities to trust; None takes the system's.
        private_key: the client's key, where the server asks for a client certificate.
        certificate_chain: the client's certificate; goes with `private_key`.
        verify: False accepts any certificate: for a lab, over https:// only (gRPC cannot do it).

    Raises:
        ValueError: a file does not exist, or only one of key and chain is given.
    """

    root_certificates: str | Path | None = None
    private_key: str | Path | None = None
    certificate_chain: str | Path | None = None
    verify: bool = True

    def __post_init__(self) -> None:
        for name in ("root_certificates", "private_key", "certificate_chain"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise ValueError(f"TLS.{name}: no such file: {path}")
        if (self.private_key is None) != (self.certificate_chain is None):
            raise ValueError("TLS: private_key and certificate_chain go together; give both or neither")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepAlive:
    """HTTP/2 pings that find out a dead gRPC connection; HTTP connections are checked before each use instead.

    A connection that a firewall forgot looks alive, and calls on it time out one after the other. A ping is sent
    after `time_seconds` without traffic while a call waits, and the connection is dropped when no answer comes
    within `timeout_seconds`. Pings without calls are off: a Triton server counts more than one in five minutes
    as abuse and closes the connection (`--grpc-http2-min-recv-ping-interval-without-data`).

    Raises:
        ValueError: a value is not above 0.
    """

    time_seconds: float = 60.0
    timeout_seconds: float = 10.0
    without_calls: bool = False

    def __post_init__(self) -> None:
        _require(0 < self.time_seconds < math.inf, "KeepAlive.time_seconds", self.time_seconds, "above 0")
        _require(0 < self.timeout_seconds < math.inf, "KeepAlive.timeout_seconds", self.timeout_seconds, "above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The arguments of a client, checked.

    Raises:
        ValueError: an argument is wrong; the message names it.
    """

    url: str
    model: str = DEFAULT_MODEL
    model_version: str = ""
    timeout: float = DEFAULT_TIMEOUT_SECONDS
    headers: Mapping[str, str] = field(default_factory=dict)
    retry: Retry = field(default_factory=Retry)
    tls: TLS | None = None
    keep_alive: KeepAlive = field(default_factory=KeepAlive)

    def __post_init__(self) -> None:
        self._check_url()
        _require(bool(self.model) and isinstance(self.model, str), "model", self.model, "a model's name")
        version_fits = isinstance(self.model_version, str) and (not self.model_version or self.model_version.isdigit())
        _require(version_fits, "model_version", self.model_version, "a number as text, or an empty one")
        _require(0 < self.timeout < math.inf, "timeout", self.timeout, "a number of seconds above 0")
        for name, value in self.headers.items():
            fits = isinstance(name, str) and isinstance(value, str) and (name + value).isprintable() and bool(name)
            _require(fits, "headers", {name: value}, "printable text for names and values")
        if self.tls is not None and not self.is_secure:
            raise ValueError(f"tls: {self.url} is not encrypted; use grpcs:// or https://")
        if self.tls is not None and not self.tls.verify and self.is_grpc:
            raise ValueError(
                "tls: gRPC cannot skip verification; pass the server's certificate as TLS(root_certificates=...)"
            )

    @property
    def is_grpc(self) -> bool:
        """Whether the URL names gRPC rather than HTTP."""
        return self._parts.scheme in ("grpc", "grpcs")

    @property
    def is_secure(self) -> bool:
        """Whether the connection is encrypted."""
        return SCHEMES[self._parts.scheme]

    @property
    def target(self) -> str:
        """host:port and the base path, if any: what tritonclient takes as its url."""
        return self._parts.netloc + self._parts.path.rstrip("/")

    @property
    def _parts(self) -> SplitResult:
        return urlsplit(self.url)

    def _check_url(self) -> None:
        wanted = "expected SCHEME://HOST:PORT with scheme grpc, grpcs, http or https, such as grpc://127.0.0.1:8001"
        if not isinstance(self.url, str):
            raise TypeError(f"url: {wanted}; got {self.url!r}")
        try:
            parts = self._parts
            has_address = bool(parts.hostname) and parts.port is not None
        except ValueError as error:  # a port that is no number, a bracket left open
            raise ValueError(f"url: {wanted}; got {self.url!r} ({error})") from None
        extras = parts.query or parts.fragment or parts.username is not None
        if parts.scheme not in SCHEMES or not has_address or extras:
            raise ValueError(f"url: {wanted}; got {self.url!r}")
        if self.is_grpc and parts.path.strip("/"):
            raise ValueError(f"url: gRPC has no path, got {self.url!r}; drop {parts.path!r}")


def _require(fits: bool, name: str, value: object, expected: str) -> None:
    if not fits:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
