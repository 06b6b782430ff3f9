"""What a ranker would have earned in clicks, had it ordered the pages that were shown.

The pages are those of the log for which lots are known (``click_estimates.py``). The ranker scores the items of each
page as it would have been asked then: with the query, and with what the user had liked until then. Only the order
within a page is another one: which items are found and shown is up to retrieval, blend and rules, which were those of
the day.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from tritonrank_runtime.item_text import render_fields
from tritonrank_runtime.text import TextRules

from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.event_log import LogRows, first_hour, read_rows
from tritonrank.data.negatives import stable_hash
from tritonrank.errors import DataError
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.learn.clicks.click_estimates import ESTIMATORS, RESAMPLES, ShownItems, clicks_per_page, looked_at
from tritonrank.learn.lists.examples import items_now
from tritonrank.learn.lists.night_events import gains_of, log_of
from tritonrank.learn.lists.shown_lists import ShownPages, settled_events, shown_pages
from tritonrank.learn.lists.windows import SECONDS_PER_DAY, whole_hours_until
from tritonrank.rankers.scorers import Request, Scorer
from tritonrank.recipe import Recipe
from tritonrank.system.progress import track

MOST_PAGES = 2_000
"""Scored at the most, drawn by seed: the ranker reads each of their items, which is nearly all of the time."""
FEWEST_CLICKS = 100
"""On items that might have changed places: with fewer, what a place is worth is a guess, and no interval says so."""
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Judged:
    """Pages with what a ranker makes of them.

    Attributes:
        shown: their items.
        order: [rows] the place that the ranker gives each item, among those that the items of its page had.
    """

    shown: ShownItems
    order: Integers


def estimate_clicks(
    recipe: Recipe, workspace: Workspace, model: Path, now: float, *, days: float | None = None, most: int = MOST_PAGES
) -> dict[str, Any]:
    """Clicks per page of the order that was served, of a ranker's, and how many more the ranker's gets.

    Args:
        recipe: whose log and items they are.
        workspace: with its dataset.
        model: folder of a checkpoint, ONNX graph or native weights.
        now: unix seconds, by the clock of the log.
        days: of the log that are read, up to the last hour that is over; default: ``learn.history_days``.
        most: pages at the most.

    Returns:
        JSON-able: pages, users, clicks, from and until (unix seconds), looked_at by place, and by estimator the clicks
        per page (value, low, high) of ``live`` and ``ranker``, and of their ``difference``.

    Raises:
        DataError: nothing was shown, no lots were drawn, or there are too few clicks to tell anything.
        ArtifactError: there is no model or no dataset.
    """
    read_manifest(workspace.dataset)
    log = log_of(recipe)
    end = whole_hours_until(now)
    start = max(first_hour(log) or end, end - (days or recipe.learn.history_days) * SECONDS_PER_DAY)
    rows = read_rows(log, start, end)
    pages = shown_pages(rows, recipe.learn.delay_hours, end, gains=gains_of(recipe))
    items = {row["item_id"]: row for row in items_now(recipe, workspace.dataset)[0].iter_rows(named=True)}
    pages = _some_pages(pages, set(items), most, recipe.seed)
    _require_clicks(pages.shown)
    history = _likes(recipe, rows, workspace.dataset)
    judged = Judged(pages.shown, order_of(pages, _scores(pages, history, items, model)))
    return {
        "pages": int(judged.shown.page.max()) + 1,
        "users": int(judged.shown.user.max()) + 1,
        "clicks": int(judged.shown.clicked.sum()),
        "moved": float((judged.shown.position != judged.shown.policy_position).mean()),
        "from": float(pages.items["shown_at"].min()),  # type: ignore[arg-type]  # a column of numbers
        "until": float(pages.items["shown_at"].max()),  # type: ignore[arg-type]  # the same
        "looked_at": [round(value, 4) for value in looked_at(judged.shown).tolist()],
        "clicks_per_page": clicks_of(judged, recipe.seed),
    }


def clicks_of(judged: Judged, seed: int, resamples: int = RESAMPLES) -> dict[str, Any]:
    """By estimator the clicks per page of the order that was served, of the ranker's, and the difference."""
    shown, orders = judged.shown, {"live": [judged.shown.policy_position], "ranker": [judged.order]}
    orders["difference"] = [judged.order, shown.policy_position]
    return {
        estimator: {
            name: vars(clicks_per_page(shown, targets, estimator, resamples=resamples, seed=seed))
            for name, targets in orders.items()
        }
        for estimator in ESTIMATORS
    }


def order_of(pages: ShownPages, scores: NDArray[np.float32]) -> Integers:
    """[rows] the places of a page's items, dealt out anew by score, the best one first.

    Args:
        pages: rows of a page lie together.
        scores: [rows].
    """
    page = pages.shown.page
    order = np.empty(len(page), dtype=np.int64)
    best_first = np.lexsort((-scores, page))
    order[best_first] = pages.shown.policy_position[np.lexsort((pages.shown.policy_position, page))]
    return order


def _some_pages(pages: ShownPages, known: set[str], most: int, seed: int) -> ShownPages:
    """Pages all of whose items are known, drawn by seed, numbered anew."""
    is_known = pages.items["item_id"].is_in(list(known))
    whole = pages.items.select("page").with_columns(is_known.alias("known")).group_by("page", maintain_order=True)
    names = whole.agg(pl.col("known").all()).filter(pl.col("known"))["page"]
    draws = pl.Series([stable_hash(seed, f"estimate:{name}") for name in names], dtype=pl.UInt64)
    chosen = pages.items["page"].is_in(names.gather(draws.arg_sort().head(most)).implode())
    rows = chosen.to_numpy()
    if not rows.any():
        raise DataError(
            "no page was shown whose items are all in the recipe's item table; is it the table of this log?"
        )
    picked = {name: getattr(pages.shown, name)[rows] for name in ShownItems.__dataclass_fields__}
    numbered = {name: np.unique(picked[name], return_inverse=True)[1].astype(np.int64) for name in ("user", "page")}
    return ShownPages(pages.items.filter(chosen), replace(ShownItems(**picked), **numbered))


def _require_clicks(shown: ShownItems) -> None:
    movable = (shown.move_up > 0) | (shown.move_down > 0)
    clicks = int(shown.clicked[movable].sum())
    if clicks < FEWEST_CLICKS:
        raise DataError(
            f"{clicks} clicks on items that lots might have moved, in {int(shown.page.max()) + 1} pages, tell nothing; "
            f"expected {FEWEST_CLICKS} or more. Read more days (--days), or wait for more pages"
        )


def _likes(recipe: Recipe, rows: LogRows, dataset: Path) -> dict[str, list[tuple[float, str]]]:
    """By user what they liked and when, oldest first: of the log, and of the recipe's own data."""
    gains = gains_of(recipe)
    liked = [kind for kind, gain in gains.items() if gain > 0]
    events = settled_events(rows, recipe.learn.delay_hours).filter(pl.col("type").is_in(liked))
    before = pl.read_parquet(dataset / "events.parquet", glob=False).filter(pl.col("label") == 1)
    both = pl.concat([one.select("user_id", "item_id", "timestamp") for one in (before, events)])
    found: dict[str, list[tuple[float, str]]] = {}
    for user, item, at in both.unique(maintain_order=True).sort("timestamp", maintain_order=True).iter_rows():
        found.setdefault(user, []).append((at, item))
    return found


def _scores(
    pages: ShownPages,
    history: Mapping[str, Sequence[tuple[float, str]]],
    items: Mapping[str, Mapping[str, str]],
    model: Path,
) -> NDArray[np.float32]:
    """[rows] of the ranker, page by page as a client would have asked."""
    rules = TextRules.load(model)
    scorer: Scorer = open_scorer(model)

    def text(item_id: str) -> str:
        return render_fields(rules.item_template, items[item_id])

    scores = np.empty(pages.items.height, dtype=np.float32)
    of_pages = pages.items.with_row_index("row").partition_by("page", maintain_order=True)
    for page in track(of_pages, "scoring pages"):
        first = page.row(0, named=True)
        # Times of likes are whole seconds, rounded down: what happened on the page itself is not before it.
        before = [
            item for at, item in history.get(first["user_id"], ()) if at + 1 <= first["shown_at"] and item in items
        ]
        request = Request(first["query"], [text(item) for item in before], [text(item) for item in page["item_id"]])
        scores[page["row"].to_numpy()] = scorer.score(request)
    return scores
