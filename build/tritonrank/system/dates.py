"""What a written time means: ISO 8601, and the forms that are easily taken for it.

Whatever has no time zone is UTC. A form that could mean two things is not read here, and ``unread_number`` says what
such a number may have been meant as.
"""

import re
from datetime import UTC, date, datetime, timedelta

FIRST_SECOND = 788_918_400
"""1995-01-01: no shop or rating site has older events, and 20200913 as well as days since 1970 are far below."""
FIRST_DATED_SECOND = 31_536_000
"""1971-01-01, the earliest time of a column that holds dates: times of 1970 are numbers that somebody took for seconds,
milliseconds or nanoseconds and that were not."""
LAST_DATED_SECOND = 253_402_300_799
"""The end of the year 9999."""
CLOCK_TOLERANCE_SECONDS = 86_400

ISO_DATE = re.compile(r"(\d{4}-\d\d-\d\d|\d{8}|\d{4}-?W\d\d(-?\d)?)([Tt ].+)?", re.ASCII)
# What a number of so many digits may have been meant as.
WRITTEN_FORMS = {
    6: ("%Y%m", "a month without a day"),
    7: ("%Y%j", "a year and a day of the year"),
    8: ("%Y%m%d", "a date"),
    10: ("%Y%m%d%H", "a date and an hour"),
    12: ("%Y%m%d%H%M", "a date, hour and minute"),
    14: ("%Y%m%d%H%M%S", "a date and a time"),
}
UNITS = {"milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}
EXCEL_DAY_ZERO = date(1899, 12, 30)


def iso_seconds(text: str) -> int | None:
    """Unix seconds of an ISO 8601 date or time, rounded down; None where it is none."""
    stripped = text.strip()
    if not ISO_DATE.fullmatch(stripped):
        return None  # datetime takes any character between date and time, a digit too
    try:
        moment = datetime.fromisoformat(stripped)
    except ValueError:
        return None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() // 1)


def latest_second() -> int:
    """The last unix second that an event may have: a day after this machine's clock."""
    return int(datetime.now(UTC).timestamp()) + CLOCK_TOLERANCE_SECONDS


def day_of(seconds: float) -> str:
    """The date of a unix second, such as 2020-09-13."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).date().isoformat()


def unread_number(value: float, latest: int) -> str:
    """What a number that is no unix second of an event would mean as one, and what it may have been meant as.

    Args:
        value: a finite number.
        latest: as ``latest_second`` says.
    """
    if not 0 <= value <= LAST_DATED_SECOND:
        meant = _meant(value, latest)
        return f"it looks like {meant}" if meant else ""
    meant = _meant(value, latest)
    if FIRST_SECOND <= value <= latest:
        meant = f"a time with a two-digit year (yymmddhhmm), as all of the column do; {meant}".rstrip("; ")
    return f"as unix seconds this is {day_of(value)}" + (f"; it looks like {meant}" if meant else "")


def _meant(value: float, latest: int) -> str:
    for unit, per_second in UNITS.items():
        if FIRST_SECOND <= value / per_second <= latest:
            return f"{unit}, {day_of(value / per_second)}: divide by {per_second:,.0f}"
    if value != int(value):
        return ""
    digits = str(int(value))
    if len(digits) in WRITTEN_FORMS:
        form, words = WRITTEN_FORMS[len(digits)]
        try:
            moment = datetime.strptime(digits, form).replace(tzinfo=UTC)
        except ValueError:
            return ""
        if FIRST_SECOND <= moment.timestamp() <= latest:
            written = moment.strftime("%Y-%m-%d" if len(digits) <= 8 else "%Y-%m-%dT%H:%M:%S")
            return f"{words}: write {written}"
    if len(digits) == 4 and 1995 <= value <= 2100:
        return f"a year without a day: write {digits}-01-01"
    if len(digits) == 5 and FIRST_SECOND <= (value - 25_569) * 86_400 <= latest:
        return f"a day number of a spreadsheet: write {EXCEL_DAY_ZERO + timedelta(days=value)}"
    if len(digits) == 5 and FIRST_SECOND <= value * 86_400 <= latest:
        return f"days since 1970: write {day_of(value * 86_400)}"
    return ""
