"""Candidates out of the catalogue, or out of what is remembered of it when it fails."""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritonrank_recommend.blend.interface import Blend
from tritonrank_recommend.catalogue.columns import FilterError
from tritonrank_recommend.catalogue.interface import Candidates, Catalogue, Wish
from tritonrank_recommend.engine.conditions import meets

LOG = logging.getLogger("tritonrank_recommend")


@dataclass(frozen=True, slots=True)
class Found:
    """What was retrieved.

    Attributes:
        candidates: best first, as retrieval or a blend's first stage has them.
        catalogue: that gave them, and knows their fields.
        problem: why it was not the catalogue that should have; "" where it was.
    """

    candidates: Candidates
    catalogue: Catalogue
    problem: str = ""


def retrieve(catalogue: Catalogue, wish: Wish, later: Mapping[str, Any]) -> Found:
    """Ask a catalogue; blocks, so it runs in a thread.

    Args:
        catalogue: which.
        wish: what.
        later: conditions to check on what was found.
    """
    candidates = catalogue.retrieve(wish)
    if later:
        candidates = only(candidates, np.array([meets(of, later) for of in candidates.fields], dtype=bool))
    return Found(candidates, catalogue)


def retrieve_somehow(
    catalogue: Catalogue | None,
    problem: str,
    remembered: Catalogue,
    wish: Wish,
    later: Mapping[str, Any],
    blend: Blend | None = None,
) -> Found:
    """Ask a catalogue, and where it fails what is remembered of it.

    Args:
        catalogue: None where it could not be opened.
        problem: why it could not be.
        remembered: answers always.
        wish, later: see ``retrieve``.
        blend: whose first stage says in which order they are read; None: retrieval does.
    """
    if catalogue is not None:
        try:
            return in_first_order(retrieve(catalogue, wish, later), blend)
        except FilterError:
            raise  # the request or the rules are at fault
        # Whatever became of its files: there is a list without it.
        except Exception:
            LOG.exception("the catalogue %s failed", catalogue.artifact)
            problem = "damaged"
    return replace(retrieve(remembered, wish, later), problem=problem or "missing")


def only(candidates: Candidates, keep: NDArray[np.bool_]) -> Candidates:
    """Some of the candidates.

    Args:
        candidates: n of them.
        keep: [n] which.
    """
    return taken(candidates, np.flatnonzero(keep))


def taken(candidates: Candidates, places: NDArray[np.int64]) -> Candidates:
    """Candidates by their places, in that order.

    Args:
        candidates: n of them.
        places: each from 0 to n - 1.
    """
    chosen = places.tolist()
    return dataclasses.replace(
        candidates,
        ids=[candidates.ids[place] for place in chosen],
        fused=candidates.fused[places],
        ranks={name: ranks[places] for name, ranks in candidates.ranks.items()},
        scores={name: scores[places] for name, scores in candidates.scores.items()},
        popularity=candidates.popularity[places],
        age_days=candidates.age_days[places],
        texts=[candidates.texts[place] for place in chosen],
        fields=[candidates.fields[place] for place in chosen],
    )


def in_first_order(found: Found, blend: Blend | None) -> Found:
    """The same candidates in the order in which the ranker is to read them."""
    if blend is None:
        return found
    try:
        order = blend.first_order(found.candidates)
    # Whatever is wrong with it: retrieval's order is one, too.
    except Exception:
        LOG.exception("the first stage of the blend %s failed", blend.artifact)
        return found
    return found if order is None else replace(found, candidates=taken(found.candidates, order))
