"""The spine: each turn's events, in order, kept for those who follow it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ..sse import Event


class Batch(NamedTuple):
    """Events of one turn that are to be kept together."""

    turn_id: str
    events: Sequence[Event]


class Journal(Protocol):
    """Where events are kept. Times are in seconds of the clock that the engine was made with.

    One writer per turn; any number of readers. A turn's ids are consecutive from 1.
    """

    def begin(self, turn_id: str, conversation_id: str | None) -> None:
        """Makes room for a turn. Raises ValueError when the id is taken."""

    def append(self, batches: Sequence[Batch]) -> None:
        """Keeps events of any number of turns in one go; visible to readers when it returns.

        Events that are already kept are passed over, so that a batch may be repeated after a failure. A Done ends the
        turn and begins its time of retention. Batches of turns that are no longer known are dropped. Raises ValueError
        for ids that leave a gap.
        """

    def read(self, turn_id: str, after: int, limit: int) -> list[Event]:
        """The events with ids above `after`, at most `limit`, in order; empty for a turn that is not known."""

    def purge(self) -> int:
        """Forgets turns whose time of retention is over; returns how many. Never a turn that has not ended."""
