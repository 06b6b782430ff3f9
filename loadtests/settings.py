"""What a load needs to know, and how Locust's command line and web page say it.

The verbs of ``python -m loadtests`` fill in the same settings and start Locust with them, so both ways mean the same.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.checks import GoldenRequest, read_golden
from loadtests.dialects import DIALECTS, VISITS
from loadtests.shapes import SHAPES, Plan, PlanError, plan_of, read_plan
from loadtests.workload import WorkloadRequest, cut_to, read_workload

SENDER_MARGIN = 1.25
FEWEST_SENDERS = 16
MOST_SENDERS = 2_000


@dataclass(frozen=True)
class LoadSettings:
    """Everything about a load but the server.

    Attributes:
        workload: file of ``tritonrank workload``.
        plan: when requests are due.
        deadline_seconds: given to each request; a later answer is no good.
        candidates: of each request, cut from those that have as many; None: as they are.
        golden: file or folder with golden requests; None: none are sent.
        senders: requests in flight at once at the most; None: as many as the deadline allows at the highest rate.
        run_file: where the results go; None: nowhere but to Locust.
        name: of the run.
        sent_before: requests of the workload that the server was sent already; the load begins behind them.
        dialect: that a gateway is spoken to in; empty: tensors.
        gateway: its URL.
        visitors: of visits, users of the store for each one of the workload.
    """

    workload: Path
    plan: Plan
    deadline_seconds: float = 2.0
    candidates: int | None = None
    golden: Path | None = None
    senders: int | None = None
    run_file: Path | None = None
    name: str = ""
    sent_before: int = 0
    dialect: str = ""
    gateway: str = ""
    visitors: int = 1

    def read_requests(self) -> list[WorkloadRequest]:
        """The workload, cut to the wanted candidates.

        Raises:
            WorkloadError: the file cannot be used.
        """
        requests = read_workload(self.workload)
        return cut_to(requests, self.candidates, self.workload) if self.candidates else requests

    def read_golden(self) -> list[GoldenRequest]:
        """Golden requests, if there shall be any.

        Raises:
            WorkloadError: the file cannot be used.
        """
        return read_golden(self.golden) if self.golden else []

    def sender_count(self) -> int:
        """Enough for every request to wait until its deadline (Little's law), or one for each client."""
        if self.plan.clients is not None:
            return self.plan.clients
        needed = math.ceil(SENDER_MARGIN * self.plan.most_per_second * self.deadline_seconds)
        return self.senders or min(MOST_SENDERS, max(FEWEST_SENDERS, needed))

    def arguments(self, plan_file: Path) -> list[str]:
        """Locust's arguments for these settings; the plan has to be written to ``plan_file``."""
        values = {
            "workload": self.workload,
            "plan": plan_file,
            "deadline-ms": f"{1_000 * self.deadline_seconds:g}",
            "candidates": self.candidates,
            "golden": self.golden,
            "senders": self.senders,
            "run-file": self.run_file,
            "run-name": self.name or None,
            "sent-before": self.sent_before or None,
            "dialect": self.dialect or None,
            "visitors": self.visitors if self.visitors > 1 else None,
        }
        return [part for name, value in values.items() if value is not None for part in (f"--{name}", str(value))]


def add_arguments(parser: Any) -> None:
    """What Locust's command line and web page ask for; ``parser`` is Locust's own."""
    parser.add_argument("--workload", default="workload.jsonl", help="what `tritonrank workload` wrote")
    parser.add_argument("--shape", default="steady", choices=SHAPES, help="how the rate changes")
    parser.add_argument("--rate", type=float, default=5.0, help="requests per second; of overload: saturation")
    parser.add_argument("--seconds", type=float, default=60.0, help="of all phases that count")
    parser.add_argument("--warm-up", type=float, default=5.0, help="seconds before, which do not count")
    parser.add_argument("--peak", type=float, default=3.0, help="times the rate, of spike and overload")
    parser.add_argument(
        "--clients", type=int, default=0, help="of the shape closed, each waiting for its answers; 0: --users, or one"
    )
    parser.add_argument("--deadline-ms", type=float, default=2_000.0, help="of each request; later answers are no good")
    parser.add_argument("--candidates", type=int, default=0, help="cut every request to so many; 0: as they are")
    parser.add_argument("--golden", default="", help="golden.json or its repository: their scores have to be right")
    parser.add_argument(
        "--senders", type=int, default=0, help="requests in flight at once at the most; 0: --users, or by deadline"
    )
    parser.add_argument("--sent-before", type=int, default=0, help="requests of the workload to begin behind")
    parser.add_argument(
        "--dialect", default="", choices=("", *DIALECTS, VISITS), help="of a gateway; empty: tensors of Triton"
    )
    parser.add_argument(
        "--visitors", type=int, default=1, help="of visits: users of the store for each one of the workload"
    )
    parser.add_argument("--plan", default="", include_in_web_ui=False, help="JSON file of phases, instead of a shape")
    parser.add_argument("--run-file", default="", include_in_web_ui=False, help="JSON file for the results")
    parser.add_argument("--run-name", default="", include_in_web_ui=False, help="of the run in that file")


def settings_of(options: Any) -> LoadSettings:
    """The settings behind Locust's options.

    Raises:
        PlanError: the shape or a number is wrong, or two options contradict each other.
    """
    if options.run_time:
        raise PlanError(f"--run-time {options.run_time}: the plan says when it ends; use --seconds and --warm-up")
    is_closed = options.shape == "closed" and not options.plan
    clients = options.clients or options.num_users or 1
    senders = options.senders or (0 if is_closed else options.num_users) or None
    told = clients if is_closed else senders
    if options.num_users and options.num_users != told:
        other = "--clients" if is_closed else "--senders"
        raise PlanError(f"--users {options.num_users} and {other} {told} are the same thing; give one of them")
    if options.plan:
        plan = read_plan(Path(options.plan))
    else:
        plan = plan_of(
            options.shape,
            rate=options.rate,
            seconds=options.seconds,
            warm_up_seconds=options.warm_up,
            peak=options.peak,
            clients=clients,
        )
    if not options.deadline_ms > 0:
        raise PlanError(f"--deadline-ms {options.deadline_ms}: expected milliseconds above 0")
    return LoadSettings(
        workload=Path(options.workload),
        plan=plan,
        deadline_seconds=options.deadline_ms / 1_000,
        candidates=options.candidates or None,
        golden=Path(options.golden) if options.golden else None,
        senders=senders,
        run_file=Path(options.run_file) if options.run_file else None,
        name=options.run_name,
        sent_before=max(0, options.sent_before),
        dialect=options.dialect,
        visitors=max(1, options.visitors),
    )
