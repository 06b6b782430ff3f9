"""Names of models in Triton that callers know; apart, so that whoever only serves need not import what assembles."""

ENSEMBLE = "rank"
"""The whole way of a request; its versions are called rank-NAME."""
