"""When requests may leave, so that a limit of so many a minute is kept. No I/O; time is passed in, in seconds."""

WINDOW = 60.0  # seconds
BURST_PART = 10  # a tenth of a minute's requests may leave at once


class Pace:
    """At most `per_minute` requests in any minute, for all who share it (the generic cell rate algorithm).

    A message reserves the next place in the queue and waits for it; what is less urgent gets no place, and leaves only
    while there is room to spare.
    """

    def __init__(self, per_minute: int) -> None:
        self._burst = max(1, per_minute // BURST_PART)
        # The burst and one request each interval make `per_minute` in a window, whenever it begins.
        self._interval = WINDOW / (per_minute - self._burst + 1)
        self._filled_until = 0.0  # when the whole burst is free again
        self._paused_until = 0.0

    def reserve(self, now: float) -> float:
        """Takes the next place. Returns how long to wait for it; who finds `is_paused` then reserves another one."""
        at = max(now, self._filled_until - (self._burst - 1) * self._interval)
        self._filled_until = max(self._filled_until, at) + self._interval
        return at - now

    def take_spare(self, now: float) -> bool:
        """Takes a place that is free now, unless it is one of those kept for messages."""
        if self.is_paused(now) or self._filled_until - now > self._burst // 2 * self._interval:
            return False
        self.reserve(now)
        return True

    def pause(self, now: float, seconds: float) -> None:
        """Lets nothing leave for so long, as the platform has asked; then all go one after the other."""
        self._paused_until = max(self._paused_until, now + seconds)
        self._filled_until = max(self._filled_until, self._paused_until + (self._burst - 1) * self._interval)

    def is_paused(self, now: float) -> bool:
        return now < self._paused_until
