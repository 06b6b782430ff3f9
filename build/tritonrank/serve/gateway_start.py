"""The gateway in front of a server that runs, with all that the served build has: it ranks, and may recommend."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tritonrank.serve.first_history import give_first_history
from tritonrank.serve.gateway_child import GatewayChild, missing_packages
from tritonrank.serve.recommending import INSTALL, NEEDED, Recommending, has_catalogue
from tritonrank.serve.serving import REFERENCE_FILE
from tritonrank.serve.supervisor import SupervisedTriton

console = Console()


def gateway_for(
    server: SupervisedTriton,
    recommends: Recommending,
    port: int,
    host: str = "127.0.0.1",
    name: str = "",
    deadline_seconds: float = 10.0,
) -> GatewayChild:
    """A gateway that is not yet started; it follows what the server serves.

    Args:
        server: runs.
        recommends: of what it serves.
        port, host, name, deadline_seconds: as of GatewayChild.
    """
    missing = missing_packages(NEEDED)
    if has_catalogue(server.server.repository):
        if missing:
            _say(
                f"This build has a catalogue, and recommending is not installed ({', '.join(missing)}), so it only "
                f"ranks. To recommend: {INSTALL}"
            )
        elif not recommends.store and (imported := give_first_history(recommends.root, recommends.store_file)):
            _say(f"{imported:,} events of the generated users are in {recommends.store_file}: they have a past")

    def flags() -> Sequence[str]:
        repository = server.server.repository
        return [*_reference(repository), *([] if missing else recommends.flags(repository))]

    return GatewayChild(server, port, host, name, deadline_seconds, flags)


def _reference(repository: Path) -> list[str]:
    """What drift is measured against; nothing for a repository that an older version made, or one made of no data."""
    file = repository.resolve() / REFERENCE_FILE
    return ["--reference", str(file)] if file.is_file() else []


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
