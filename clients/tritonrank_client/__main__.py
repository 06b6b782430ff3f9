"""The entry point of ``tritonrank-client``, also as ``python -m tritonrank_client``.

The library needs numpy and tritonclient alone; without what the command line needs as well this says what to install.
"""

import sys

NEEDED = {"rich", "typer"}


def run() -> None:
    """Run the command line, or name the extra that is missing."""
    try:
        from tritonrank_client.cli import main
    except ModuleNotFoundError as error:
        if error.name not in NEEDED:
            raise
        sys.exit(
            f"tritonrank-client: {error.name} is not installed. The command line needs: pip install 'tritonrank[cli]'"
        )
    main()


if __name__ == "__main__":
    run()
