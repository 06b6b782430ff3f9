"""Does it learn, is what it learns better, and does what it learns from arrive? Nights, and the stream of events."""

from deploy.grafana.board import GATEWAYS, RECIPES, Bars, Board, Lines, Number, Query, Row
from deploy.grafana.expressions import GATEWAY, rate

NAME = "tritonrank_learn_"
RECIPE = 'recipe=~"$recipe"'
STREAM = "tritonrank_gateway_events_stream_"
WITHOUT_SECONDS = 3 * 86_400
"""As the alert NothingLearnt has it."""
LAG_SECONDS = 60
"""As the alert EventsStreamBehind has it."""


def _events(of: str) -> str:
    """Those that the last night's inspection looked at."""
    return f'sum({NAME}events{{{RECIPE}, of="{of}"}})'


NOW = Row(
    "Now",
    [
        Number(title="Last accepted night", asks="How long ago did it end? Red: nothing learnt for three days.",
               unit="s", bad_from=WITHOUT_SECONDS,
               queries=[Query(f'time() - max({NAME}ended_timestamp_seconds{{{RECIPE}, outcome="accepted"}})')]),
        Number(title="Refused or failed since", asks="How many nights came to nothing since the last accepted one?",
               unit="short", queries=[Query(f"max({NAME}since_accepted{{{RECIPE}}})")], bad_from=1),
        Number(title="Last night took", asks="How long, all steps together?", unit="s",
               queries=[Query(f"max(sum by (recipe) ({NAME}step_seconds{{{RECIPE}}}))")]),
        Number(title="Events left out", asks="Which share did the last night's inspection not let in?",
               unit="percentunit", queries=[Query(f"{_events('left_out')} / {_events('seen')}")]),
        Number(title="Stream behind", asks="How long has the oldest event waited for the store? Red: over a minute.",
               unit="s", queries=[Query(f"max({STREAM}lag_seconds{{{GATEWAY}}})")], bad_from=LAG_SECONDS),
        Number(title="Dead letters in an hour", asks="How many messages could nobody take? Red: any.", unit="short",
               queries=[Query(f"sum(increase({STREAM}dead_letters_total{{{GATEWAY}}}[1h]))")], bad_from=1),
    ],
)  # fmt: skip
JUDGED = Row(
    "The last night's judge",
    [
        Lines(
            title="Change of NDCG@10, by judged set",
            asks="Is the new ranker better (above 0), and beyond chance: is the whole interval of 95% on one side?",
            unit="percentunit",
            queries=[
                Query(f'- {NAME}drop{{{RECIPE}, end="mean"}}', "{{set}}"),
                Query(f'- {NAME}drop{{{RECIPE}, end="high"}}', "{{set}}, at least"),
                Query(f'- {NAME}drop{{{RECIPE}, end="low"}}', "{{set}}, at most"),
            ],
            has_negatives=True,
        ),
        Lines(
            title="NDCG@10 of live and new ranker",
            asks="How well do both do, night by night? A live ranker that falls on newest lists is a taste that moved.",
            unit="short",
            queries=[Query(f"{NAME}ndcg_at_10{{{RECIPE}}}", "{{set}}, {{ranker}}")],
        ),
        Bars(
            title="What the inspection found",
            asks="Bots, copies, days that are not like others? Those that refuse are why there was nothing to judge.",
            unit="short",
            queries=[Query(f"sum by (check, refuses) ({NAME}findings{{{RECIPE}}})", "{{check}}, refuses: {{refuses}}")],
        ),
    ],
)
NIGHTS = Row(
    "Nights",
    [
        Lines(
            title="Nights by how they ended",
            asks="Are nights accepted? Lines of refused and failed ones should be flat.",
            unit="short",
            queries=[Query(f"sum by (outcome) ({NAME}nights{{{RECIPE}}})", "{{outcome}}")],
        ),
        Lines(
            title="Seconds of a night, by step",
            asks="What does a night take its time for, and does it grow with the log?",
            unit="s",
            queries=[Query(f"sum by (step) ({NAME}step_seconds{{{RECIPE}}})", "{{step}}")],
            is_stacked=True,
        ),
        Lines(
            title="Events looked through",
            asks="How much was there to learn, and how much of it was left out?",
            unit="short",
            queries=[Query(f"sum by (of) ({NAME}events{{{RECIPE}}})", "{{of}}")],
        ),
    ],
)
STREAMING = Row(
    "Stream of events",
    [
        Lines(
            title="Stream behind",
            asks="How long has the oldest event waited that no profile and no counter knows?",
            unit="s",
            queries=[Query(f"max({STREAM}lag_seconds{{{GATEWAY}}})", "oldest")],
            bad_from=LAG_SECONDS,
        ),
        Lines(
            title="Messages in the stream",
            asks="How many wait, and how many are held to be read again?",
            unit="short",
            queries=[
                Query(f"max({STREAM}lag_messages{{{GATEWAY}}})", "waiting"),
                Query(f"max({STREAM}length{{{GATEWAY}}})", "held"),
            ],
        ),
        Lines(
            title="Messages, by gateway",
            asks="Who brings them into the store? Gateways share the work.",
            unit="ops",
            queries=[Query(rate(f"{STREAM}messages_total", by="instance"), "{{instance}}")],
            is_stacked=True,
        ),
        Lines(
            title="Events of other systems",
            asks="Do they arrive, and how often twice?",
            unit="ops",
            queries=[
                Query(rate(f"{STREAM}events_total"), "new"),
                Query(rate(f"{STREAM}duplicates_total"), "known already"),
            ],
            is_stacked=True,
        ),
        Lines(
            title="Redelivered",
            asks="Which gateways took messages and did not acknowledge them? Others got them; nothing counts twice.",
            unit="ops",
            queries=[Query(rate(f"{STREAM}claimed_total"), "given to another")],
        ),
        Lines(
            title="Faults",
            asks="Messages that nobody can take, and calls that stream or store did not answer?",
            unit="ops",
            queries=[
                Query(rate(f"{STREAM}dead_letters_total"), "dead letters"),
                Query(rate(f"{STREAM}failures_total"), "without an answer"),
            ],
        ),
    ],
)

BOARD = Board(
    "learning",
    "learning",
    "Does it learn, is what it learns better, and does what it learns from arrive?",
    [NOW, JUDGED, NIGHTS, STREAMING],
    choices=(GATEWAYS, RECIPES),
)
