"""Wakes the one greenlet that waits."""

from typing import Any

from gevent import get_hub, getcurrent


class Bell:
    """Cheaper than an Event: one who waits, no timer, nothing made for it. A ring while no one waits is not lost."""

    __slots__ = ("_is_called", "_rung", "_waiting")

    def __init__(self) -> None:
        self._rung = False
        self._waiting: Any = None  # the greenlet
        self._is_called = False  # whether `_call` is about to run

    def ring(self) -> None:
        """May be called from any greenlet or the hub, any number of times."""
        self._rung = True
        if self._waiting is not None and not self._is_called:
            self._is_called = True
            # Only the hub may switch to one who waits.
            get_hub().loop.run_callback(self._call)

    def wait(self) -> None:
        """Returns once it has rung since the last wait. Never two greenlets at once."""
        while not self._rung:
            self._waiting = getcurrent()
            try:
                get_hub().switch()
            finally:
                self._waiting = None
        self._rung = False

    def _call(self) -> None:
        self._is_called = False
        if self._waiting is not None:
            self._waiting.switch()
