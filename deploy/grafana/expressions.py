"""PromQL that comes again and again. Each takes the matchers of its series, by default those of the chosen gateways."""

GATEWAY = 'instance=~"$gateway"'
SERVER = 'instance=~"$server", model=~"$model"'
"""Of our models in the chosen Tritons."""
INTERVAL = "$__rate_interval"
"""Grafana's: never shorter than four scrapes, so that a lost one leaves no hole."""


def rate(metric: str, matchers: str = GATEWAY, by: str = "") -> str:
    """Growth of a counter per second, summed up to some labels."""
    return f"sum{_by(by)}(rate({metric}{{{matchers}}}[{INTERVAL}]))"


def share(metric: str, part: str, whole: str) -> str:
    """Of the growth of one counter: the series that match ``part``, as a share of those that match ``whole``.

    A part that has never been counted is a share of 0, where there is a whole.
    """
    of = rate(metric, whole)
    return f"({rate(metric, part)} or 0 * {of}) / {of}"


def ratio(above: str, below: str, matchers: str, by: str = "") -> str:
    """Growth of one counter per growth of another."""
    return f"{rate(above, matchers, by)} / {rate(below, matchers, by)}"


def quantile(wanted: float, histogram: str, matchers: str = GATEWAY, by: str = "") -> str:
    """Of a histogram, by some labels: what so large a share of it lies below."""
    return f"histogram_quantile({wanted:g}, {rate(f'{histogram}_bucket', matchers, f'le, {by}' if by else 'le')})"


def mean(histogram: str, matchers: str = GATEWAY, by: str = "") -> str:
    """Of a histogram, by some labels."""
    return ratio(f"{histogram}_sum", f"{histogram}_count", matchers, by)


def growth(histogram: str, matchers: str = GATEWAY) -> str:
    """The buckets of a heat map."""
    return f"sum by (le) (increase({histogram}_bucket{{{matchers}}}[{INTERVAL}]))"


def _by(labels: str) -> str:
    return f" by ({labels}) " if labels else ""
