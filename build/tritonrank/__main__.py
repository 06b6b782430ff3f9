"""The entry point, also as ``python -m tritonrank``, which is what torchrun starts.

``pip install tritonrank`` is the thin client: without the pipeline's dependencies this says what to install.
"""

import sys


def run() -> None:
    """Run the command line, or name the extra that is missing."""
    try:
        from tritonrank.cli import main
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tritonrank"):
            raise
        sys.exit(
            f"tritonrank: {error.name} is not installed. This is the thin client (tritonrank-client); "
            "the pipeline and the local server need: pip install 'tritonrank[build,server]'"
        )
    main()


if __name__ == "__main__":
    run()
