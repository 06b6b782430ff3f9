"""The verbs of a fleet on this machine: several Tritons and gateways behind HAProxy."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tritonrank.cli.options import app
from tritonrank.cli.panels import Panel
from tritonrank.errors import ServerError

fleet_app = typer.Typer(
    no_args_is_help=True,
    help="Run several Tritons and gateways behind HAProxy, and scale, drain, kill and replace them under load.",
)
app.add_typer(fleet_app, name="fleet", rich_help_panel=Panel.OPERATE)
State = Annotated[
    Path | None,
    typer.Option("--state", metavar="FOLDER", help="Of the fleet; by default one for this user of the machine"),
]


@fleet_app.command("up")
def up_command(
    artifacts: Annotated[str, typer.Argument(metavar="ARTIFACTS", help="As of `tritonrank serve`")],
    gateway_flags: Annotated[
        list[str] | None, typer.Argument(metavar="-- FLAGS", help="More flags of each gateway, after --")
    ] = None,
    replicas: Annotated[int, typer.Option(help="Tritons")] = 3,
    gateways: Annotated[int, typer.Option(help="Before them")] = 2,
    port: Annotated[int, typer.Option(help="Of HAProxy, HTTP to the gateways; 0 takes a free one")] = 8080,
    grpc_port: Annotated[int, typer.Option(help="Of HAProxy, gRPC to the Tritons; 0 takes a free one")] = 8001,
    autoscale: Annotated[
        str, typer.Option(metavar="MIN:MAX", help="As many Tritons as the gateways wish; default: --replicas")
    ] = "",
    down_after: Annotated[float, typer.Option(min=1, help="Seconds of smaller wishes before Tritons end")] = 60.0,
    drain_s: Annotated[float, typer.Option(help="Seconds that a member serves on when it is told to end")] = 2.0,
    store: Annotated[str, typer.Option(metavar="URL", help="Of users; default: the recipe's own SQLite file")] = "",
    state: State = None,
) -> None:
    """Start a fleet, and keep it running until Ctrl-C or `tritonrank fleet down`.

    Members are started, checked, drained and replaced in the order of the chart in deploy/helm. A build stays until
    `tritonrank fleet roll` replaces it: promotions are not followed. docs/fleet.md says more.
    """
    from tritonrank.serve.fleet.autoscale import Bounds
    from tritonrank.serve.fleet.plan import Plan
    from tritonrank.serve.fleet.running import run_fleet, show_status
    from tritonrank.serve.ports import choose_ports
    from tritonrank.serve.versions.shapes import KEY_VARIABLE

    try:
        bounds = Bounds.read(autoscale) if autoscale else None
    except ValueError as error:
        raise ServerError(str(error)) from None
    if bounds is not None:
        replicas = min(max(replicas, bounds.least), bounds.most)
    ports = choose_ports({"port": port, "grpc_port": grpc_port})
    plan = Plan(
        artifacts,
        replicas,
        gateways,
        port=ports["port"],
        grpc_port=ports["grpc_port"],
        drain_seconds=drain_s,
        autoscale=bounds,
        down_after_seconds=down_after,
        store=store,
        has_admin=bool(os.environ.get(KEY_VARIABLE)),
        gateway_flags=tuple(gateway_flags or ()),
    )
    run_fleet(plan, _folder(state), lambda fleet: show_status(fleet.status()))


@fleet_app.command("status")
def status_command(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout")] = False, state: State = None
) -> None:
    """Show the members: which are ready, which start or drain, what they serve."""
    _tell(_ask(state, {"do": "status"}), as_json=as_json)


@fleet_app.command("scale")
def scale_command(
    count: Annotated[int, typer.Argument(metavar="N", help="Tritons from here on")], state: State = None
) -> None:
    """Start or drain Tritons until there are N; returns when that is done."""
    _tell(_ask(state, {"do": "scale", "count": count}))


@fleet_app.command("drain")
def drain_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Such as triton-2 or gateway-1")], state: State = None
) -> None:
    """End one member as for maintenance of its machine: no request is lost. Another one takes its place."""
    _tell(_ask(state, {"do": "drain", "name": name}))


@fleet_app.command("kill")
def kill_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Such as triton-2 or gateway-1")], state: State = None
) -> None:
    """Kill one member as if its machine were gone. Another one takes its place."""
    _tell(_ask(state, {"do": "kill", "name": name}))


@fleet_app.command("roll")
def roll_command(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="What to serve; default: what the first ARTIFACTS lead to now")
    ] = "",
    state: State = None,
) -> None:
    """Replace all members one by one, Tritons first. One that does not become ready turns the roll around."""
    _tell(_ask(state, {"do": "roll", "source": str(Path(source).resolve()) if _is_local(source) else source}))


@fleet_app.command("down")
def down_command(state: State = None) -> None:
    """End the fleet in order: HAProxy, gateways, Tritons; also what a fleet left running that was killed."""
    folder = _folder(state)
    from tritonrank.serve.fleet.control import ask

    if folder.control.exists():
        try:
            ask(folder.control, {"do": "down"})
        except ServerError:
            pass  # it was killed, and its socket stayed
        else:
            typer.echo("the fleet goes down")
            return
    for name in folder.open():
        typer.echo(f"{name} was ended")
    folder.close()


def _is_local(source: str) -> bool:
    return bool(source) and "://" not in source


def _folder(state: Path | None) -> Any:
    from tritonrank.serve.fleet.state_folder import StateFolder, default_folder

    return StateFolder(state or default_folder())


def _ask(state: Path | None, wish: dict[str, Any]) -> dict[str, Any]:
    from tritonrank.serve.fleet.control import ask

    return ask(_folder(state).control, wish, lambda line: print(line, file=sys.stderr, flush=True))


def _tell(status: dict[str, Any], *, as_json: bool = False) -> None:
    from tritonrank.serve.fleet.running import show_status

    if as_json:
        typer.echo(json.dumps(status))
    else:
        show_status(status)
