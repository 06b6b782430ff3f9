"""The verbs of a rollout: begin one, look at it, and steer it; and the controller that does the work."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tritonrank.cli.options import app
from tritonrank.cli.panels import Panel
from tritonrank.errors import ServerError
from tritonrank.system.literal_help import LiteralGroup

if TYPE_CHECKING:
    from tritonrank.serve.versions.admin_client import PrivateApi

rollout_app = typer.Typer(
    cls=LiteralGroup,
    no_args_is_help=True,
    help="Roll a new version out: shadow, canary, live, judged by rules; docs/rollout.md tells all of it.",
)
app.add_typer(rollout_app, name="rollout", rich_help_panel=Panel.OPERATE)

DEFAULT_URL = "http://127.0.0.1:8004"
Controller = Annotated[
    str,
    typer.Option(
        "--controller",
        metavar="URL",
        envvar="TRITONRANK_ROLLOUT",
        help="Of `tritonrank rollout run`; the key is TRITONRANK_ADMIN_KEY",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="For scripts")]
PLACES = "http://HOST:PORT, dns:NAME:PORT (all addresses of a name) or file:PATH (one a line); several with commas"


@rollout_app.command("run")
def run_command(
    gateways: Annotated[
        str, typer.Option("--gateway", metavar="URL,...", help=f"Private ports (--metrics-port) of gateways: {PLACES}")
    ] = "http://127.0.0.1:8081",
    tritons: Annotated[
        str,
        typer.Option(
            "--triton-admin",
            metavar="URL,...",
            help="Ports of `tritonrank serve --admin-port`, likewise; without any, versions have to run already",
        ),
    ] = "",
    rules: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="Rules of every rollout; what it leaves out has its default"),
    ] = None,
    state: Annotated[Path, typer.Option(metavar="FOLDER", help="Of the state and the ledger")] = Path("rollout"),
    host: Annotated[str, typer.Option(help="Address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Of the private API; 0 takes a free one")] = 8004,
    metrics_port: Annotated[int, typer.Option(help="Of /metrics, which needs no key; 0 takes a free one")] = 8005,
) -> None:
    """Run the controller: once a second it makes all gateways and Tritons what they should be, and decides.

    It is on no request's way. Killed and started again with the same --state it goes on where it was.
    """
    from tritonrank.serve.rollout.process import run_controller
    from tritonrank.serve.rollout.rules import Rules

    run_controller(
        _split(gateways),
        _split(tritons),
        state,
        Rules.read(rules) if rules else Rules(),
        host=host,
        port=port,
        metrics_port=metrics_port,
    )


@rollout_app.command("start")
def start_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="[SOURCE]", help="What to roll out: a folder, or a model store's URL", show_default=False
        ),
    ] = "",
    name: Annotated[str, typer.Option(help="Of the version; default: made of the source and the time")] = "",
    rules: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="Rules that differ for this one")] = None,
    triton: Annotated[
        str, typer.Option(metavar="HOST:PORT,...", help="Where the version runs already, in place of a source")
    ] = "",
    model: Annotated[str, typer.Option(help="Its ensemble there")] = "rank",
    controller: Controller = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Begin to roll a version out. It is loaded beside what serves; users see it when the rules say so."""
    from tritonrank.serve.rollout.rules import Rules, read_toml

    if source and "://" not in source:
        source = str(Path(source).resolve())
    body: dict[str, Any] = {"source": source, "name": name} if source else {"name": name}
    if rules is not None:
        Rules.read(rules)
        body["rules"] = read_toml(rules)
    if triton:
        body |= {"triton": _split(triton), "model": model}
    _show(_api(controller).ask("POST", "/rollout", body), as_json)


@rollout_app.command("status")
def status_command(controller: Controller = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show where it is, what each rule reads, which gateway and Triton has what, and the last decisions."""
    _show(_api(controller).ask("GET", "/rollout"), as_json)


@rollout_app.command("promote")
def promote_command(
    live: Annotated[bool, typer.Option("--live", help="At once to live, and not to the next step")] = False,
    controller: Controller = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Go a step on, whatever the rules say; ends a hold."""
    _show(_api(controller).ask("POST", "/rollout/promote", {"to": "live" if live else "step"}), as_json)


@rollout_app.command("hold")
def hold_command(controller: Controller = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Stay at this step until `promote`; the rules may still take the version back."""
    _show(_api(controller).ask("POST", "/rollout/hold"), as_json)


@rollout_app.command("back")
def back_command(controller: Controller = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Take the version back: from its step, or, after it was promoted, from live."""
    _show(_api(controller).ask("POST", "/rollout/back"), as_json)


def _api(url: str) -> "PrivateApi":
    from tritonrank.serve.versions.admin_client import PrivateApi
    from tritonrank.serve.versions.door import key_of_environment

    return PrivateApi(url, key_of_environment())


def _show(status: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(status, indent=1))
        return
    from rich.console import Console

    from tritonrank.serve.rollout.show import show

    show(status, Console(emoji=False, highlight=False))


def _split(text: str) -> list[str]:
    found = [one.strip() for one in text.split(",") if one.strip()]
    if text and not found:
        raise ServerError(f"{text!r}: expected addresses, parted by commas")
    return found
