"""Items that are like one: the catalogue's neighbours, with filters and the rules' blocks, and nothing of a user."""

import logging
from collections.abc import Mapping
from typing import Any

from tritonrank_recommend.catalogue.columns import FilterError
from tritonrank_recommend.engine.arrange import Situation
from tritonrank_recommend.engine.conditions import meets
from tritonrank_recommend.engine.errors import NoCatalogueError, RequestError
from tritonrank_recommend.engine.filters import check_filters, together
from tritonrank_recommend.engine.listing import Bounds, Heard, listed
from tritonrank_recommend.engine.pages import MOST_PINNED
from tritonrank_recommend.engine.parts import Parts
from tritonrank_recommend.engine.retrieval import Found
from tritonrank_recommend.engine.rules import Rules
from tritonrank_recommend.engine.shown import shown_from
from tritonrank_recommend.engine.threads import Work
from tritonrank_recommend.engine.wire import Recommended, SimilarAnswer

LOG = logging.getLogger("tritonrank_recommend")


async def similar_items(parts: Parts, work: Work, item_id: str, size: int, filters: Mapping[str, Any]) -> SimilarAnswer:
    """See ``Recommender.similar``; ``work`` computes in a thread."""
    rules, catalogue = parts.rules.rules, parts.catalogue.opened
    try:
        check_filters(filters)
    except FilterError as error:
        raise RequestError(str(error)) from None
    if catalogue is None:
        raise NoCatalogueError(parts.catalogue.problem or "missing")
    wanted, later = together(filters, rules.filters)

    def look() -> list[Recommended]:
        found = catalogue.similar(item_id, min(MOST_PINNED, size + len(rules.block.item_ids)), wanted)
        heard = Heard(Found(found, catalogue), None, None, "retrieval")
        shown = shown_from(listed(heard, Rules(), Situation(), Bounds()).entries, 0, size, catalogue, rules).items
        return [one for one in shown if meets(one.fields, later)]

    try:
        return SimilarAnswer(await work(look), {"catalogue": catalogue.artifact})
    except FilterError as error:
        raise RequestError(str(error)) from None
    except KeyError:
        raise
    # Whatever became of its files: who asks is told in words.
    except Exception as error:
        LOG.exception("the catalogue %s failed", catalogue.artifact)
        raise NoCatalogueError("damaged") from error
