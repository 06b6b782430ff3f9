"""What is remembered between requests: profiles, counters, changes of items, pages, the events that are not yet in the
training log. One interface (``interface.py``), SQLite for one machine, Redis or Valkey for more."""

from tritonrank_recommend.stores.guard import GuardedStore
from tritonrank_recommend.stores.opening import open_store

__all__ = ["GuardedStore", "open_store"]
