"""How much one caller may begin. No I/O."""

import re
from collections import deque
from typing import NamedTuple

UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}  # seconds
LONGEST = UNITS["day"]  # seconds after which a beginning counts for no rate
AT_ONCE_RETRY = 1.0  # seconds until who has as many turns as may run tries again; nobody knows when one ends
RATE = re.compile(rf"([1-9][0-9]{{0,5}})/({'|'.join(UNITS)})")
COUNT = re.compile("[1-9][0-9]{0,5}")


class Rate(NamedTuple):
    """At most `turns` begin in any `seconds`, wherever these are taken to start."""

    turns: int
    seconds: float


class Allowance(NamedTuple):
    rate: Rate | None = None
    at_once: int | None = None  # turns that run


UNLIMITED = Allowance()


class Standing(NamedTuple):
    """What a caller has left of its rate, one turn just spent."""

    limit: int
    left: int
    reset: float  # seconds until there is one more


class Beginnings:
    """When one caller began its last turns.

    Every beginning is kept while it counts: a counter for each minute, or a bucket that refills, lets nearly twice as
    many through where two of its fillings meet.
    """

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def wait(self, rate: Rate, now: float) -> float:
        """Seconds until one more may begin; 0.0 when it may now."""
        # Of a clock that was set back: they count from now on, which is later than they were.
        self._times = deque(min(at, now) for at in self._times) if self.newest > now else self._times
        if len(self._times) < rate.turns:
            return 0.0
        return max(0.0, self._times[-rate.turns] + rate.seconds - now)

    def note(self, rate: Rate, now: float) -> Standing:
        """One more has begun, for which `wait` has just returned 0.0."""
        self._times.append(now)
        while len(self._times) > rate.turns or self._times[0] + rate.seconds <= now:
            self._times.popleft()
        return Standing(rate.turns, rate.turns - len(self._times), self._times[0] + rate.seconds - now)

    @property
    def newest(self) -> float:
        return self._times[-1] if self._times else 0.0


def read_rate(text: str) -> Rate | None:
    """The rate of a setting such as 60/minute; None for `off`. Raises ValueError."""
    found = RATE.fullmatch(text.lower().replace(" ", ""))
    if found is not None:
        return Rate(int(found[1]), UNITS[found[2]])
    if text.lower() == "off":
        return None
    raise ValueError(f"must be NUMBER/UNIT with a unit of {', '.join(UNITS)}, such as 60/minute; or off")


def read_at_once(text: str) -> int | None:
    """The number of a setting; None for `off`. Raises ValueError."""
    if COUNT.fullmatch(text):
        return int(text)
    if text.lower() == "off":
        return None
    raise ValueError("must be a whole number from 1 to 999999; or off")
