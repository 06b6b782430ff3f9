"""Everything that can be set, once: each field is a flag `--name` and a variable `TRITONRANK_GATEWAY_NAME`."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from tritonrank_client import TLS

from tritonrank_gateway.discovery import is_entry

PREFIX = "TRITONRANK_GATEWAY_"
ADAPT_MODES = ("off", "advise", "act")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """The settings of one gateway; `read_settings` makes them of a command line and the environment.

    Raises:
        ValueError: a value is out of range; the message names the flag.
    """

    triton: Annotated[
        tuple[str, ...],
        "gRPC addresses of Triton, parted by commas: HOST:PORT, or dns:HOST:PORT and file:PATH, read each second",
    ] = ("127.0.0.1:8001",)
    model: Annotated[str, "the ensemble to ask"] = "rank"
    model_name: Annotated[str, "the name that /v1/models tells; by default the ensemble's"] = ""
    host: Annotated[str, "address to listen on; 0.0.0.0 only together with keys or behind something"] = "127.0.0.1"
    port: Annotated[int, "port of the dialects; 0 takes a free one"] = 8080
    metrics_port: Annotated[int, "port of /metrics and /health/*, on the same address; 0 takes a free one"] = 8081
    listen_on: Annotated[tuple[str, ...], "two open sockets by number, handed over in place of ports"] = ()
    ready_file: Annotated[Path | None, "JSON with both URLs is written here when requests are taken"] = None
    keys_file: Annotated[Path | None, "TOML with the keys that callers must show, see docs/gateway.md"] = None
    cors: Annotated[tuple[str, ...], "origins whose pages may call, such as https://shop.example; none by default"] = ()
    tls_certificate: Annotated[Path | None, "PEM certificate; the dialects are then served over https"] = None
    tls_key: Annotated[Path | None, "PEM key of that certificate"] = None
    tls_client_ca: Annotated[Path | None, "PEM authorities; callers must show a certificate by one of them"] = None
    tls_metrics: Annotated[bool, "serve the port of metrics over https, too; no caller's certificate there"] = False
    triton_tls: Annotated[Path | None, "folder with ca.crt, and tls.crt and tls.key to show: TLS to Triton"] = None
    triton_tls_name: Annotated[str, "the name in Triton's certificate, where --triton names addresses"] = ""
    drain_s: Annotated[float, "seconds, after SIGTERM, in which /health/ready says 503 and requests are served"] = 0.0
    deadline_s: Annotated[float, "seconds a request may take, unless a header says less"] = 10.0
    max_body_bytes: Annotated[int, "a larger body is refused with 413"] = 32 * 2**20
    max_documents: Annotated[int, "more documents are refused; the server's own limit counts, too"] = 1_000
    max_characters: Annotated[int, "of all texts of a request together; more are refused with 413"] = 8_000_000
    max_in_flight: Annotated[int, "requests that wait for an answer at once; more are refused with 429"] = 256
    max_queued_s: Annotated[float, "estimated seconds of work that may be waiting; more is refused with 429"] = 10.0
    cache_mb: Annotated[int, "MiB of rankings that are kept and given again for the same texts; 0 for none"] = 0
    golden: Annotated[Path | None, "golden.json of the artifact's repository, to tell which replica is well"] = None
    reference: Annotated[Path | None, "reference.json that drift is measured against; the one beside --golden"] = None
    probe_s: Annotated[float, "seconds between two golden requests to one of several replicas"] = 1.0
    hedge_after_s: Annotated[float, "a request that takes longer goes to a second replica, too; 0 for never"] = 0.0
    split_candidates: Annotated[
        int, "larger requests are ranked in parts of so many at once; -1: one part per replica, 0: never"
    ] = -1
    cancel_on_hang_up: Annotated[bool, "cancel given up calls on the wire, too; for Triton 2.74 and later"] = False
    catalogue: Annotated[Path | None, "folder artifacts/RECIPE/catalogue: recommend from it; none by default"] = None
    blend: Annotated[Path | None, "folder artifacts/RECIPE/blend; without it the ranker's order is shown"] = None
    store: Annotated[str, "profiles, events, pages: sqlite:FILE or redis://HOST:PORT/DB; none by default"] = ""
    events_log: Annotated[Path | None, "folder of the training log, see docs/events.md; none by default"] = None
    events_stream: Annotated[
        str, "how events travel: auto (by the store), off, local:FILE, redis://HOST:PORT/DB or kafka://HOST:PORT/TOPIC"
    ] = "auto"
    events_stream_keep: Annotated[int, "messages that stay in the stream to be read again, see docs/streams.md"] = (
        100_000
    )
    dead_letters: Annotated[Path | None, "file of messages that nobody can take; by default beside log or stream"] = (
        None
    )
    rules: Annotated[Path | None, "TOML with the shop's rules, see docs/recommend.md; read again when changed"] = None
    candidates: Annotated[int, "items that are retrieved and ranked for a recommendation"] = 200
    ranked: Annotated[
        int,
        "of these, that the ranker reads, the first so many; 0: as many as the blend was judged with (blend.ranked)",
    ] = 0
    page_minutes: Annotated[float, "minutes that a list is kept for its further pages"] = 30.0
    warm_context: Annotated[bool, "let the ranker read the user's context while candidates are retrieved"] = False
    recommend_deadline_s: Annotated[float, "seconds a recommendation may take, unless the request says how many"] = 1.0
    adapt: Annotated[str, "rank more cheaply before anything is refused: off, advise (metrics only) or act"] = "off"
    adapt_floor: Annotated[int, "fewest candidates of a list that are ranked before a cheaper way is taken"] = 25
    adapt_queue_s: Annotated[float, "seconds of waiting work above which lists are ranked more cheaply"] = 0.25
    smaller_model: Annotated[str, "a cheaper ensemble for --adapt: NAME, or NAME@HOST:PORT; none by default"] = ""
    storefront: Annotated[bool, "serve the page /storefront where there is a catalogue"] = True
    playground: Annotated[bool, "serve the page /playground"] = True
    tracing: Annotated[bool, "send OpenTelemetry traces of requests, as the variables OTEL_* say"] = False
    access_log: Annotated[bool, "write a line of JSON per request to standard output"] = True

    def __post_init__(self) -> None:
        for name in ("port", "metrics_port"):
            _require(0 <= getattr(self, name) < 65_536, name, getattr(self, name), "a port")
        for name in (
            "deadline_s",
            "recommend_deadline_s",
            "page_minutes",
            *(one.name for one in fields(self) if one.name.startswith("max_")),
        ):
            _require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
        for name in ("cache_mb", "hedge_after_s", "drain_s", "events_stream_keep"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require(self.split_candidates >= -1, "split_candidates", self.split_candidates, "-1, 0 or a number of them")
        _require(self.probe_s > 0, "probe_s", self.probe_s, "a number above 0")
        fits = bool(self.triton) and all(map(is_entry, self.triton))
        _require(fits, "triton", ",".join(self.triton), "HOST:PORT, dns:HOST:PORT or file:PATH")
        fits = all(one.isdigit() for one in self.listen_on) and len(self.listen_on) in (0, 2)
        _require(fits, "listen_on", ",".join(self.listen_on), "two numbers of open files, parted by a comma")
        pair = (self.tls_certificate, self.tls_key)
        _require((pair[0] is None) == (pair[1] is None), "tls_key", pair[1], "a key and a certificate, or neither")
        for name in ("tls_client_ca", "tls_metrics"):
            fits = not getattr(self, name) or pair[0] is not None
            _require(fits, name, getattr(self, name), "--tls-certificate and --tls-key beside it")
        fits = not self.triton_tls_name or self.triton_tls is not None
        _require(fits, "triton_tls_name", self.triton_tls_name, "--triton-tls beside it")
        _ = self.triton_credentials
        _require(not self.events_log or bool(self.store), "events_log", self.events_log, "--store beside it")
        fits = self.events_stream in ("auto", "off") or bool(self.store)
        _require(fits, "events_stream", self.events_stream.partition(":")[0], "--store beside it")
        _require(1 <= self.candidates <= 1_000, "candidates", self.candidates, "1 to 1000")
        _require(0 <= self.ranked <= 1_000, "ranked", self.ranked, "0 to 1000")
        _require(self.adapt in ADAPT_MODES, "adapt", self.adapt, " or ".join(ADAPT_MODES))
        _require(1 <= self.adapt_floor <= 1_000, "adapt_floor", self.adapt_floor, "1 to 1000")
        _require(0 < self.adapt_queue_s <= 10, "adapt_queue_s", self.adapt_queue_s, "above 0, at most 10")
        name, at, address = self.smaller_model.partition("@")
        fits = bool(name) == bool(self.smaller_model) and (not at or ":" in address)
        _require(fits, "smaller_model", self.smaller_model, "NAME or NAME@HOST:PORT")
        for name in ("keys_file", "golden", "reference", "rules", "tls_certificate", "tls_key", "tls_client_ca"):
            path = getattr(self, name)
            _require(path is None or path.is_file(), name, path, "a file that exists")
        _require("*" not in self.cors or len(self.cors) == 1, "cors", self.cors, "origins, or * alone")

    @property
    def reference_file(self) -> Path | None:
        """What drift is measured against; None where there is nothing."""
        if self.reference is not None or self.golden is None:
            return self.reference
        beside = self.golden.with_name("reference.json")
        return beside if beside.is_file() else None

    @property
    def triton_credentials(self) -> TLS | None:
        """What Triton's certificate is checked with, and what is shown to it; None asks in plain text.

        Raises:
            ValueError: the folder lacks a file.
        """
        if self.triton_tls is None:
            return None
        try:
            return TLS.of_folder(self.triton_tls, self.triton_tls_name)
        except ValueError as error:
            raise ValueError(f"--triton-tls: {error}") from None


def read_settings(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> GatewaySettings:
    """Settings by command line, else by environment, else the defaults.

    Raises:
        SystemExit: a flag is unknown or its value wrong; the message names it.
    """
    parser = argparse.ArgumentParser(prog="python -m tritonrank_gateway", description="Rerank dialects before Triton.")
    for one in fields(GatewaySettings):
        _add_flag(parser, one)
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    try:
        from_environment = {
            one.name: _read(one, environment[variable])
            for one in fields(GatewaySettings)
            if (variable := PREFIX + one.name.upper()) in environment and one.name not in given
        }
        given |= {"cors": tuple(given["cors"])} if "cors" in given else {}
        return GatewaySettings(**(from_environment | given))
    except ValueError as error:
        parser.error(str(error))


def _add_flag(parser: argparse.ArgumentParser, one: Field[Any]) -> None:
    flag, said = flag_of(one.name), get_type_hints(GatewaySettings, include_extras=True)[one.name].__metadata__[0]
    shown = " ".join(map(str, one.default)) if isinstance(one.default, tuple) else one.default
    text = said if one.default in (None, "", ()) else f"{said} [{shown}]"
    if isinstance(one.default, bool):
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
    elif one.name == "cors":
        parser.add_argument(flag, nargs="+", type=str, default=None, metavar="ORIGIN", help=text)
    else:
        parser.add_argument(flag, type=lambda value: _read(one, value), default=None, help=text.replace("%", "%%"))


def _read(one: Field[Any], text: str) -> Any:
    """A setting's value from text."""
    kind: Any = Path if one.default is None else type(one.default)
    try:
        if kind is tuple:
            return tuple(part.strip() for part in text.split(",") if part.strip())
        if kind is bool:
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        raise ValueError(f"{flag_of(one.name)}: expected {kind.__name__}, got {text!r}") from None


def flag_of(name: str) -> str:
    """The flag of a field: deadline_s is --deadline-s."""
    return "--" + name.replace("_", "-")


def _require(fits: bool, name: str, value: object, expected: str) -> None:
    if not fits:
        raise ValueError(f"{flag_of(name)}: expected {expected}, got {value!r}")
