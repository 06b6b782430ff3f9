"""docs/metrics.md and /metrics pages, as what can be compared."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

PAGE = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
ELSEWHERE = "Elsewhere only"
"""The section of what no test machine has."""
RECOMMEND = "The model recommend in Triton"
"""The section of what only a repository with a catalogue has."""
ROLLOUT = "Rollouts"
"""The section of what only the controller of a rollout has."""
LEARNING = "Learning"
"""The section of the file that nights leave."""
OWN_LABELS = {"le", "quantile"}


@dataclass
class Metric:
    """What a page says of a metric."""

    kind: str
    labels: set[str] = field(default_factory=set)
    has_samples: bool = False


def documented(section: str = "") -> dict[str, Metric]:
    """By name: of one section, or of all but ELSEWHERE, RECOMMEND, ROLLOUT and LEARNING."""
    found: dict[str, Metric] = {}
    for part in re.split(r"^## ", PAGE, flags=re.MULTILINE):
        title = part.partition("\n")[0]
        if (title == section) if section else title not in {ELSEWHERE, RECOMMEND, ROLLOUT, LEARNING}:
            for line in part.splitlines():
                if row := re.match(r"\| `([a-z0-9_]+)` \| (\w+), [^|]+ \|([^|]*)\| \S", line):
                    assert row[1] not in found, f"{row[1]} is told twice"
                    found[row[1]] = Metric(row[2], {*re.findall(r"`(\w+)`", row[3])})
    return found


def told(page: str) -> dict[str, Metric]:
    """What a /metrics page has, by the names that PromQL knows."""
    found: dict[str, Metric] = {}
    for family in text_string_to_metric_families(page):
        one = Metric(family.type)
        for sample in family.samples:
            one.labels |= {*sample.labels} - OWN_LABELS
            one.has_samples = True
        is_counter = family.type == "counter" and f"# TYPE {family.name}_total" in page
        found[f"{family.name}_total" if is_counter else family.name] = one
    return found
