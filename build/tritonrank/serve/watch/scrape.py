"""A metrics page as it is now: values by name and labels, and what two of them say about the time between.

Counters that were set back (the server was started again) count from 0 on, as Prometheus counts them.
"""

import math
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tritonrank.errors import ServerError

LARGEST_PAGE_BYTES = 16 * 2**20
READ_SECONDS = 2.0
Labels = Mapping[str, str]


@dataclass(frozen=True)
class Scrape:
    """One look at one page.

    Attributes:
        url: of the page.
        at: time.monotonic() of the look.
        samples: labels and value of each sample by its name.
        problem: why there are none; "" where there are.
    """

    url: str
    at: float
    samples: Mapping[str, Sequence[tuple[Labels, float]]] = field(default_factory=dict)
    problem: str = ""

    def values(self, name: str, **labels: str) -> Iterator[tuple[Labels, float]]:
        """Samples that have these labels."""
        for found, value in self.samples.get(name, ()):
            if all(found.get(label) == wanted for label, wanted in labels.items()):
                yield found, value


def read_page(url: str) -> Scrape:
    """Look at a page; one that cannot be read says why.

    Raises:
        ServerError: the library that reads such pages is not installed.
    """
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ModuleNotFoundError as error:
        raise ServerError(f"{error.name} is not installed: pip install 'tritonrank[gateway]'") from None
    at = time.monotonic()
    try:
        with urllib.request.urlopen(url, timeout=READ_SECONDS) as page:
            body = page.read(LARGEST_PAGE_BYTES + 1)
        if len(body) > LARGEST_PAGE_BYTES:
            return Scrape(url, at, problem=f"the page has more than {LARGEST_PAGE_BYTES} bytes")
        samples: dict[str, list[tuple[Labels, float]]] = defaultdict(list)
        for family in text_string_to_metric_families(body.decode()):
            for sample in family.samples:
                samples[sample.name].append((sample.labels, sample.value))
    except urllib.error.HTTPError as error:
        return Scrape(url, at, problem=f"status {error.code}")
    except (OSError, urllib.error.URLError) as error:
        return Scrape(url, at, problem=str(getattr(error, "reason", error)))
    except ValueError:
        return Scrape(url, at, problem="no metrics page")
    return Scrape(url, at, samples) if samples else Scrape(url, at, problem="no metrics page")


class Span:
    """What happened between two looks at the same pages.

    Args:
        earlier, later: of each page, by URL; a page without an earlier look says nothing about rates.
    """

    def __init__(self, earlier: Mapping[str, Scrape], later: Mapping[str, Scrape]) -> None:
        self.later = [page for page in later.values() if not page.problem]
        pairs = [(earlier[page.url], page) for page in self.later if page.url in earlier]
        self._pairs = [pair for pair in pairs if not pair[0].problem and pair[1].at > pair[0].at]

    @property
    def seconds(self) -> float:
        """Between the looks; 0 where there was one only."""
        return max((later.at - earlier.at for earlier, later in self._pairs), default=0.0)

    def now(self, name: str, **labels: str) -> list[tuple[Labels, float]]:
        """Samples of the later look."""
        return [one for page in self.later for one in page.values(name, **labels)]

    def gauge(self, name: str, **labels: str) -> float | None:
        """The sum of a gauge over the pages; None where nobody has it, or it is NaN."""
        found = [value for _, value in self.now(name, **labels) if not math.isnan(value)]
        return sum(found) if found else None

    def raised(self, name: str, label: str = "", **labels: str) -> dict[str, float]:
        """How much a counter rose, by the values of one label; by "" in all where none is named."""
        rose: dict[str, float] = defaultdict(float)
        for earlier, later in self._pairs:
            before = {frozenset(found.items()): value for found, value in earlier.values(name, **labels)}
            for found, value in later.values(name, **labels):
                was = before.get(frozenset(found.items()), 0.0)
                rose[found.get(label, "")] += value - was if value >= was else value
        return dict(rose)

    def rose(self, name: str, **labels: str) -> float:
        """How much a counter rose in all."""
        return sum(self.raised(name, **labels).values())

    def rate(self, name: str, **labels: str) -> float:
        """The same in a second."""
        return self.rose(name, **labels) / self.seconds if self.seconds else 0.0

    def mean(self, name: str, **labels: str) -> float | None:
        """Of a histogram's observations in between; None where there was none."""
        count = self.rose(f"{name}_count", **labels)
        return self.rose(f"{name}_sum", **labels) / count if count else None

    def quantile(self, name: str, share: float, **labels: str) -> float | None:
        """Of a histogram's observations in between, interpolated within its buckets; None where there was none."""
        buckets = sorted((float(most), rose) for most, rose in self.raised(f"{name}_bucket", "le", **labels).items())
        if not buckets or not buckets[-1][1]:
            return None
        wanted, least, below = share * buckets[-1][1], 0.0, 0.0
        for most, reached in buckets:
            if reached >= wanted:
                if math.isinf(most):
                    return least  # as Prometheus has it: the largest bound that is known
                return least + (most - least) * (wanted - below) / (reached - below) if reached > below else most
            least, below = most, reached
        return least
