"""The model store: versions of an artifact at one URL, by content, signed, and fetched from anywhere (docs/store.md).

Only what opens a store imports the packages of the extra ``store``; a folder of this machine needs none.
"""

from tritonrank.artifacts.store.cache import fetch

__all__ = ["fetch"]
