"""``python -m loadtests.silent``: a gateway that counts nothing, to tell what counting costs (``overhead.py``).

No setting of the product turns metrics off, so what would count is replaced before the gateway's modules take it.
"""

from pathlib import Path
from typing import Any

import prometheus_client

MODEL_FILE = "*/1/tritonrank_runtime/backend.py"
SILENT_TALLY = "\n\nTally.add = Tally.follow = lambda self, *told: None\n"


class Silent:
    """In place of a counter, a gauge or a histogram."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def labels(self, *_: Any, **__: Any) -> "Silent":
        return self

    def told(self, *_: Any, **__: Any) -> None:
        """Nothing is kept."""

    inc = observe = set = set_function = told


async def nothing(*_: Any) -> None:
    """Nothing is watched."""


def silence_models(repository: Path) -> None:
    """Let the models of a repository, a copy, tell the server nothing."""
    for path in repository.glob(MODEL_FILE):
        with path.open("a", encoding="utf-8") as file:
            file.write(SILENT_TALLY)


def main() -> None:
    """Serve as ``python -m tritonrank_gateway`` does."""
    for name in ("Counter", "Gauge", "Histogram"):
        setattr(prometheus_client, name, Silent)
    from tritonrank_gateway import __main__, process_metrics
    from tritonrank_gateway.quality import Quality
    from tritonrank_gateway.recommend.store_metrics import StoreMetrics

    for owner, names, instead in (
        (process_metrics, ("_watch",), nothing),
        (Quality, ("ranked", "shown", "took"), Silent.told),
        (StoreMetrics, ("_called",), Silent.told),
    ):
        for name in names:
            assert callable(getattr(owner, name)), "it has another name now"
            setattr(owner, name, instead)
    __main__.main()


if __name__ == "__main__":
    main()
