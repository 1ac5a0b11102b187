"""The platform's rate limit: so many requests in a window of time. No I/O."""

import math
import time
from collections.abc import Callable

WINDOW = 60.0  # seconds


class RateLimit:
    """One client's requests; a window begins with the first request after the last one's end."""

    def __init__(self, allowed: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._default = allowed
        self._clock = clock
        self.clear()

    def set(self, allowed: int, window: float) -> None:
        self._allowed, self._window = allowed, window
        self._count, self._ends = 0, -math.inf

    def clear(self) -> None:
        self.set(self._default, WINDOW)

    def take(self) -> int:
        """Counts one request. Returns 0 when it is admitted, else the whole seconds until it would be."""
        now = self._clock()
        if now >= self._ends:
            self._count, self._ends = 0, now + self._window
        if self._count >= self._allowed:
            return max(1, math.ceil(self._ends - now))
        self._count += 1
        return 0

    def headers(self) -> dict[str, str]:
        """What every answer of the platform tells of it."""
        left = math.ceil(max(0.0, self._ends - self._clock()))
        return {
            "inin-ratelimit-count": str(self._count),
            "inin-ratelimit-allowed": str(self._allowed),
            "inin-ratelimit-reset": str(left),
        }
