"""How many hours at the end of the log a night is judged on, so that enough people judge it.

``learn.newest_hours`` are enough for a busy shop. In a quiet one, or in a quiet week, too few users like something in
them, and nothing could be decided, night after night: then the window grows, up to half of what is not learnt yet.
"""

import math

import polars as pl

from tritonrank.data.event_log import read_rows
from tritonrank.errors import DataError
from tritonrank.judge.gate import FEWEST_EXAMPLES
from tritonrank.learn.lists.night_events import gains_of, log_of, validates
from tritonrank.learn.lists.shown_lists import LIST_AT, SETTLED_AT, settled_events
from tritonrank.learn.lists.windows import SECONDS_PER_HOUR, Windows
from tritonrank.recipe import Recipe

JUDGES = math.ceil(1.2 * FEWEST_EXAMPLES)
"""Users wanted: more than a judgement takes at least, because some lists fall out that are not known yet to do so."""
MOST_SHARE = 0.5
"""Of the hours that are not learnt yet, which may be judged; the rest is learnt."""


class TooFewJudgesError(DataError):
    """Not even half of the new hours hold enough users to decide anything; the next night takes them as well."""


def hours_to_judge(recipe: Recipe, windows: Windows) -> int:
    """Hours of the newest window: ``learn.newest_hours``, or as many more as it takes for enough users.

    Args:
        recipe: with a log.
        windows: of the night, with a newest window of ``learn.newest_hours``.

    Raises:
        TooFewJudgesError: see there.
        DataError: a file of the log cannot be read.
    """
    begin, end = windows.new.start, windows.newest.end
    rows = read_rows(log_of(recipe), begin, end)
    events = settled_events(rows, recipe.learn.delay_hours)
    liked = [kind for kind, gain in gains_of(recipe).items() if gain > 0]
    likes = events.filter(pl.col("type").is_in(liked) & (pl.col(SETTLED_AT) < end))
    likes = likes.filter(~validates(likes["user_id"], recipe.seed))
    # A list counts where it came to be within the window: of each user the last one decides.
    last = likes.group_by("user_id").agg(pl.col(LIST_AT).max())[LIST_AT].sort(descending=True)
    chosen = recipe.learn.newest_hours
    most = max(chosen, math.floor(MOST_SHARE * (end - begin) / SECONDS_PER_HOUR))
    needed = math.ceil((end - last[JUDGES - 1]) / SECONDS_PER_HOUR) if len(last) >= JUDGES else most
    hours = min(max(chosen, needed), most)
    users = int((last >= end - hours * SECONDS_PER_HOUR).sum())
    if users < FEWEST_EXAMPLES:
        raise TooFewJudgesError(
            f"{users} users liked something in the last {hours:,} hours, of which a night is judged; it takes "
            f"{FEWEST_EXAMPLES}. The next night takes these hours as well"
        )
    return hours
