"""Ask a tritonrank server for a ranking, or for what a user should see.

Two clients with the same methods and the same typed results: `RankClient` blocks, `AsyncRankClient` is for
asyncio. Each speaks gRPC or HTTP; the scheme of the URL decides::

    with RankClient("grpc://127.0.0.1:8001") as client:
        result = client.rank(query="space opera", items=["Alien", "Solaris", "Amélie"], top_k=2)
        for place in result.ranking:
            print(place.score, place.item)

Everything public is on this page; the modules behind it may move. Only numpy and tritonclient are needed
(the command line, extra ``cli``, needs typer and rich as well): no torch, no transformers, no tritonrank.
"""

from importlib.metadata import version

from ._async_client import AsyncRankClient
from ._client import RankClient
from ._errors import DeadlineExceeded, InvalidRequest, Overloaded, RankError, ServerFault, Unavailable
from ._open import open, open_async
from ._options import TLS, KeepAlive, Retry
from ._recommend_results import (
    Event,
    EventsTaken,
    Explanation,
    Explanations,
    ItemsChanged,
    Reason,
    Recommendations,
    RecommendedItem,
    SimilarItems,
)
from ._results import NO_TEXT_SCORE, Health, ModelInfo, RankedItem, RankResult, TensorInfo
from ._wire import encode_item

__all__ = [
    "NO_TEXT_SCORE",
    "TLS",
    "AsyncRankClient",
    "DeadlineExceeded",
    "Event",
    "EventsTaken",
    "Explanation",
    "Explanations",
    "Health",
    "InvalidRequest",
    "ItemsChanged",
    "KeepAlive",
    "ModelInfo",
    "Overloaded",
    "RankClient",
    "RankError",
    "RankResult",
    "RankedItem",
    "Reason",
    "Recommendations",
    "RecommendedItem",
    "Retry",
    "ServerFault",
    "SimilarItems",
    "TensorInfo",
    "Unavailable",
    "__version__",
    "encode_item",
    "open",
    "open_async",
]

__version__ = version("tritonrank")

# A traceback should name the public place, `tritonrank_client.Overloaded`, not the module that defines it.
for _name in __all__:
    if not _name.startswith("_") and _name != "NO_TEXT_SCORE":
        globals()[_name].__module__ = __name__
