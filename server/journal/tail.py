"""The last events of a turn in this worker's memory, and those who follow it.

Whoever brings events (the turn itself, or the courier for a turn of another worker) never waits for a follower: it
appends, and sends at once to those who keep up, or wakes them. Each follower takes what lies behind its own cursor,
from here or, when it has fallen behind what is held here, from the journal.
"""

import time
from collections.abc import Callable, Iterator

import gevent

from ..bell import Bell
from ..errors import StoreUnavailable
from ..sse import Done, Event, Extra, Retrying, Token
from . import AHEAD, Batch, Journal, closing

HELD = 8  # events that stay here once the journal has them, up to twice as many; who keeps up needs none
READ_LIMIT = 512  # events that a follower takes at once, or fewer:
READ_BYTES = 32 * 1024  # about what they may come to; a client that does not read makes us hold it
EVENT_BYTES = 40  # of an event beside its text, as it is sent
ROOM = AHEAD - 1_000  # events; beyond it the turn waits: one read of the gateway brings some hundreds at most
STORE_RETRY = 0.5  # seconds until a follower that needs a store out of order asks again


class Tail:
    """Events of one turn: all that the journal does not have yet, and the last that it has."""

    def __init__(self, turn_id: str, journal: Journal, last_id: int = 0) -> None:
        """`last_id` is the last event that the journal has already."""
        self.turn_id = turn_id
        self.last_id = last_id
        self.kept_id = last_id
        self.ended = False
        self.watched_until = 0.0  # monotonic seconds; someone follows on another worker, and waits for each flush
        self.flush_by = 0.0  # monotonic seconds; for the flusher
        self.retrying: Retrying | None = None
        self.followers: set[Follower] = set()
        self._journal = journal
        self._events: list[Event] = []
        self._first_id = last_id + 1
        self._room = Bell()

    @property
    def audience(self) -> int:
        """How many people or programs follow; the transcript link is none of them."""
        return sum(follower.is_audience for follower in self.followers)

    @property
    def is_kept(self) -> bool:
        return self.kept_id == self.last_id

    @property
    def is_full(self) -> bool:
        """Whether the journal is too far behind: a crash must never end a turn below an id that a client has."""
        return self.last_id - self.kept_id >= ROOM

    def append(self, events: list[Event]) -> None:
        """Adds events that follow the last one, and offers them to who waits for them."""
        self._events += events
        self.last_id = events[-1].id
        self.ended = type(events[-1]) is Done
        self.retrying = None
        for follower in self.followers:
            follower.offer(events)

    def tell(self, notice: Retrying) -> None:
        """Says something to those who follow now; it is not kept."""
        self.retrying = notice
        for follower in self.followers:
            follower.notice = notice
            follower.wake()

    def unkept(self) -> list[Batch]:
        """What the journal does not have yet, in batches that a reader can take one by one."""
        begins = range(self._index(self.kept_id), len(self._events), READ_LIMIT)
        return [Batch(self.turn_id, self._events[begin : begin + READ_LIMIT]) for begin in begins]

    def kept(self, last_id: int) -> None:
        """The journal has all events up to `last_id`: the oldest of them can go."""
        self.kept_id = last_id
        spare = min(len(self._events) - HELD, self._index(last_id))
        if spare >= HELD:
            del self._events[:spare]
            self._first_id += spare
        self._room.ring()

    def wait_for_room(self) -> None:
        while self.is_full:
            self._room.wait()

    def adopt_closing(self) -> None:
        """Ends as the journal says, where another worker has put the closing events."""
        try:
            events = self._journal.read(self.turn_id, self.last_id, READ_LIMIT)
        except StoreUnavailable:
            events = []
        self.append(events or [*closing(self.kept_id + AHEAD)])  # the same, by the rule for a dead worker's turn
        self.kept(self.last_id)

    def after(self, cursor: int) -> list[Event]:
        """Events behind `cursor`, at most some hundreds; empty when there are none yet. Raises StoreUnavailable."""
        if cursor + 1 < self._first_id:
            return within_limit(self._journal.read(self.turn_id, cursor, READ_LIMIT))
        begin = self._index(cursor)
        return within_limit(self._events[begin : begin + READ_LIMIT])

    def follow(
        self, cursor: int = 0, is_audience: bool = True, can_return: bool = False, bell: Bell | None = None
    ) -> "Follower":
        """Someone new who reads along.

        `bell` rings when there is news; one that follows several turns gives its own. `can_return` tells that the
        follower can come back by itself, and go on where it was.
        """
        follower = Follower(self, cursor, is_audience, can_return, bell or Bell())
        self.followers.add(follower)
        return follower

    def leave(self, follower: "Follower") -> None:
        self.followers.discard(follower)

    def _index(self, cursor: int) -> int:
        """Where the events behind `cursor` begin. Ids are consecutive, but may jump before the closing events."""
        index = min(cursor + 1 - self._first_id, len(self._events))
        while index > 0 and self._events[index - 1].id > cursor:
            index -= 1
        return index


class Follower:
    """One reader of a turn. `cursor` is the id of the last event that it took."""

    def __init__(self, tail: Tail, cursor: int, is_audience: bool, can_return: bool, bell: Bell) -> None:
        self.turn_id = tail.turn_id
        self.cursor = cursor
        self.is_audience = is_audience
        self.can_return = can_return
        self.notice: Retrying | None = tail.retrying
        self.nudged = False
        self.closed = False
        self.dismissed = False
        self.waiting_since: float | None = None  # monotonic seconds, while there is nothing to take
        self.sending_since: float | None = None  # monotonic seconds, while what was taken is being sent
        self.on_drop: Callable[[], None] | None = None
        # Sends at once and without waiting, in whatever brings the events; says whether all is sent. Raises for what
        # it has not sent, which then waits for the follower's greenlet.
        self.send_now: Callable[[list[Event]], bool] | None = None
        self.is_idle = False  # whether its greenlet sleeps, with nothing to take or to send
        self._tail = tail
        self._bell = bell

    @property
    def is_behind(self) -> bool:
        """Whether there is something to take."""
        return self._tail.last_id > self.cursor

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes behind what there is."""
        return self._tail.ended

    def take(self) -> list[Event]:
        """What lies behind the cursor; moves the cursor there. Raises StoreUnavailable."""
        events = self._tail.after(self.cursor)
        if events:
            self.cursor = events[-1].id
        return events

    def offer(self, events: list[Event]) -> None:
        """There are new events. While the client keeps up, they are sent here and now, and no greenlet is woken: that
        saves a fifth of a token's cost."""
        if not self.is_idle or self.send_now is None or events[0].id <= self.cursor or len(events) > READ_LIMIT:
            self.wake()
            return
        try:
            is_sent = self.send_now(events)
        except Exception:  # noqa: BLE001 - it takes these events again, and meets it where it hurts no one else
            self.wake()
            return
        self.cursor = events[-1].id
        self.waiting_since = time.monotonic()
        if not is_sent:
            self.nudge()  # the rest waits for its client, which only the follower's own greenlet may do
        elif self._tail.ended:
            self.wake()

    def wake(self) -> None:
        self.is_idle = False
        self._bell.ring()

    def nudge(self) -> None:
        """Makes the follower's turn come although nothing has happened, for a ping."""
        self.nudged = True
        self.wake()

    def drop(self) -> None:
        """Gives up a follower that does not take what it is sent."""
        self.close()
        if self.on_drop is not None:
            self.on_drop()

    def lose(self) -> None:
        """The client has hung up."""
        if self.sending_since is None:
            self.close()
        else:
            self.drop()  # a write that waits for who reads no more would not notice

    def dismiss(self) -> None:
        """Asks the follower to come back elsewhere, because this worker stops."""
        self.dismissed = True
        self.close()

    def close(self) -> None:
        """Ends the following from either side; may be repeated."""
        self.closed = True
        self._tail.leave(self)
        self.wake()

    def __iter__(self) -> Iterator[list[Event | Retrying]]:
        """All that comes, in order, as much at once as is there; an empty list for a nudge.

        Ends after Done or `close`, or when the journal has forgotten what comes next.
        """
        while not self.closed:
            events = self._take_patiently()
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
            elif self._tail.last_id > self.cursor or self._tail.ended:
                return
            else:
                self.waiting_since = time.monotonic()
                self.is_idle = True
                self._bell.wait()
                self.is_idle = False
                self.waiting_since = None

    def _take_patiently(self) -> list[Event | Retrying]:
        """As `take`; waits while the store is out of order, for as long as the client stays."""
        try:
            while not self.closed and not self.nudged:
                try:
                    return [*self.take()]
                except StoreUnavailable:
                    self.waiting_since = self.waiting_since or time.monotonic()
                    gevent.sleep(STORE_RETRY)
            return []
        finally:
            self.waiting_since = None


def weight(event: Event) -> int:
    """Of an event that is no token. What comes beside the text weighs as well: some followers send it."""
    return len(event.choice) if type(event) is Extra else 0


def within_limit(events: list[Event]) -> list[Event]:
    """The first of `events`, at least one, that together are no larger than what may be sent at once."""
    size = 0
    for index, event in enumerate(events):
        size += EVENT_BYTES + (len(event.text) if type(event) is Token else weight(event))
        if size > READ_BYTES and index:
            return events[:index]
    return events
