"""python -m tritonrank_gateway --triton HOST:PORT ..."""

import sys

from tritonrank_gateway.serve import serve
from tritonrank_gateway.settings import read_settings


def main() -> None:
    """Serve by command line and environment."""
    settings = read_settings(sys.argv[1:])
    try:
        serve(settings)
    except (OSError, ValueError) as error:
        sys.exit(f"tritonrank_gateway: {error}")


if __name__ == "__main__":
    main()
