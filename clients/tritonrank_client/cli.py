"""tritonrank-client: ask a server for a ranking, a recommendation, its health or its contract from the shell.

The commands are thin: each makes one client, makes one call, and prints a table for people or one line of JSON for
programs. An error is one message on stderr and an exit code: 0 all is well, 1 not ready or a fault of the server,
2 the request or its usage is wrong, 3 unavailable or overloaded, 4 out of time.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ._cli_tables import print_items, print_json, print_model, print_ranking
from ._client import RankClient
from ._errors import InvalidRequest, RankError
from ._open import open as open_client
from ._options import DEFAULT_MODEL, DEFAULT_TIMEOUT_SECONDS, OVERLOAD_ATTEMPTS, TLS, Retry
from ._results import Detail, Item

app = typer.Typer(
    name="tritonrank-client",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Ask a tritonrank server for rankings.",
    epilog="Exit codes: 0 well, 1 not ready or server fault, 2 wrong request or usage, 3 unavailable or overloaded, "
    "4 out of time.",
)

Url = Annotated[
    str,
    typer.Option(
        envvar="TRITONRANK_URL",
        help="grpc://, grpcs://, http:// or https://, host and port; https and grpcs are 443 without one. "
        "gateway+http:// is a gateway; file:///FOLDER ranks with an artifact, without a server.",
        show_default=True,
    ),
]
ModelName = Annotated[str, typer.Option("--model", help="The ensemble to ask.")]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds that the whole call may take.")]
Header = Annotated[list[str] | None, typer.Option("--header", help="'Name: value' sent along; repeatable.")]
RootCertificates = Annotated[
    Path | None,
    typer.Option(
        "--root-certificates",
        help="PEM file of the authorities to trust; or a folder with ca.crt, and tls.crt and tls.key to show.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of a table.")]

REPORTED: tuple[Detail, ...] = ("unscored", "fields")
DEFAULT_URL = "grpc://127.0.0.1:8001"


@app.command(
    epilog='Example: tritonrank-client rank --query "space opera" --history "Dune" --items items.jsonl --top-k 5'
)
def rank(
    items: Annotated[
        str,
        typer.Option(
            help='File with one item per line: plain text, or a JSON string or object; "-" is standard input. '
            'An object\'s "item_id" is used as its id.'
        ),
    ],
    url: Url = DEFAULT_URL,
    query: Annotated[str, typer.Option(help="What the user searched for.")] = "",
    history: Annotated[
        list[str] | None, typer.Option(help="What the user saw before; repeatable, newest last.")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", help="How many to return; 0 is all.")] = 0,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Refuse items that have nothing to score or lack a field of the template."),
    ] = False,
    model: ModelName = DEFAULT_MODEL,
    timeout: Timeout = DEFAULT_TIMEOUT_SECONDS,
    header: Header = None,
    root_certificates: RootCertificates = None,
    as_json: AsJson = False,
) -> None:
    """Rank items for a query and a history."""
    with _errors_as_messages(), _client(url, model, timeout, header, root_certificates) as client:
        texts, item_ids = _read_items(items)
        result = client.rank(
            query=query,
            history=history or [],
            items=texts,
            item_ids=item_ids,
            top_k=top_k,
            strict=strict,
            want=_reports(client),
        )
        if as_json:
            print_json(asdict(result))
        else:
            print_ranking(result)


@app.command(epilog="Example: tritonrank-client health --url http://127.0.0.1:8000")
def health(
    url: Url = DEFAULT_URL,
    model: ModelName = DEFAULT_MODEL,
    timeout: Timeout = DEFAULT_TIMEOUT_SECONDS,
    header: Header = None,
    root_certificates: RootCertificates = None,
    as_json: AsJson = False,
) -> None:
    """Tell whether server and model can serve; exit with 0 if so, else 1."""
    with _errors_as_messages(), _client(url, model, timeout, header, root_certificates) as client:
        state = client.health()
        if as_json:
            print_json(asdict(state))
        else:
            for name, holds in (("live", state.live), ("ready", state.ready), (f"model {model}", state.model_ready)):
                print(f"{name}: {'yes' if holds else 'no'}")
            if state.reason:
                print(state.reason, file=sys.stderr)
    raise typer.Exit(0 if state else 1)


@app.command(epilog="Example: tritonrank-client info --model rank")
def info(
    url: Url = DEFAULT_URL,
    model: ModelName = DEFAULT_MODEL,
    timeout: Timeout = DEFAULT_TIMEOUT_SECONDS,
    header: Header = None,
    root_certificates: RootCertificates = None,
    as_json: AsJson = False,
) -> None:
    """Show the model's versions, inputs and outputs, and which fields of an item it reads; with --json its whole
    configuration, too."""
    with _errors_as_messages(), _client(url, model, timeout, header, root_certificates) as client:
        described = client.model_info()
        if as_json:
            print_json(asdict(described))
        else:
            print_model(described)


@app.command(epilog='Example: tritonrank-client recommend --url http://127.0.0.1:8080 --user u1 --query "a desk lamp"')
def recommend(
    url: Url = DEFAULT_URL,
    user: Annotated[str, typer.Option(help="Whose profile is taken.")] = "",
    query: Annotated[str, typer.Option(help="What the user searched for.")] = "",
    recent: Annotated[
        list[str] | None, typer.Option(help="Id of an item of the session; repeatable, newest last.")
    ] = None,
    size: Annotated[int, typer.Option(help="Items on a page.")] = 20,
    filters: Annotated[str, typer.Option(help='JSON, such as {"brand": "Oak", "price": {"lte": 50}}.')] = "",
    cursor: Annotated[str, typer.Option(help="Of the page before: show the next one.")] = "",
    explain: Annotated[bool, typer.Option("--explain", help="Say of each item what raised it.")] = False,
    timeout: Timeout = DEFAULT_TIMEOUT_SECONDS,
    header: Header = None,
    root_certificates: RootCertificates = None,
    as_json: AsJson = False,
) -> None:
    """Show what a user should see now: asks a gateway, or Triton's model `recommend`."""
    with _errors_as_messages(), _shop(url, timeout, header, root_certificates) as client:
        page = client.recommend(
            user, query=query, recent=recent or [], size=size, filters=_parse_filters(filters), cursor=cursor,
            explain=explain,
        )  # fmt: skip
        if as_json:
            print_json(asdict(page))
            return
        print_items(page.items, f"{len(page.items)} items in {page.seconds * 1000:.1f} ms")
        for reason in page.degraded_reasons:
            print(f"degraded: {reason}", file=sys.stderr)
        if page.cursor:
            print(f"the next page: --cursor {page.cursor}")


@app.command(epilog="Example: tritonrank-client similar p1 --url http://127.0.0.1:8080")
def similar(
    item_id: Annotated[str, typer.Argument(help="The item's id.")],
    url: Url = DEFAULT_URL,
    size: Annotated[int, typer.Option(help="How many.")] = 20,
    filters: Annotated[str, typer.Option(help='JSON, such as {"brand": "Oak"}.')] = "",
    timeout: Timeout = DEFAULT_TIMEOUT_SECONDS,
    header: Header = None,
    root_certificates: RootCertificates = None,
    as_json: AsJson = False,
) -> None:
    """Show items that are like one: asks a gateway."""
    with _errors_as_messages(), _shop(url, timeout, header, root_certificates) as client:
        found = client.similar(item_id, size=size, filters=_parse_filters(filters))
        if as_json:
            print_json(asdict(found))
        else:
            print_items(found.items, f"{len(found.items)} items like {item_id}")


@app.command(epilog="Example: tritonrank-client events events.jsonl --url http://127.0.0.1:8080")
def events(
    source: Annotated[
        str,
        typer.Argument(
            help='File with one event per line: JSON such as {"user_id": "u1", "type": "click", "item_id": "p1"}; "-" '
            "is standard input."
        ),
    ],
    url: Url = DEFAULT_URL,
    timeout: Timeout = DEFAULT_TIMEOUT_SECONDS,
    header: Header = None,
    root_certificates: RootCertificates = None,
    as_json: AsJson = False,
) -> None:
    """Tell a gateway what users did. Give each event an "event_id", so that the file may be sent again."""
    with _errors_as_messages(), _shop(url, timeout, header, root_certificates) as client:
        taken = client.send_events([_parse_event(place, line) for place, line in _lines(source, "events")])
        if as_json:
            print_json(asdict(taken))
        else:
            print(f"{taken.accepted} events taken, {taken.duplicates} known before, in {taken.seconds:.2f} s")


def main() -> None:
    """Entry point of `tritonrank-client`."""
    app()


@contextmanager
def _errors_as_messages() -> Iterator[None]:
    try:
        yield
    except RankError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None


@contextmanager
def _client(
    url: str,
    model: str,
    timeout: float,
    headers: list[str] | None,
    root_certificates: Path | None,
    make: Callable[..., RankClient] = RankClient,
) -> Iterator[RankClient]:
    try:
        tls = None
        if root_certificates is not None:
            is_folder = root_certificates.is_dir()
            tls = TLS.of_folder(root_certificates) if is_folder else TLS(root_certificates=root_certificates)
        # Whoever sits at a terminal wants to hear at once that no server is there.
        retry = Retry(attempts=OVERLOAD_ATTEMPTS)
        client = make(url, model=model, timeout=timeout, headers=_parse_headers(headers or []), retry=retry, tls=tls)
    except (ValueError, ModuleNotFoundError) as error:
        raise InvalidRequest(str(error)) from error
    with client:
        yield client


def _shop(
    url: str, timeout: float, headers: list[str] | None, root_certificates: Path | None
) -> AbstractContextManager[RankClient]:
    """A client for what belongs to recommending: an http URL may be a gateway's or a Triton's, and is asked which."""
    return _client(url, DEFAULT_MODEL, timeout, headers, root_certificates, make=open_client)


def _parse_filters(text: str) -> dict[str, Any]:
    try:
        filters = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"--filters: expected JSON ({error})") from error
    if not isinstance(filters, dict):
        raise InvalidRequest("--filters: expected a JSON object")
    return filters


def _parse_event(place: str, line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{place}: expected JSON ({error})") from error
    if not isinstance(event, dict):
        raise InvalidRequest(f"{place}: expected a JSON object")
    return event


def _parse_headers(lines: list[str]) -> dict[str, str]:
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise InvalidRequest(f"--header: expected 'Name: value', got {line!r}")
        headers[name.strip()] = value.strip()
    return headers


def _reports(client: RankClient) -> list[Detail]:
    """What the server can tell of items that do not fit; older ones refuse to be asked. Whoever cannot be asked at all
    is asked for the ranking alone, which says why."""
    try:
        known = {output.name for output in client.model_info().outputs}
    except RankError:
        return []
    return [name for name in REPORTED if name in known]


def _read_items(source: str) -> tuple[list[Item], list[str] | None]:
    """Items and, if the lines have them, their ids. Blank lines are skipped.

    Raises:
        InvalidRequest: a line is wrong, or only some have an id; the message has file and line.
    """
    items: list[Item] = []
    item_ids: list[str] = []
    for place, line in _lines(source):
        item = _parse_item(place, line)
        has_id = isinstance(item, dict) and "item_id" in item
        if items and has_id != bool(item_ids):
            told = 'an "item_id" here and none' if has_id else 'no "item_id" here and one'
            raise InvalidRequest(f"{place}: {told} on the lines before; give it on all lines or none")
        if isinstance(item, dict) and has_id:
            item_ids.append(_parse_id(place, item["item_id"]))
        items.append(item)
    return items, item_ids or None


def _lines(source: str, option: str = "--items") -> Iterator[tuple[str, str]]:
    name = "standard input" if source == "-" else source
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{option}: cannot read {name}: {error}") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{name}, line {number}", line


def _parse_item(place: str, line: str) -> Item:
    """A JSON string or object, or the line as it stands.

    Raises:
        InvalidRequest: the line begins as an object and is none; ranked as text it would rank braces and quotes.
    """
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        if not line.lstrip().startswith("{"):
            return line.strip()
        text = json.dumps(line.strip()[:20], ensure_ascii=False)[:-1]
        raise InvalidRequest(
            f'{place}: expected a JSON object ({error}); a text that begins with a brace is written as {text}..."'
        ) from error
    return item if isinstance(item, str | dict) else line.strip()


def _parse_id(place: str, item_id: Any) -> str:
    if isinstance(item_id, str | int) and not isinstance(item_id, bool):
        return str(item_id)
    raise InvalidRequest(f'{place}: "item_id": expected a text or a whole number, got {json.dumps(item_id)}')


if __name__ == "__main__":
    main()
