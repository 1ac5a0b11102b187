"""The last events of a turn that runs in this worker, and those who follow it.

The writer never waits: it appends and wakes. Each follower takes what lies behind its own cursor, from here or, when it
has fallen behind what is held here, from the journal.
"""

import time
from collections.abc import Callable, Iterator

from ..bell import Bell
from ..sse import Done, Event, Retrying
from . import Batch, Journal

HELD = 512  # events that stay here once the journal has them
READ_LIMIT = 512  # events that a follower takes at once


class Tail:
    """Events of one turn, in memory: all that the journal does not have yet, and the last that it has."""

    def __init__(self, turn_id: str, journal: Journal, on_flush_due: Callable[["Tail"], None]) -> None:
        """`on_flush_due` is called when there is something for the journal and there was nothing before."""
        self.turn_id = turn_id
        self.last_id = 0
        self.ended = False
        self.retrying: Retrying | None = None
        self._journal = journal
        self._on_flush_due = on_flush_due
        self._events: list[Event] = []
        self._first_id = 1
        self._kept_id = 0
        self._followers: set[Follower] = set()

    @property
    def audience(self) -> int:
        """How many people or programs follow; the transcript link is none of them."""
        return sum(follower.is_audience for follower in self._followers)

    @property
    def followers(self) -> list["Follower"]:
        return list(self._followers)

    def append(self, events: list[Event]) -> None:
        """Adds events that follow the last one, and wakes who waits for them."""
        due = self.last_id == self._kept_id
        self._events += events
        self.last_id = events[-1].id
        self.ended = type(events[-1]) is Done
        self.retrying = None
        if due:
            self._on_flush_due(self)
        for follower in self._followers:
            follower.wake()

    def tell(self, notice: Retrying) -> None:
        """Says something to those who follow now; it is not kept."""
        self.retrying = notice
        for follower in self._followers:
            follower.notice = notice
            follower.wake()

    def unkept(self) -> Batch:
        """What the journal does not have yet."""
        return Batch(self.turn_id, self._events[self._kept_id + 1 - self._first_id :])

    def kept(self, last_id: int) -> None:
        """The journal has all events up to `last_id`: the oldest of them can go."""
        self._kept_id = last_id
        spare = min(len(self._events) - HELD, last_id + 1 - self._first_id)
        if spare >= HELD:
            del self._events[:spare]
            self._first_id += spare

    def after(self, cursor: int) -> list[Event]:
        """Events behind `cursor`, at most some hundreds; empty when there are none yet."""
        begin = cursor + 1 - self._first_id
        if begin < 0:
            return self._journal.read(self.turn_id, cursor, READ_LIMIT)
        return self._events[begin : begin + READ_LIMIT]

    def follow(self, cursor: int = 0, is_audience: bool = True, bell: Bell | None = None) -> "Follower":
        """`bell` rings when there is news; one that follows several turns gives its own."""
        follower = Follower(self, cursor, is_audience, bell or Bell())
        self._followers.add(follower)
        return follower

    def leave(self, follower: "Follower") -> None:
        self._followers.discard(follower)


class Follower:
    """One reader of a turn. `cursor` is the id of the last event that it took."""

    def __init__(self, tail: Tail, cursor: int, is_audience: bool, bell: Bell) -> None:
        self.cursor = cursor
        self.is_audience = is_audience
        self.notice: Retrying | None = tail.retrying
        self.nudged = False
        self.closed = False
        self.waiting_since: float | None = None  # monotonic seconds, while there is nothing to take
        self.sending_since: float | None = None  # monotonic seconds, while what was taken is being sent
        self.on_drop: Callable[[], None] | None = None
        self.wake = bell.ring
        self._tail = tail
        self._bell = bell

    def take(self) -> list[Event]:
        """What lies behind the cursor; moves the cursor there. Does not wait."""
        events = self._tail.after(self.cursor)
        if events:
            self.cursor = events[-1].id
        return events

    def nudge(self) -> None:
        """Makes the follower's turn come although nothing has happened, for a ping."""
        self.nudged = True
        self.wake()

    def drop(self) -> None:
        """Gives up a follower that does not take what it is sent."""
        self.close()
        if self.on_drop is not None:
            self.on_drop()

    def close(self) -> None:
        """Ends the following from either side; may be repeated."""
        self.closed = True
        self._tail.leave(self)
        self.wake()

    def __iter__(self) -> Iterator[list[Event | Retrying]]:
        """All that comes, in order, as much at once as is there; an empty list for a nudge.

        Ends after Done or `close`.
        """
        while not self.closed:
            events: list[Event | Retrying] = [*self.take()]
            if self.notice is not None:
                events.insert(0, self.notice)
                self.notice = None
            if events or self.nudged:
                self.nudged = False
                self.sending_since = time.monotonic()
                yield events
                self.sending_since = None
                if events and type(events[-1]) is Done:
                    return
            elif self._tail.last_id > self.cursor:
                return  # the journal has forgotten what comes next: the time of retention is over
            else:
                self.waiting_since = time.monotonic()
                self._bell.wait()
                self.waiting_since = None
