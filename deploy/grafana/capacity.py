"""How much more can it do, what does it cost, and what will come? For whoever sizes it."""

from deploy.grafana.board import GATEWAYS, SERVERS, Board, Lines, Number, Query, Row
from deploy.grafana.expressions import GATEWAY, rate, ratio

ON_SERVER = 'instance=~"$server"'
BUSY = rate("tritonrank_lane_busy_seconds_total", ON_SERVER)
LANES = f"sum(tritonrank_lanes{{{ON_SERVER}}})"
NEEDED = "tritonrank_tokens_needed_total"
SCORED = "tritonrank_requests_scored_total"
ADAPT = "tritonrank_adapt_"
DOCUMENTS = "tritonrank_gateway_documents_total"

NOW = Row(
    "Now",
    [
        Number(title="Lanes busy", asks="Which share of the scorers' time is taken? Above 80% queues grow quickly.",
               unit="percentunit", queries=[Query(f"{BUSY} / {LANES}")], bad_from=0.8),
        Number(title="Queued work", asks="How many seconds of work wait? Scale on this one.", unit="s",
               queries=[Query(f"max(tritonrank_gateway_queued_seconds{{{GATEWAY}}})")], bad_from=1.0),
        Number(title="Candidates", asks="How many candidates are ranked?", unit="ops",
               queries=[Query(rate(DOCUMENTS))]),
        Number(title="Tokens of a request", asks="How large is the mean request?", unit="short",
               queries=[Query(ratio(NEEDED, SCORED, ON_SERVER))]),
        Number(title="Tokens per lane", asks="How many tokens does a scorer do in a second at work?", unit="ops",
               queries=[Query(f"{rate(NEEDED, ON_SERVER)} / {BUSY}")]),
        Number(title="Room left", asks="How many more tokens per second would fill the scorers?", unit="ops",
               queries=[Query(f"{rate(NEEDED, ON_SERVER)} * ({LANES} / {BUSY} - 1)")]),
    ],
)  # fmt: skip
LOAD = Row(
    "Load",
    [
        Lines(
            title="Lanes busy",
            asks="Which share of each Triton's scorers computes?",
            unit="percentunit",
            queries=[
                Query(
                    f"{rate('tritonrank_lane_busy_seconds_total', ON_SERVER, 'instance')}"
                    f" / sum by (instance) (tritonrank_lanes{{{ON_SERVER}}})",
                    "{{instance}}",
                )
            ],
            bad_from=0.8,
        ),
        Lines(
            title="Queued work",
            asks="How long would a new request wait, by the gateways and by the models' own gates?",
            unit="s",
            queries=[
                Query(f"max(tritonrank_gateway_queued_seconds{{{GATEWAY}}})", "gateway"),
                Query(f"max(tritonrank_queued_seconds{{{ON_SERVER}}})", "model"),
            ],
        ),
        Lines(
            title="Requests waiting",
            asks="How many wait at the gateways, and how many of them for a lane?",
            unit="short",
            queries=[
                Query(f"sum(tritonrank_gateway_in_flight{{{GATEWAY}}})", "in flight"),
                Query(f"sum(tritonrank_queued_requests{{{ON_SERVER}}})", "for a lane"),
            ],
        ),
        Lines(
            title="Tokens",
            asks="How much work comes?",
            unit="ops",
            queries=[Query(rate(NEEDED, ON_SERVER, "instance"), "{{instance}}")],
            is_stacked=True,
        ),
        Lines(
            title="Requests by number of candidates",
            asks="Of which size are they?",
            unit="reqps",
            queries=[Query(rate("tritonrank_gateway_request_tokens_count", by="candidates"), "{{candidates}}")],
            is_stacked=True,
        ),
        Lines(
            title="Candidates at each replica",
            asks="Is the load shared out evenly among the Tritons?",
            unit="short",
            queries=[Query(f"sum by (replica) (tritonrank_gateway_replica_candidates{{{GATEWAY}}})", "{{replica}}")],
        ),
    ],
)
MACHINE = Row(
    "Machine",
    [
        Lines(
            title="Processors",
            asks="Is there processor time left where Triton runs?",
            unit="percentunit",
            queries=[Query(f"nv_cpu_utilization{{{ON_SERVER}}}", "{{instance}}")],
            bad_from=0.9,
        ),
        Lines(
            title="Memory of the models",
            asks="How much memory do the models' processes hold, and does it grow?",
            unit="bytes",
            queries=[Query(f"tritonrank_resident_bytes{{{ON_SERVER}}}", "{{instance}} {{model}}")],
        ),
        Lines(
            title="Memory of the machine",
            asks="How much is in use where Triton runs?",
            unit="bytes",
            queries=[
                Query(f"nv_cpu_memory_used_bytes{{{ON_SERVER}}}", "{{instance}} used"),
                Query(f"nv_cpu_memory_total_bytes{{{ON_SERVER}}}", "{{instance}} total"),
            ],
        ),
    ],
)
FORECAST = Row(
    "Forecast and adaptation",
    [
        Lines(
            title="Arrivals, and those forecast",
            asks="What comes, and what is expected in a minute and in five? Shown with --adapt advise or act.",
            unit="reqps",
            queries=[
                Query(f"sum({ADAPT}arrivals{{{GATEWAY}}})", "now"),
                Query(f"sum by (ahead) ({ADAPT}forecast_arrivals{{{GATEWAY}}})", "in {{ahead}} s"),
            ],
        ),
        Lines(
            title="Utilisation by what comes",
            asks="How much of what can be ranked in full is asked for? From 100% on something has to give.",
            unit="percentunit",
            queries=[Query(f"max({ADAPT}utilisation{{{GATEWAY}}})", "asked for")],
            bad_from=1.0,
        ),
        Lines(
            title="Wished replicas",
            asks="How many replicas would do in full what will come? For HPA or KEDA.",
            unit="short",
            queries=[Query(f"max({ADAPT}wished_replicas{{{GATEWAY}}})", "wished")],
        ),
        Lines(
            title="Level",
            asks="Is it ranked in full (0), or more cheaply? The last level is retrieval's order.",
            unit="short",
            queries=[Query(f"max by (instance) ({ADAPT}level{{{GATEWAY}}})", "{{instance}}")],
            width=6,
        ),
        Lines(
            title="Quality of the level",
            asks="What does it cost? NDCG@10 in that of a full list, as the build measured it.",
            unit="percentunit",
            queries=[Query(f"min by (instance) ({ADAPT}quality{{{GATEWAY}}})", "{{instance}}")],
            width=6,
        ),
        Lines(
            title="Lists by level",
            asks="How many lists were made more cheaply?",
            unit="ops",
            queries=[Query(rate(f"{ADAPT}served_total", by="level"), "{{level}}")],
            is_stacked=True,
            width=6,
        ),
        Lines(
            title="Changes of the level",
            asks="Does it go to and fro, and why?",
            unit="ops",
            queries=[Query(rate(f"{ADAPT}changes_total", by="reason"), "{{reason}}")],
            width=6,
        ),
    ],
)

BOARD = Board(
    "capacity",
    "capacity",
    "How much more can it do, what does it cost, and what will come?",
    [NOW, LOAD, FORECAST, MACHINE],
    (GATEWAYS, SERVERS),
)
