"""Load for a running server, and what it does under it. Nothing here imports the pipeline that built the server."""

from contextlib import suppress

# Its first act is to turn the libraries' telemetry off, which has to come before they are imported. The peers' own
# environments have no tritonrank in them; they inherit the variables.
with suppress(ModuleNotFoundError):
    import tritonrank  # noqa: F401 - sets the environment
