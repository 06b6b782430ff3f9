"""What can go wrong with a model store, as far as callers tell it apart."""

from tritonrank.errors import StoreError

INSTALL = "pip install 'tritonrank[store]'"


class UnreachableStoreError(StoreError):
    """The store does not answer now; what was pulled earlier may be used in its place."""


class MissingObjectError(StoreError):
    """The store answers, and has no such object."""


class DamagedStoreError(StoreError):
    """What the store holds is not what was put there."""


class UntrustedError(StoreError):
    """A version or tag carries no signature of a trusted key."""


class ConflictError(StoreError):
    """Another writer was quicker, or is at work."""


def not_installed(package: str) -> StoreError:
    """What to raise in place of an ImportError."""
    return StoreError(f"{package} is not installed, which model stores need: {INSTALL}")
