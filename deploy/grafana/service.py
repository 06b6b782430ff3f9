"""Is it up, is it fast, does it answer? The page to open first."""

from deploy.grafana.board import Bars, Board, Heat, Lines, Number, Query, Row
from deploy.grafana.expressions import GATEWAY, growth, quantile, rate, share

REQUESTS = "tritonrank_gateway_requests_total"
SECONDS = "tritonrank_gateway_request_seconds"
OURS = f'{GATEWAY}, outcome=~"refused|expired|failed"'
"""Outcomes that are this service's doing and not the caller's."""
RANKED = f'{GATEWAY}, artifact!=""'
IS_GATEWAY = "and on(instance) tritonrank_gateway_in_flight"

NOW = Row(
    "Now",
    [
        Number(title="Requests", asks="How many requests come in?", unit="reqps", queries=[Query(rate(REQUESTS))]),
        Number(
            title="Answered",
            asks="Which share of the requests that could be answered was? Below 99.9% somebody should look.",
            unit="percentunit",
            queries=[Query(f"1 - ({share(REQUESTS, OURS, GATEWAY)})")],
            bad_below=0.999,
        ),
        Number(
            title="Answered in full",
            asks="Which share was answered with all its parts: the ranker, the catalogue, the profile?",
            unit="percentunit",
            queries=[
                Query(share(REQUESTS, f'{GATEWAY}, outcome="answered"', f'{GATEWAY}, outcome=~"answered|degraded"'))
            ],
            bad_below=0.99,
        ),
        Number(
            title="p99 of a ranking",
            asks="How long do the slowest hundredth of the ranked requests take?",
            unit="s",
            queries=[Query(quantile(0.99, SECONDS, RANKED))],
        ),
        Number(
            title="Queued work",
            asks="How many seconds of work wait? What comes now waits as long. Autoscaling needs no other figure.",
            unit="s",
            queries=[Query(f"max(tritonrank_gateway_queued_seconds{{{GATEWAY}}})")],
            bad_from=1.0,
        ),
        Number(
            title="In flight",
            asks="How many requests wait for an answer?",
            unit="short",
            queries=[Query(f"sum(tritonrank_gateway_in_flight{{{GATEWAY}}})")],
        ),
    ],
)
LATENCY = Row(
    "Latency",
    [
        Heat(
            title="Seconds of a request",
            asks="How are all answers' times distributed? Dots are requests with a trace.",
            unit="s",
            queries=[Query(growth(SECONDS), has_exemplars=True)],
        ),
        Lines(
            title="Percentiles of a ranking",
            asks="Do the slow ones grow slower (a queue), or all of them (the machine, the model)?",
            unit="s",
            queries=[Query(quantile(one, SECONDS, RANKED), f"p{100 * one:g}") for one in (0.5, 0.95, 0.99)],
        ),
        Lines(
            title="p95 by route",
            asks="Which callers feel it?",
            unit="s",
            queries=[Query(quantile(0.95, SECONDS, GATEWAY, "route"), "{{route}}")],
        ),
        Lines(
            title="p95 by number of candidates",
            asks="Is it the large requests?",
            unit="s",
            queries=[Query(quantile(0.95, SECONDS, RANKED, "candidates"), "{{candidates}}")],
        ),
        Lines(
            title="Waiting before ranking",
            asks="How much of the time is a queue? Estimated seconds of work before an admitted request.",
            unit="s",
            queries=[
                Query(quantile(one, "tritonrank_gateway_queue_seconds", RANKED), f"p{100 * one:g}")
                for one in (0.5, 0.99)
            ],
        ),
        Lines(
            title="Event loop late",
            asks="Does something hold the gateway's one loop, so that everybody waits?",
            unit="s",
            queries=[
                Query(quantile(0.99, "tritonrank_gateway_loop_late_seconds", GATEWAY, "instance"), "{{instance}} p99")
            ],
        ),
    ],
)
ANSWERS = Row(
    "Answers",
    [
        Lines(
            title="Requests by what became of them",
            asks="Since when, and what: no room (refused), no time (expired), faults (failed), or callers' mistakes "
            "(invalid)?",
            unit="reqps",
            queries=[Query(rate(REQUESTS, by="outcome"), "{{outcome}}")],
            is_stacked=True,
        ),
        Lines(
            title="Without a ranking, by reason",
            asks="Why did requests get no ranking?",
            unit="reqps",
            queries=[Query(rate("tritonrank_gateway_refused_total", by="reason"), "{{reason}}")],
        ),
        Lines(
            title="Degraded, by what was missing",
            asks="Which part was late or gone when an answer was made without it?",
            unit="reqps",
            queries=[Query(rate("tritonrank_gateway_degraded_total", by="reason"), "{{reason}}")],
        ),
        Lines(
            title="Requests by route",
            asks="Who calls, and what?",
            unit="reqps",
            queries=[Query(rate(REQUESTS, by="route"), "{{route}}")],
            is_stacked=True,
        ),
        Lines(
            title="Result cache",
            asks="How many requests does Triton not see?",
            unit="reqps",
            queries=[Query(rate("tritonrank_gateway_cache_requests_total", by="result"), "{{result}}")],
        ),
        Bars(
            title="Release and artifact",
            asks="What serves? More than one line outside a rollout is a gateway that was left behind.",
            unit="short",
            queries=[
                Query(
                    f"count by (version, artifact) (tritonrank_gateway_info{{{GATEWAY}}})", "{{version}}, {{artifact}}"
                )
            ],
        ),
    ],
)
BUDGETS = Row(
    "Error budgets and alerts, by the rules of deploy/prometheus",
    [
        Lines(
            title=f"Bad requests, {window}",
            asks=f"Which share missed an objective of loadtests/slo*.yaml in {words}?",
            unit="percentunit",
            width=6,
            queries=[
                Query(
                    f"max by (service, objective) (job:tritonrank_objective_bad:ratio{window})",
                    "{{service}} {{objective}}",
                )
            ],
        )
        for window, words in (("5m", "five minutes"), ("1h", "an hour"), ("6h", "six hours"))
    ]
    + [
        Bars(
            title="Firing",
            asks="Which alerts fire? docs/alerts.md says what to type. The watchdog always does: alerts are looked at.",
            unit="short",
            queries=[
                Query(
                    'count by (alertname, severity) (ALERTS{system="tritonrank", alertstate="firing"})',
                    "{{alertname}} ({{severity}})",
                )
            ],
            width=6,
        )
    ],
)
PROCESS = Row(
    "Gateways",
    [
        Lines(
            title="Memory",
            asks="Does it grow without end?",
            unit="bytes",
            queries=[Query(f"process_resident_memory_bytes{{{GATEWAY}}} {IS_GATEWAY}", "{{instance}}")],
        ),
        Lines(
            title="Processor",
            asks="Is the gateway itself the limit? One process does at most 1.",
            unit="short",
            queries=[
                Query(f"rate(process_cpu_seconds_total{{{GATEWAY}}}[$__rate_interval]) {IS_GATEWAY}", "{{instance}}")
            ],
        ),
        Lines(
            title="Open files",
            asks="Which share of the file descriptors that it may open is open?",
            unit="percentunit",
            queries=[
                Query(f"process_open_fds{{{GATEWAY}}} / process_max_fds{{{GATEWAY}}} {IS_GATEWAY}", "{{instance}}")
            ],
            bad_from=0.8,
        ),
    ],
)

ROLLOUT = Row(
    "Rollout of a new version",
    [
        Bars(
            title="Phase",
            asks="Where is it? Back: it was taken back, and users have what they had.",
            unit="short",
            queries=[Query("max by (phase) (tritonrank_rollout_phase) > 0", "{{phase}}")],
        ),
        Lines(
            title="Users of the canary",
            asks="Which share of the users does the new version answer, and which share of the rankings did it give?",
            unit="percentunit",
            queries=[
                Query("max(tritonrank_rollout_share)", "users"),
                Query("max(tritonrank_rollout_exposed)", "rankings"),
            ],
        ),
        Lines(
            title="Agreement with live",
            asks="How much do its lists overlap with live's? Near the limit it is taken back.",
            unit="percentunit",
            queries=[
                Query('max by (rule) (tritonrank_rollout_reading{rule=~"least_overlap|least_top_ten"})', "{{rule}}"),
                Query(
                    'max by (rule) (tritonrank_rollout_limit{rule=~"least_overlap|least_top_ten"})', "{{rule}}, limit"
                ),
            ],
        ),
        Lines(
            title="Latency by live's",
            asks="How many times as long as live's do its rankings take?",
            unit="short",
            queries=[
                Query('max by (of) (tritonrank_rollout_reading{rule="most_latency_ratio"})', "{{of}}"),
                Query('max(tritonrank_rollout_limit{rule="most_latency_ratio"})', "limit"),
            ],
        ),
        Lines(
            title="Not ranked, errors, degraded",
            asks="Which share of what it was asked for did it not give, or give worse than live?",
            unit="percentunit",
            queries=[
                Query(
                    'max by (rule) (tritonrank_rollout_reading{rule=~"most_not_ranked|most_error_excess|'
                    'most_degraded_excess"})',
                    "{{rule}}",
                )
            ],
        ),
        Lines(
            title="Decisions",
            asks="What was decided, by which rule, or by whom?",
            unit="short",
            queries=[
                Query(
                    "sum by (decision, rule) (increase(tritonrank_rollout_decisions_total[$__rate_interval]))",
                    "{{decision}} ({{rule}})",
                )
            ],
        ),
    ],
)

BOARD = Board(
    "service", "service", "Is it up, is it fast, does it answer?", [NOW, LATENCY, ANSWERS, BUDGETS, PROCESS, ROLLOUT]
)
