"""Whether this machine's clock goes with the others."""

import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from .finding import Outcome, doubtful, good, skipped

SKEW = 5.0  # seconds that clocks may differ; dates in headers have whole seconds


class Clock(NamedTuple):
    """Another clock, as it was read."""

    place: str
    ahead: float  # seconds before ours


def read_date(place: str, date: str | None) -> list[Clock]:
    """The clock of whoever sent the header `Date`, if it can be read."""
    try:
        return [Clock(place, parsedate_to_datetime(date or "").timestamp() + 0.5 - time.time())]
    except (ValueError, TypeError, OverflowError):
        return []


def compare(clocks: Sequence[Clock]) -> Outcome:
    """Whether this machine's clock goes with those that answered."""
    if not clocks:
        return skipped("no place has told its time")
    worst = max(clocks, key=lambda clock: abs(clock.ahead))
    if abs(worst.ahead) <= SKEW:
        return good(f"within {max(1.0, abs(worst.ahead)):.0f} s of {' and '.join(clock.place for clock in clocks)}")
    way = "behind" if worst.ahead > 0 else "ahead of"
    return doubtful(
        f"this machine's clock is {abs(worst.ahead):.0f} s {way} that of {worst.place}",
        "Have the clock set by NTP (timedatectl set-ntp true): tokens, tickets and log lines go by it.",
    )
