"""Where does a ranking's time go, is the engine well fed, and what did it leave out? Triton and our models in it."""

from deploy.grafana.board import MODELS, SERVERS, Board, Lines, Number, Query, Row
from deploy.grafana.expressions import SERVER, rate, ratio

SCORED = "tritonrank_requests_scored_total"
STEPS = ("tokenize", "queue", "score", "select")
HITS, MISSES = "tritonrank_context_cache_hits_total", "tritonrank_context_cache_misses_total"
TRITON_MICROSECONDS = "nv_inference_request_duration_us"
NEEDED, COMPUTED = "tritonrank_tokens_needed_total", "tritonrank_tokens_computed_total"
HIT_SHARE = f"{rate(HITS, SERVER)} / ({rate(HITS, SERVER)} + {rate(MISSES, SERVER)})"

NOW = Row(
    "Now",
    [
        Number(title="Ranked requests", asks="How many does the engine compute?", unit="reqps",
               queries=[Query(rate(SCORED, SERVER))]),
        Number(title="Tokens", asks="How much work is that? Padding is not counted.", unit="short",
               queries=[Query(rate(NEEDED, SERVER))]),
        Number(title="Requests per run", asks="How many requests are computed together? 1: nothing waits.",
               unit="short", queries=[Query(ratio(SCORED, "tritonrank_runs_total", SERVER))]),
        Number(title="Contexts kept", asks="How many contexts' keys and values were there already?",
               unit="percentunit", queries=[Query(HIT_SHARE)]),
        Number(title="Restarts", asks="How often was a part of the server lost since it was started?", unit="short",
               queries=[Query(f"max(tritonrank_server_restarts{{{SERVER}}})")], bad_from=1),
        Number(title="Replicas up", asks="Are all replicas of Triton in rotation?", unit="percentunit",
               queries=[Query("avg(tritonrank_gateway_replica_up)")], bad_below=1),
    ],
)  # fmt: skip
TIME = Row(
    "Where the time goes",
    [
        Lines(
            title="Seconds of a ranking, by step",
            asks="What is the mean request's time spent on? A queue that grows is load; the others are the machine.",
            unit="s",
            queries=[Query(ratio(f"tritonrank_{step}_seconds_total", SCORED, SERVER), step) for step in STEPS],
            is_stacked=True,
        ),
        Lines(
            title="Seconds worked per second, by step",
            asks="How many threads are at work, on what? Near the number of cores there is no more to come.",
            unit="short",
            queries=[
                Query(rate(f"tritonrank_{step}_seconds_total", SERVER), step) for step in STEPS if step != "queue"
            ],
            is_stacked=True,
        ),
        Lines(
            title="Seconds per thousand tokens",
            asks="Does a token cost what it cost yesterday? If not: another model, a busy neighbour, a throttled core.",
            unit="s",
            queries=[Query(f"1e3 * {ratio('tritonrank_score_seconds_total', NEEDED, SERVER, 'model')}", "{{model}}")],
        ),
        Lines(
            title="Seconds of a request, by Triton's clocks",
            asks="Does Triton itself see the same, its own queue and copies included?",
            unit="s",
            queries=[
                Query(
                    f"1e-6 * {ratio(TRITON_MICROSECONDS, 'nv_inference_request_success', SERVER, 'model')}", "{{model}}"
                )
            ],
        ),
        Lines(
            title="Pending in Triton",
            asks="How many requests has Triton taken that no model has begun?",
            unit="short",
            queries=[Query(f"sum by (model) (nv_inference_pending_request_count{{{SERVER}}})", "{{model}}")],
        ),
        Lines(
            title="Refused and expired",
            asks="Does the server refuse in time (refused), or too late (expired in the queue, stopped at work)?",
            unit="reqps",
            queries=[
                Query(rate("tritonrank_requests_rejected_total", SERVER, "reason"), "refused: {{reason}}"),
                Query(rate("tritonrank_requests_expired_total", SERVER), "expired"),
                Query(rate("tritonrank_requests_stopped_total", SERVER), "stopped"),
            ],
        ),
    ],
)
WORK = Row(
    "Work",
    [
        Lines(
            title="Tokens needed and computed",
            asks="How much is padding? Both lines on each other: none.",
            unit="short",
            queries=[Query(rate(NEEDED, SERVER), "needed"), Query(rate(COMPUTED, SERVER), "computed")],
        ),
        Lines(
            title="Requests per run",
            asks="Are batches filled when there is a queue?",
            unit="short",
            queries=[Query(ratio(SCORED, "tritonrank_runs_total", SERVER, "model"), "{{model}}")],
        ),
        Lines(
            title="Context cache",
            asks="How many contexts were there, how many had to be computed?",
            unit="ops",
            queries=[Query(rate(HITS, SERVER), "kept"), Query(rate(MISSES, SERVER), "computed")],
            is_stacked=True,
        ),
        Lines(
            title="Context cache, bytes",
            asks="Is the cache full?",
            unit="bytes",
            queries=[Query(f"sum by (instance) (tritonrank_context_cache_bytes{{{SERVER}}})", "{{instance}}")],
        ),
        Lines(
            title="Failures, by Triton's reasons",
            asks="Does Triton itself fail requests?",
            unit="reqps",
            queries=[Query(rate("nv_inference_request_failure", SERVER, "model, reason"), "{{model}} {{reason}}")],
        ),
        Lines(
            title="Texts cut, by field",
            asks="Which share of the texts did the ranker not read to the end?",
            unit="percentunit",
            queries=[
                Query(ratio("tritonrank_texts_cut_total", "tritonrank_texts_total", SERVER, "field"), "{{field}}")
            ],
        ),
    ],
)

BOARD = Board(
    "ranker",
    "ranker",
    "Where does a ranking's time go, is the engine well fed, and what did it leave out?",
    [NOW, TIME, WORK],
    (SERVERS, MODELS),
)
