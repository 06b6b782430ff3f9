"""The routes of recommending: over the engine of ``tritonrank_recommend``, in our own dialect."""

from fastapi import APIRouter

from tritonrank_gateway.recommend import events, items, routes, users


def routers() -> list[APIRouter]:
    """The routes of all that belongs to recommending; without a catalogue they say how to get one."""
    return [routes.router, items.router, events.router, users.router]
