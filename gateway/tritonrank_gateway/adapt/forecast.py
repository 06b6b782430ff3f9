"""How many requests will come: level, trend and the hour of the day.

Counts of requests are noisy in proportion to their root, so all is done on the roots of rates, where the noise is alike
by day and by night. Of each quarter of an hour a mean over the days before is kept: the season. Today is above or below
it by so much (the level), and that difference grows or shrinks (the trend, damped: nobody knows it for long). On the
first day there is no season yet, and level and trend are those of the rate itself (Holt 1957; damping: Gardner and
McKenzie 1985, https://doi.org/10.1287/mnsc.31.10.1237).
"""

import math
from dataclasses import dataclass, field

DAY_SECONDS = 86_400.0
SLOTS = 96
"""Of a day that have a mean of their own: quarters of an hour."""
LEAST_GAIN, MOST_GAIN = 0.05, 0.9
"""Of the level: how much of a surprise is believed."""
SURPRISE_GAIN = 0.02
"""Weight of the newest bucket in the size of surprises."""
TREND_GAIN = 0.1
"""In the level's gain."""
DAMPING = 0.9
"""Of the trend, per bucket."""
FADING = 0.99
"""Of today's difference to the days before, per bucket ahead: what is special about today does not stay so."""
DAY_GAIN = 0.3
"""Weight of the newest day in the season, once there are a few."""
MOST_EMPTY_BUCKETS = 2_880
"""That are filled in with zeros when nothing was said for a while; after more all is forgotten but the season."""


@dataclass(slots=True)
class _Holt:
    """Level and damped trend of a series whose noise is known.

    Surprises as large as the noise are noise, larger ones are news: of a variance v of surprises 1 - noise / v is news,
    and that is the gain (the steady state of a Kalman filter for a level that wanders).

    Attributes:
        noise: variance of a value around what it tells of.
    """

    noise: float
    level: float = 0.0
    trend: float = 0.0
    count: int = 0
    surprise: float = 0.0
    """variance of what was not foreseen"""

    def add(self, value: float) -> None:
        if not self.count:
            self.level, self.surprise = value, 2.0 * self.noise
        else:
            # The first values weigh alike, so that one odd bucket at the start does not stay.
            least, step = 1.0 / (self.count + 1), DAMPING * self.trend
            found = value - self.level - step
            self.surprise += max(SURPRISE_GAIN, least) * (found * found - self.surprise)
            news = 1.0 - self.noise / self.surprise if self.surprise else 0.0
            gain = max(least, min(MOST_GAIN, max(LEAST_GAIN, news)))
            self.level += step + gain * found
            self.trend = step + TREND_GAIN * gain * gain * found
        self.count += 1

    def ahead(self, buckets: float) -> float:
        """So many buckets from the last one."""
        steps: float = DAMPING * (1.0 - DAMPING**buckets) / (1.0 - DAMPING)
        return self.level + self.trend * steps


@dataclass(slots=True)
class _Slot:
    """A part of the day: its mean over the days, and what today says so far."""

    mean: float = 0.0
    days: int = 0
    today: list[float] = field(default_factory=list)


class Forecaster:
    """Forecasts a rate from what was counted.

    Args:
        bucket_seconds: what is counted together; a minute.
    """

    def __init__(self, bucket_seconds: float = 60.0) -> None:
        self.bucket_seconds = bucket_seconds
        self._slots = [_Slot() for _ in range(SLOTS)]
        self._plain, self._special = self._begun()
        self._bucket: int | None = None
        self._count = 0.0
        self._slot: int | None = None

    def add(self, count: float, unix: float) -> None:
        """So many requests came, just before this time. Times do not go back; one that does counts for the bucket
        that is open.

        Args:
            count: of requests.
            unix: seconds, UTC.
        """
        bucket = math.floor(unix / self.bucket_seconds)
        if self._bucket is None:
            self._bucket = bucket
        if bucket - self._bucket > MOST_EMPTY_BUCKETS:
            (self._plain, self._special), self._bucket, self._count = self._begun(), bucket, 0.0
        while self._bucket < bucket:
            self._close()
        self._count += count

    def forecast(self, seconds_ahead: float) -> float:
        """Requests per second, so many seconds after the last one that was told; 0 while nothing is known."""
        ahead = max(0.0, seconds_ahead / self.bucket_seconds)
        if self._bucket is None:
            return 0.0
        if not self._plain.count:
            return self._count / self.bucket_seconds
        # The last whole bucket lies half a bucket behind the open one's beginning.
        season = self._season((self._bucket + ahead - 0.5) * self.bucket_seconds)
        if season is None or not self._special.count:
            return max(0.0, self._plain.ahead(ahead)) ** 2
        root: float = max(0.0, season + FADING**ahead * self._special.ahead(ahead))
        return root**2

    def highest(self, seconds_ahead: float) -> float:
        """The largest rate that is forecast until then, per second."""
        steps = max(1, round(seconds_ahead / self.bucket_seconds))
        return max(self.forecast(step * self.bucket_seconds) for step in range(steps + 1))

    def _begun(self) -> tuple[_Holt, _Holt]:
        """Nothing known of the rate itself, nor of its difference to the days before."""
        noise = 0.25 / self.bucket_seconds  # of the root of a Poisson rate, whatever the rate
        return _Holt(noise), _Holt(noise)

    def _close(self) -> None:
        """The open bucket is over."""
        assert self._bucket is not None
        value = math.sqrt(self._count / self.bucket_seconds)
        middle = (self._bucket + 0.5) * self.bucket_seconds
        season = self._season(middle)
        if season is not None:
            self._special.add(value - season)
        self._plain.add(value)
        number = int(middle % DAY_SECONDS / DAY_SECONDS * SLOTS)
        if self._slot is not None and number != self._slot:
            self._learn(self._slots[self._slot])
        self._slot = number
        self._slots[number].today.append(value)
        self._bucket += 1
        self._count = 0.0

    def _learn(self, slot: _Slot) -> None:
        if slot.today:
            mean = sum(slot.today) / len(slot.today)
            slot.days += 1
            slot.mean += max(DAY_GAIN, 1.0 / slot.days) * (mean - slot.mean)
            slot.today = []

    def _season(self, unix: float) -> float | None:
        """The root of the rate at this time of day on the days before, between the middles of two slots; None where
        neither was seen."""
        place = unix % DAY_SECONDS / DAY_SECONDS * SLOTS - 0.5
        first = math.floor(place)
        share = place - first
        here, there = self._slots[first % SLOTS], self._slots[(first + 1) % SLOTS]
        if here.days and there.days:
            return (1.0 - share) * here.mean + share * there.mean
        return here.mean if here.days else there.mean if there.days else None
