"""What the gate counts (``admission.py``): texts read and cut, requests refused, and the queue as it is now.

It is the same where tokenizer and scorers are one process (``ranker``) and where they are several (``tokenize``).
"""

import datetime
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tritonrank_runtime.admission import Admission, QueueFullError, RefusedError, TooLongError
from tritonrank_runtime.backend import Tally, family

MANIFEST = "manifest.json"
MEBIBYTE = 2**20
REFUSALS = (QueueFullError, TooLongError)


class GateMetrics:
    """Counters and gauges of one model with a gate.

    Args:
        tally: tells the server.
        labels: of the model.
        fields: names of the texts that are counted, such as query and items.
        admission: whose queue is shown.
    """

    def __init__(self, tally: Tally, labels: Mapping[str, str], fields: list[str], admission: Admission) -> None:
        self._tally, self._labels = tally, dict(labels)
        self._rejected = self._by(
            "reason",
            [refusal.reason for refusal in REFUSALS],
            "tritonrank_requests_rejected_total",
            "Requests refused because they could not be done in time: behind others (queue_full), or alone (too_long)",
        )
        self._without_text = self.counter(
            "tritonrank_items_without_text_total", "Candidates ranked last because they have no text"
        )
        self._texts = self._by("field", fields, "tritonrank_texts_total", "Texts of the requests")
        self._cut = self._by(
            "field",
            fields,
            "tritonrank_texts_cut_total",
            "Texts that the ranker read in part or not at all: a budget ended",
        )
        restarts = self.gauge("tritonrank_server_restarts", "Times that a part was lost and the server came back")
        restarts.set(float(os.environ.get("TRITONRANK_RESTARTS", "0")))
        tally.follow(
            [
                self.gauge("tritonrank_queued_requests", "Admitted requests that no lane has taken"),
                self.gauge("tritonrank_queued_seconds", "Estimated seconds of work that wait or are computed"),
                self.gauge("tritonrank_lanes", "Lanes (scorers) that there are"),
                self.gauge("tritonrank_lanes_busy", "Lanes (scorers) that compute now"),
            ],
            admission.queue,
        )
        memory = self.gauge("tritonrank_resident_bytes", "Memory of the model's process")
        tally.follow([memory], lambda: [resident_bytes()])

    def refused(self, error: RefusedError) -> None:
        """A request was not taken."""
        self._tally.add(self._rejected[error.reason], 1)

    def read(self, without_text: int, counts: Mapping[str, Any]) -> None:
        """A request was read.

        Args:
            without_text: candidates that have none.
            counts: texts by field, ``total`` and ``cut``; they begin again at 0.
        """
        self._tally.add(self._without_text, without_text)
        for name, count in counts.items():
            self._tally.add(self._texts[name], count.total)
            self._tally.add(self._cut[name], count.cut)
            count.total = count.cut = 0

    def counter(self, name: str, said: str) -> Any:
        return self._tally.keep(family(name, said)).Metric(labels=self._labels)

    def gauge(self, name: str, said: str) -> Any:
        return self._tally.keep(family(name, said, "GAUGE")).Metric(labels=self._labels)

    def _by(self, label: str, values: list[str], name: str, said: str) -> dict[str, Any]:
        """One counter for each value of a label."""
        of_all = self._tally.keep(family(name, said))
        return {value: of_all.Metric(labels=self._labels | {label: value}) for value in values}


def resident_bytes() -> float:
    """Memory of this process that is in RAM, in whole MiB so that few changes have to be told; 0 where the system does
    not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") // MEBIBYTE * MEBIBYTE
    except (OSError, ValueError, IndexError):
        return 0.0


def artifact_gauges(labels: Mapping[str, str], artifact: str, model: Path) -> list[Any]:
    """Which artifact answers, and when its repository was assembled; what is given back must outlive the model.

    Args:
        labels: of the model.
        artifact: as answers name it.
        model: its folder. The manifest is in it, where the server shows several repositories, or beside it; without
            one, as in a hand-made folder, nobody knows when.
    """
    moments = {"tritonrank_artifact_info": ("The artifact that answers; always 1", 1.0)}
    if created := _created(model / MANIFEST) or _created(model.parent / MANIFEST):
        moments["tritonrank_artifact_created_seconds"] = "When its repository was assembled, unix seconds", created
    kept = []
    for name, (said, value) in moments.items():
        of_all = family(name, said, "GAUGE")
        one = of_all.Metric(labels=dict(labels) | {"artifact": artifact})
        one.set(value)
        kept += [of_all, one]
    return kept


def _created(manifest: Path) -> float:
    try:
        return datetime.datetime.fromisoformat(json.loads(manifest.read_bytes())["created"]).timestamp()
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
