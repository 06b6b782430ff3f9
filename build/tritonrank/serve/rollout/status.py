"""The status of a rollout as JSON: what the private API says, and what the command line draws."""

from collections.abc import Mapping, Sequence
from typing import Any

from tritonrank.serve.rollout.book import Book
from tritonrank.serve.rollout.gateways import View
from tritonrank.serve.rollout.tritons import TritonView

MOST_LINES = 20
"""Of the ledger."""


def status_of(book: Book, views: Sequence[View], triton_views: Sequence[TritonView], problem: str) -> dict[str, Any]:
    """Where it is, the figures by which it is judged, what each gateway and Triton has, and the last decisions."""
    rollout, now = book.rollout, book.clock()
    told: dict[str, Any] = {"problem": problem, "rollout": None, "ledger": []}
    if rollout is not None:
        shares = rollout.rules["canary_shares"]
        told["rollout"] = {
            **{name: getattr(rollout, name) for name in ("id", "name", "source", "phase", "step", "share", "reason")},
            "is_held": rollout.is_held,
            "steps": 1 + len(shares),
            "is_under_way": book.is_under_way,
            "seconds": round(now - (rollout.since or rollout.began), 1),
            "version": rollout.version,
            "before": rollout.before,
            "rules": rollout.rules,
        }
        told["readings"] = [reading.told() for reading in book.readings]
        told["exposure"] = book.figures(rollout).exposure
        told["ledger"] = book.lines(rollout.id)[-MOST_LINES:]
    told["gateways"] = [
        {"url": view.url, "problem": view.problem}
        | {role: _named(view.versions.get(role)) for role in ("live", "shadow", "canary")}
        for view in views
    ]
    told["tritons"] = [
        {"url": view.url, "problem": view.problem}
        | {"live": view.versions.live if view.versions else ""}
        | {"versions": {one.name: one.state for one in view.versions.versions} if view.versions else {}}
        for view in triton_views
    ]
    return told


def _named(version: Mapping[str, Any] | None) -> str:
    return f"{version['name']} ({100 * version.get('share', 0):g}%)" if version else ""
