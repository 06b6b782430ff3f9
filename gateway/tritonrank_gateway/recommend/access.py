"""What the handlers of recommending share: the recommender of a call, and its errors as refusals."""

from collections.abc import Iterator
from contextlib import contextmanager

from tritonrank_recommend.engine import (
    NoCatalogueError,
    NotKeptError,
    PageGoneError,
    Recommender,
    RequestError,
)
from tritonrank_recommend.stores.interface import StoreError

from tritonrank_gateway.call import Call
from tritonrank_gateway.dialects.own import error
from tritonrank_gateway.endpoint import Dialect
from tritonrank_gateway.refusal import Refusal

DIALECT = Dialect("recommend", error)
NO_CATALOGUE = (
    "this gateway has no catalogue; build one (a recipe with a `retrieval` section, then: tritonrank build RECIPE) and "
    "start the gateway with --catalogue artifacts/RECIPE/catalogue"
)
NO_STORE = "this gateway keeps nothing; start it with --store sqlite:FILE"
PAGE_GONE = "cursor: this list is no longer kept; ask for its first page again, without a cursor"


def recommender_of(call: Call) -> Recommender:
    """The recommender of a gateway that has a catalogue.

    Raises:
        Refusal: it has none.
    """
    recommender = call.gateway.recommender
    if recommender is None or not recommender.parts.catalogue.is_wanted:
        raise Refusal("off", NO_CATALOGUE)
    return recommender


def keeper_of(call: Call) -> Recommender:
    """The recommender of a gateway that has a store.

    Raises:
        Refusal: it has none.
    """
    recommender = call.gateway.recommender
    if recommender is None or recommender.parts.store is None:
        raise Refusal("off", NO_STORE)
    return recommender


@contextmanager
def refused() -> Iterator[None]:
    """Say the engine's errors as refusals.

    Raises:
        Refusal: what went wrong.
    """
    try:
        yield
    except RequestError as failure:
        raise Refusal("invalid", str(failure)) from failure
    except PageGoneError as failure:
        raise Refusal("gone", PAGE_GONE) from failure
    except NotKeptError as failure:
        raise Refusal("off", NO_STORE) from failure
    except NoCatalogueError as failure:
        said = f"the catalogue is {failure}; build it again: tritonrank build RECIPE"
        raise Refusal("unavailable", said) from failure
    except StoreError as failure:
        raise Refusal("unavailable", "the store does not answer; nothing was taken, send it again") from failure
