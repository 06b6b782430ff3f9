"""Is what it says still right? Scores, orders, clicks, exposure and drift, as seen from what was served."""

from deploy.grafana.board import Bars, Board, Heat, Lines, Number, Query, Row
from deploy.grafana.expressions import GATEWAY, growth, mean, quantile, rate, ratio, share

NAME = "tritonrank_quality_"
PAGES = f'{GATEWAY}, kind="recommend"'
UNKNOWN, TOKENS = f"{NAME}tokens_unknown_total", f"{NAME}tokens_total"
CUT, CANDIDATES = f"{NAME}candidates_truncated_total", f"{NAME}candidates_total"
COLD, USERS = "tritonrank_gateway_recommendations_total", f'{GATEWAY}, cold="yes"'
SHOWN = "tritonrank_exposure_items_total"
CHOSEN_PERIOD = f"{{{GATEWAY}}}[$__range]"

NOW = Row(
    "Now",
    [
        Number(title="Order kept", asks="How much of retrieval's order does the ranker leave? 100%: all of it.",
               unit="percentunit", queries=[Query(mean(f"{NAME}overlap", PAGES))]),
        Number(title="Undecided", asks="Are the scores of a list far apart (0%), or all alike (100%)?",
               unit="percentunit", queries=[Query(mean(f"{NAME}entropy"))]),
        Number(title="Lead of the first", asks="By how much does the first candidate beat the second?", unit="short",
               queries=[Query(mean(f"{NAME}margin"))]),
        Number(title="NDCG by clicks", asks="How well are lists ordered, by what users click?",
               unit="short", queries=[Query(f"avg({NAME}ips_ndcg{{{GATEWAY}}})")]),
        Number(title="Unknown tokens", asks="Which share of the texts does the vocabulary not have?",
               unit="percentunit", queries=[Query(ratio(UNKNOWN, TOKENS, GATEWAY))]),
        Number(title="Unknown users", asks="Of which share of the pages' users was nothing known?",
               unit="percentunit", queries=[Query(share(COLD, USERS, GATEWAY))]),
    ],
)  # fmt: skip
RANKINGS = Row(
    "Rankings",
    [
        Heat(
            title="Scores",
            asks="Do scores lie where they lay yesterday? A new artifact has a scale of its own.",
            unit="short",
            queries=[Query(growth(f"{NAME}score"))],
        ),
        Heat(
            title="How undecided lists are",
            asks="Do lists become lists of equals (1)? Then the ranker does not know what it reads.",
            unit="short",
            queries=[Query(growth(f"{NAME}entropy"))],
        ),
        Heat(
            title="Order kept, of retrieval's",
            asks="Does the ranker still change what retrieval brings?",
            unit="short",
            queries=[Query(growth(f"{NAME}overlap", PAGES))],
        ),
        Lines(
            title="Lead of the first",
            asks="Is there a clear first? By kind of request.",
            unit="short",
            queries=[
                Query(quantile(one, f"{NAME}margin", GATEWAY, "kind"), f"{{{{kind}}}} p{100 * one:g}")
                for one in (0.1, 0.5)
            ],
        ),
        Lines(
            title="Cut texts",
            asks="Which share of the candidates loses text to a budget?",
            unit="percentunit",
            queries=[Query(ratio(CUT, CANDIDATES, GATEWAY, "kind"), "{{kind}}")],
        ),
        Lines(
            title="Unknown tokens",
            asks="Do texts come that the vocabulary does not have: another language, another encoding?",
            unit="percentunit",
            queries=[Query(ratio(UNKNOWN, TOKENS, GATEWAY, "kind"), "{{kind}}")],
        ),
    ],
)
CLICKS = Row(
    "Clicks",
    [
        Bars(
            title="Clicks per view, by position",
            asks="Which positions are clicked? The first should lead; a flat row is a list that nobody reads in order.",
            unit="percentunit",
            queries=[
                Query(
                    f"sum by (position) (increase({NAME}clicks_total{CHOSEN_PERIOD}))"
                    f" / sum by (position) (increase({NAME}impressions_total{CHOSEN_PERIOD}))",
                    "{{position}}",
                )
            ],
        ),
        Lines(
            title="NDCG@10 by clicks",
            asks="Do lists become worse? Clicks count the more, the less likely their position is looked at. "
            "Lines are two standard errors apart; below 100 clicks there is none.",
            unit="short",
            queries=[
                Query(f"avg({NAME}ips_ndcg{{{GATEWAY}}})", "estimate"),
                Query(f"avg({NAME}ips_ndcg{{{GATEWAY}}} + 2 * {NAME}ips_ndcg_error{{{GATEWAY}}})", "at most"),
                Query(f"avg({NAME}ips_ndcg{{{GATEWAY}}} - 2 * {NAME}ips_ndcg_error{{{GATEWAY}}})", "at least"),
            ],
        ),
        Lines(
            title="Clicks behind it",
            asks="How much does the estimate rest on?",
            unit="short",
            queries=[Query(f"sum({NAME}ips_clicks{{{GATEWAY}}})", "clicks")],
        ),
    ],
)
EXPOSURE = Row(
    "Exposure: who is shown",
    [
        Lines(
            title="Shown items, by tenth of popularity",
            asks="Do lists show ever fewer items? 1 is the most popular tenth, added came after the catalogue was "
            "built. A first tenth that grows from week to week is a feedback loop: what was shown is learnt and shown.",
            unit="percentunit",
            queries=[
                Query(
                    f"{rate(SHOWN, by='decile')} / ignoring (decile) group_left () {rate(SHOWN)}",
                    "{{decile}}",
                )
            ],
            is_stacked=True,
        ),
        Lines(
            title="Gini of exposure",
            asks="How unequally are items shown: 0 all alike, 1 a few alone? Of the newest 10,000 shown items; "
            "below 1,000 there is none.",
            unit="percentunit",
            queries=[Query(f"avg(tritonrank_exposure_gini{{{GATEWAY}}})", "Gini")],
        ),
        Lines(
            title="New items",
            asks="How many items came within a month, and how many of them were never shown?",
            unit="short",
            queries=[
                Query(
                    f"max by (age, shown) (tritonrank_exposure_new_items{{{GATEWAY}}})",
                    "since a {{age}}, shown: {{shown}}",
                )
            ],
        ),
        Lines(
            title="Until the first impression",
            asks="How long does a new item wait until somebody sees it? Those that nobody has seen are not in it.",
            unit="s",
            queries=[
                Query(quantile(one, "tritonrank_exposure_first_impression_seconds", GATEWAY), f"p{100 * one:g}")
                for one in (0.5, 0.9)
            ],
        ),
    ],
)
DRIFT = Row(
    "Drift against the reference of the build",
    [
        Lines(
            title="Population stability index",
            asks="Which feature is spread otherwise than when the artifact was made? From 0.25 on: another population.",
            unit="short",
            queries=[Query(f"avg by (kind, feature) ({NAME}drift_psi{{{GATEWAY}}})", "{{kind}} {{feature}}")],
            bad_from=0.25,
        ),
        Lines(
            title="Kolmogorov-Smirnov distance",
            asks="How far apart are the two distributions at most?",
            unit="percentunit",
            queries=[Query(f"avg by (kind, feature) ({NAME}drift_ks{{{GATEWAY}}})", "{{kind}} {{feature}}")],
        ),
        Lines(
            title="Rankings behind it",
            asks="How many rankings of the last hour are compared? Below 200 nothing is said.",
            unit="short",
            queries=[Query(f"sum by (kind) ({NAME}drift_rankings{{{GATEWAY}}})", "{{kind}}")],
        ),
        Lines(
            title="Rankings looked at",
            asks="Are rankings looked at at all, and of which artifact?",
            unit="ops",
            queries=[Query(rate(f"{NAME}rankings_total", by="kind, artifact"), "{{kind}} {{artifact}}")],
        ),
    ],
)

BOARD = Board("quality", "quality", "Is what it says still right?", [NOW, RANKINGS, CLICKS, EXPOSURE, DRIFT])
