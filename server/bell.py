"""Wakes the one greenlet that waits."""

from typing import Any

from gevent import get_hub
from gevent.hub import Waiter


class Bell:
    """Cheaper than an Event: one waiter, no timer. A ring while no one waits is not lost."""

    __slots__ = ("_rung", "_waiter")

    def __init__(self) -> None:
        self._rung = False
        self._waiter: Waiter[Any] | None = None

    def ring(self) -> None:
        """May be called from any greenlet or the hub, any number of times."""
        self._rung = True
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            # Only the hub may switch to a waiter.
            get_hub().loop.run_callback(waiter.switch, None)

    def wait(self) -> None:
        """Returns once it has rung since the last wait. Never two greenlets at once."""
        if not self._rung:
            waiter = self._waiter = Waiter()
            try:
                waiter.get()
            finally:
                self._waiter = None
        self._rung = False
