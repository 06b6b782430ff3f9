"""The settings of a client, grouped in frozen value objects.

Each is checked when it is made, so that a mistake shows at the line that holds it and not at the first call.
`Settings` is the checked sum of a client's arguments, shared by the four transports.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

DEFAULT_MODEL = "rank"

DEFAULT_TIMEOUT_SECONDS = 10.0
"""Twice the 5 s within which `tritonrank serve` brings back a server, or a part of it, that died: whoever called just
before is still answered, after the slowest start and a crowd of others that waited, too."""

DEFAULT_LARGEST_ANSWER_BYTES = 16 * 2**20
"""A place in a ranking takes 8 bytes, and below 64 written as JSON: the rankings of 260,000 items at least."""

OVERLOAD_ATTEMPTS = 3
"""More would not help: an overloaded server needs fewer requests."""

LARGEST_MESSAGE_BYTES = 2**31 - 1
"""gRPC's own limit, that of a signed 32-bit length."""

GATEWAY = "gateway+"
"""Before http or https: a gateway is there, not a Triton."""

FOLDER_SCHEME = "file"

SCHEMES = {"grpc": False, "grpcs": True, "http": False, "https": True, "gateway+http": False, "gateway+https": True}
"""Those with a host -> whether they are encrypted."""

# As everybody writes the address behind an ingress. Plain gRPC has no port of its own, so it must be named.
DEFAULT_PORTS = {"http": 80, "https": 443, "grpcs": 443, "gateway+http": 80, "gateway+https": 443}

HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")

# They say how a body is framed and packed, which is not the caller's to choose.
OWN_HEADERS = frozenset(
    {
        "accept-encoding",
        "content-encoding",
        "content-length",
        "inference-header-content-length",
        "te",
        "transfer-encoding",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """When to send a request again. Ranking changes nothing on the server, so sending it twice is safe.

    - While the server cannot be reached, breaks the connection, starts, or has lost a part of itself (`Unavailable`),
      the request is sent again until the call's deadline.
    - A server that is overloaded (`Overloaded`), or sent the answer to another request (`ServerFault`), is asked three
      times, and only as the budget allows.
    - Nothing else is retried, and nothing after the deadline.

    The pause before attempt n + 1 is drawn from `initial_seconds` * 2**(n - 1), at most `max_seconds`, where
    `jitter` is the share that is random: 1 is the "full jitter" of
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/, 0 a fixed pause. So callers that waited
    for one server come back spread over `max_seconds`, each about twice in it.

    The budget keeps retries from amplifying an overload. It starts with `budget_burst` tokens; every call adds
    `budget_ratio` of one, every retry of an overloaded server takes one, and without one there is no retry. So over
    time at most `budget_ratio` of the calls are retried. All threads of a client share it. An outage costs none: its
    requests did no work.

    Attributes:
        attempts: requests sent at most for one call, whatever the failure; 1 never retries. None is the rule above.

    Raises:
        ValueError: a value is out of range.
    """

    attempts: int | None = None
    initial_seconds: float = 0.05
    max_seconds: float = 1.0
    jitter: float = 1.0
    budget_ratio: float = 0.1
    budget_burst: float = 10.0

    def __post_init__(self) -> None:
        fits = self.attempts is None or self.attempts >= 1
        _require(fits, "Retry.attempts", self.attempts, "at least 1 (1 never retries), or None")
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
    """Certificates for grpcs:// and https://, as PEM files. They are read again when they were replaced.

    Attributes:
        root_certificates: authorities to trust; None takes the system's.
        private_key: the client's key, where the server asks for a client certificate.
        certificate_chain: the client's certificate; goes with `private_key`.
        verify: False accepts any certificate: for a lab, over https:// only (gRPC cannot do it).
        server_name: the name that the server's certificate has, where the URL has another one, or an address.

    Raises:
        ValueError: a file does not exist, or only one of key and chain is given.
    """

    root_certificates: str | Path | None = None
    private_key: str | Path | None = None
    certificate_chain: str | Path | None = None
    verify: bool = True
    server_name: str = ""

    def __post_init__(self) -> None:
        for name in ("root_certificates", "private_key", "certificate_chain"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise ValueError(f"TLS.{name}: no such file: {path}")
        if (self.private_key is None) != (self.certificate_chain is None):
            raise ValueError("TLS: private_key and certificate_chain go together; give both or neither")

    @classmethod
    def of_folder(cls, folder: str | Path, server_name: str = "") -> "TLS":
        """The files as Kubernetes' and cert-manager's secrets name them: `ca.crt`, and `tls.crt` with `tls.key` where
        the client shows a certificate.

        Raises:
            ValueError: `ca.crt` or one of the pair is not there.
        """
        ca, certificate, key = (Path(folder) / name for name in ("ca.crt", "tls.crt", "tls.key"))
        has_own = certificate.is_file() or key.is_file()
        return cls(
            root_certificates=ca,
            certificate_chain=certificate if has_own else None,
            private_key=key if has_own else None,
            server_name=server_name,
        )

    def state(self) -> tuple[tuple[int, int, int] | None, ...]:
        """What tells whether a file was written, replaced or renamed; a link counts as what it leads to."""
        return tuple(_seen(path) for path in (self.root_certificates, self.private_key, self.certificate_chain))


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
    largest_answer_bytes: int = DEFAULT_LARGEST_ANSWER_BYTES
    cancel_abandoned: bool = False
    threads: int = 0

    def __post_init__(self) -> None:
        if self.is_folder:
            self._check_folder()
        else:
            self._check_url()
            _require(self.threads == 0, "threads", self.threads, "none for a server; it has its own")
        if self.is_gateway:
            is_default = self.model == DEFAULT_MODEL and not self.model_version
            _require(is_default, "model", self.model, "none for a gateway; it has one")
        _require(bool(self.model) and isinstance(self.model, str), "model", self.model, "a model's name")
        version_fits = isinstance(self.model_version, str) and (not self.model_version or self.model_version.isdigit())
        _require(version_fits, "model_version", self.model_version, "a number as text, or an empty one")
        _require(0 < self.timeout < math.inf, "timeout", self.timeout, "a number of seconds above 0")
        for name, value in self.headers.items():
            is_text = isinstance(name, str) and isinstance(value, str) and HEADER_NAME.fullmatch(name) is not None
            fits = is_text and value.isascii() and value.isprintable()
            _require(fits, "headers", {name: value}, "a header's name and printable ASCII text")
            is_own = name.lower() in OWN_HEADERS
            _require(not is_own, "headers", {name: value}, "none that says how a body is packed; the client does that")
        is_size = isinstance(self.largest_answer_bytes, int) and 0 < self.largest_answer_bytes <= LARGEST_MESSAGE_BYTES
        _require(is_size, "largest_answer_bytes", self.largest_answer_bytes, f"1 to {LARGEST_MESSAGE_BYTES} bytes")
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
    def is_gateway(self) -> bool:
        """Whether the URL names a gateway rather than a Triton."""
        return self._parts.scheme.startswith(GATEWAY)

    @property
    def is_folder(self) -> bool:
        """Whether there is no server, but an artifact on this machine."""
        return isinstance(self.url, str) and self.url.startswith(f"{FOLDER_SCHEME}:")

    @property
    def folder(self) -> Path:
        """The folder that a file URL names."""
        return Path(unquote(self._parts.path))

    @property
    def is_secure(self) -> bool:
        """Whether the connection is encrypted."""
        return SCHEMES.get(self._parts.scheme, False)

    @property
    def host(self) -> str:
        """Name or address of the server, without brackets."""
        return self._parts.hostname or ""

    @property
    def port(self) -> int:
        """The URL's port, or that of its scheme."""
        return self._parts.port or DEFAULT_PORTS[self._parts.scheme]

    @property
    def path(self) -> str:
        """The base path before Triton's own, without a slash at its end."""
        return self._parts.path.rstrip("/")

    @property
    def target(self) -> str:
        """host:port, as gRPC and the header `Host` want it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def _parts(self) -> SplitResult:
        return urlsplit(self.url)

    def _check_folder(self) -> None:
        if self._parts.netloc or not self._parts.path.startswith("/"):
            raise ValueError(f"url: expected file:///FOLDER, got {self.url!r}")
        useless = {"headers": self.headers, "tls": self.tls, "model_version": self.model_version}
        for name, value in useless.items():
            _require(not value, name, value, "none for a folder; there is no server")
        is_count = isinstance(self.threads, int) and self.threads >= 0
        _require(is_count, "threads", self.threads, "a whole number, or 0 for all cores")

    def _check_url(self) -> None:
        wanted = (
            "expected SCHEME://HOST:PORT with scheme grpc, grpcs, http or https, such as grpc://127.0.0.1:8001, "
            "gateway+http or gateway+https for a gateway, or file:///FOLDER; "
            "without a port, http is 80, https and grpcs are 443"
        )
        if not isinstance(self.url, str):
            raise TypeError(f"url: {wanted}; got {self.url!r}")
        try:
            parts = self._parts
            has_port = parts.port != 0 and (parts.port is not None or parts.scheme in DEFAULT_PORTS)
            has_address = bool(parts.hostname) and has_port and not parts.netloc.endswith(":")
        except ValueError as error:  # a port that is no number, a bracket left open
            raise ValueError(f"url: {wanted}; got {self.url!r} ({error})") from None
        extras = parts.query or parts.fragment or parts.username is not None
        is_clean = parts.path.isascii() and self.url.isprintable() and " " not in self.url
        if parts.scheme not in SCHEMES or not has_address or extras or not is_clean:
            raise ValueError(f"url: {wanted}; got {self.url!r}")
        if self.is_grpc and parts.path.strip("/"):
            raise ValueError(f"url: gRPC has no path, got {self.url!r}; drop {parts.path!r}")


def _seen(path: str | Path | None) -> tuple[int, int, int] | None:
    try:
        found = None if path is None else Path(path).stat()
    except OSError:
        return None
    return None if found is None else (found.st_ino, found.st_size, found.st_mtime_ns)


def _require(fits: bool, name: str, value: object, expected: str) -> None:
    if not fits:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
