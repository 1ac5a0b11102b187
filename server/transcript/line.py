"""A conversation's undelivered turns, in order: what was sent of each, and what has arrived for certain.

Sent is not received: what lies in a kernel's buffer dies with its connection. A sink takes text from here, says when it
has arrived, and after a loss begins again behind what had.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from ..bell import Bell
from ..errors import StreamNotFound
from ..journal.outbox import Parcel, Receipt
from ..journal.tail import Follower
from ..sse import Done, Event, Token

log = logging.getLogger(__name__)

Listen = Callable[[str, int, Bell], Follower]  # turn, cursor, what to ring; raises StreamNotFound or StoreUnavailable
# Of tokens that wait, the text that goes out now, and of how many it is; 0 to wait for more. The flag tells that to
# wait is useless: the turn has ended, or what comes next has no room before some of this has left.
Cut = Callable[[Sequence[Token], bool], tuple[str, int]]


class Piece(NamedTuple):
    """Text of one turn that is sent together, with the ids of its first and last event."""

    text: str
    turn_id: str
    first: int
    last: int
    is_all: bool  # whether nothing follows it yet; the bell rings when something does


class Mark(NamedTuple):
    """A place in what was sent. When it has arrived, all before it has."""

    delivery: "Delivery"
    cursor: int
    at: float  # monotonic seconds


class Delivery:
    """One turn on its way. It follows the turn only while its text is being sent."""

    def __init__(self, parcel: Parcel) -> None:
        self.turn_id = parcel.turn_id
        self.confirmed = parcel.cursor  # id of the last event that has arrived for certain
        self.sent = parcel.cursor  # id of the last event with text that was sent
        self.sent_all = False
        self.follower: Follower | None = None

    @property
    def arrived(self) -> bool:
        return self.sent_all and self.confirmed >= self.sent

    def rewind(self) -> None:
        self.sent = self.confirmed
        self.sent_all = False
        self.close()

    def close(self) -> None:
        if self.follower is not None:
            self.follower.close()
            self.follower = None


class Line:
    """What one conversation's transcript still has to get."""

    def __init__(self, conversation_id: str, listen: Listen, on_arrival: Callable[["Line", Receipt], None]) -> None:
        """`on_arrival` is told what has arrived."""
        self.conversation_id = conversation_id
        self.bell = Bell()  # rings when there may be more to send
        self.unconfirmed_since: float | None = None  # monotonic seconds; since when some text is sent and not confirmed
        self._listen = listen
        self._on_arrival = on_arrival
        self._deliveries: deque[Delivery] = deque()
        self._sender: Follower | None = None  # see `pass_on`

    def __len__(self) -> int:
        return len(self._deliveries)

    @property
    def turn_ids(self) -> list[str]:
        return [delivery.turn_id for delivery in self._deliveries]

    def update(self, parcels: Sequence[Parcel]) -> None:
        """Adds what is new of the conversation's undelivered turns, which are given in order, the oldest first."""
        known = {delivery.turn_id for delivery in self._deliveries}
        self._deliveries.extend(Delivery(parcel) for parcel in parcels if parcel.turn_id not in known)
        self.bell.ring()

    def keep(self, turn_ids: Collection[str]) -> None:
        """Drops all other turns: they were erased, or kept for long enough."""
        for delivery in [delivery for delivery in self._deliveries if delivery.turn_id not in turn_ids]:
            log.info("transcript: no more of the turn is wanted", extra=self._fields(delivery))
            self._deliveries.remove(delivery)
            delivery.close()
        if self.mark() is None:
            self.unconfirmed_since = None
        self.bell.ring()

    def next_piece(self, cut: Cut) -> Piece | None:
        """The text that comes next: of the first turn that is not sent whole. None while there is none.

        May wait for the journal. Raises StoreUnavailable.
        """
        for delivery in list(self._deliveries):
            if delivery.sent_all:
                continue
            piece = self._take(delivery, cut)
            if piece is not None or not delivery.sent_all:
                return piece
        return None

    @property
    def passes_on(self) -> bool:
        """Whether a token that comes now would go to `pass_on`'s `send`."""
        return self._sender is not None and self._sender.is_idle

    def pass_on(self, send: Callable[[Delivery, Token], bool]) -> None:
        """From now on, `send` gets each new token of the turn that is being sent, where the token comes from: until
        `hold`, and only what follows what was sent. It must not wait.

        It says whether all is sent, and raises for what it has not sent; either rings the bell.
        """
        delivery = next((delivery for delivery in self._deliveries if not delivery.sent_all), None)
        follower = delivery.follower if delivery is not None else None
        if delivery is None or follower is None or follower.is_behind:
            return

        def send_now(events: list[Event]) -> bool:
            (token,) = events
            if type(token) is not Token:
                raise TypeError
            is_sent = send(delivery, token)
            delivery.sent = token.id
            self.unconfirmed_since = self.unconfirmed_since or time.monotonic()
            return is_sent

        follower.send_now = send_now
        follower.is_idle = True
        self._sender = follower

    def hold(self) -> None:
        """Passes nothing on: what comes waits for `next_piece`."""
        if self._sender is not None:
            self._sender.send_now = None
            self._sender.is_idle = False
            self._sender = None

    def mark(self) -> Mark | None:
        """The last place in what was sent and is not confirmed."""
        found = None
        for delivery in self._deliveries:
            if delivery.sent > delivery.confirmed:
                found = delivery
            elif not delivery.sent_all:
                break
        return None if found is None else Mark(found, found.sent, time.monotonic())

    def confirm(self, mark: Mark) -> None:
        """All up to the mark has arrived."""
        if mark.delivery not in self._deliveries:
            return
        for delivery in self._deliveries:
            is_last = delivery is mark.delivery
            delivery.confirmed = mark.cursor if is_last else delivery.sent
            if not delivery.arrived:
                self._on_arrival(self, Receipt(delivery.turn_id, delivery.confirmed, whole=False))
            if is_last:
                break
        self.unconfirmed_since = mark.at if self.mark() else None
        self._let_go_arrived()

    def rewind(self) -> None:
        """Goes back to what has arrived: what was sent since may be lost."""
        for delivery in self._deliveries:
            delivery.rewind()
        self.unconfirmed_since = None

    def close(self) -> None:
        for delivery in self._deliveries:
            delivery.close()

    def _take(self, delivery: Delivery, cut: Cut) -> Piece | None:
        try:
            follower = self._follow(delivery)
        except StreamNotFound:
            self._give_up(delivery)
            return None
        while True:
            # Looked at before `take`, which may wait: what comes in the meantime is not forgotten.
            is_behind, is_over = follower.is_behind, follower.is_over
            events = follower.take()
            if delivery not in self._deliveries:
                return None  # dropped in the meantime
            tokens = [event for event in events if type(event) is Token]
            if tokens or not events or type(events[-1]) is Done:
                break  # what came beside the text is none of the transcript's
        if not tokens:
            if (events and type(events[-1]) is Done) or (is_over and not is_behind):
                self._end(delivery)
            elif not events and is_behind:
                self._give_up(delivery)
            return None
        is_whole = type(events[-1]) is Done
        text, count = cut(tokens, is_whole)
        if count == 0 and follower.is_behind:
            text, count = cut(tokens, True)
        if count == 0:
            follower.cursor = delivery.sent
            return None
        delivery.sent = tokens[count - 1].id
        if count < len(tokens):
            follower.cursor = delivery.sent
        elif is_whole:
            self._end(delivery)
        self.unconfirmed_since = self.unconfirmed_since or time.monotonic()
        is_all = count == len(tokens) and not is_whole and not follower.is_behind
        return Piece(text, delivery.turn_id, tokens[0].id, delivery.sent, is_all)

    def _follow(self, delivery: Delivery) -> Follower:
        if delivery.follower is None:
            delivery.follower = self._listen(delivery.turn_id, delivery.sent, self.bell)
        return delivery.follower

    def _end(self, delivery: Delivery) -> None:
        delivery.sent_all = True
        delivery.close()
        self._let_go_arrived()

    def _give_up(self, delivery: Delivery) -> None:
        """No error by itself: it was erased, or the courier says that its time is over."""
        log.warning("transcript: the journal holds no more of the turn, given up", extra=self._fields(delivery))
        self._end(delivery)

    def _fields(self, delivery: Delivery) -> dict[str, object]:
        return {"turn": delivery.turn_id, "conversation": self.conversation_id, "confirmed": delivery.confirmed}

    def _let_go_arrived(self) -> None:
        """Turns whose whole text has arrived, the oldest first: none overtakes another."""
        while self._deliveries and self._deliveries[0].arrived:
            delivery = self._deliveries.popleft()
            self._on_arrival(self, Receipt(delivery.turn_id, delivery.confirmed, whole=True))
