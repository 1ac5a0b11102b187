"""The transcript: each conversation's text, mirrored in the order in which its turns began, whatever breaks.

conversation.py   one that this worker holds, brought to a sink again after each loss
line.py           its undelivered turns: what was sent, what has arrived
websocket.py      the sink for a persistent WebSocket; socket.py, handshake.py, framing.py and pieces.py below it
platform.py       the sink for the public platform API; api.py, gather.py and pace.py below it

The outbox in the journal knows what is undelivered, and gives each conversation one holder in the whole fleet.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import gevent

from .. import metrics
from ..bell import Bell
from ..errors import StoreUnavailable
from ..journal.outbox import WINDOW, Outbox, Parcel, Receipt
from ..journal.tail import Follower
from .conversation import Conversation, Sink
from .line import Line

log = logging.getLogger(__name__)

TICK = 0.25  # seconds; how late a conversation's own times may be noticed
FIND_INTERVAL = 0.5  # seconds between two looks for conversations that nobody holds
SYNC_PAUSE = 0.02  # seconds in which what the outbox is to hear gathers
STORE_RETRY = 0.5  # seconds until a store that is out of order is asked again
STOP_TIMEOUT = 1.5  # seconds for all conversations to end when the worker stops


class Place(Protocol):
    """The worker that it runs in, and its turns."""

    def listen(self, turn_id: str, cursor: int, bell: Bell) -> Follower:
        """Follows a turn, wherever it runs, as no audience. Raises StreamNotFound or StoreUnavailable."""

    def may_send(self) -> bool:
        """Whether this worker's lease holds for certain."""

    def may_judge(self) -> bool:
        """Whether it may say of others that their leases do not."""

    def runs_here(self, turn_id: str) -> bool: ...

    def runs_elsewhere(self, turn_id: str) -> bool:
        """Whether another worker runs it, for a turn that someone listens to here."""


class Transcript:
    """The conversations that this worker holds, and what the outbox is to hear of them."""

    def __init__(self, outbox: Outbox, place: Place, sink: Sink, max_open: int) -> None:
        """`max_open` bounds the conversations that are held without need."""
        self._outbox = outbox
        self._place = place
        self._sink = sink
        self._max_open = max_open
        self._open: dict[str, Conversation] = {}
        self._bell = Bell()
        self._noted: set[str] = set()  # to be claimed
        self._again: set[str] = set()  # to be claimed once they have ended here
        self._receipts: dict[str, tuple[Conversation, Receipt]] = {}  # by turn; to be stored
        self._released: set[str] = set()  # to be given up
        self._refused: dict[str, str] = {}  # to be parked, with the reason
        self._is_telling = False  # something is on its way to the outbox
        self._draining = self._closed = False

    def loops(self) -> list[Callable[[], None]]:
        """To be run, each in a greenlet of its own, for ever."""
        return [self._sync, self._tick, self._find]

    @property
    def open(self) -> int:
        """How many conversations this worker holds."""
        return len(self._open)

    @property
    def busy(self) -> bool:
        """Whether this worker still has text to deliver, or something to say to the outbox."""
        if self._is_telling or self._receipts or self._refused or self._noted:
            return True
        return any(held.line for held in self._open.values())

    def note(self, conversation_id: str) -> None:
        """Something new waits in the outbox. Returns at once."""
        self._noted.add(conversation_id)
        self._bell.ring()

    def doubt(self) -> None:
        """This worker's lease had run out: others may hold what it held."""
        for conversation in list(self._open.values()):
            self._again.add(conversation.id)
            conversation.lose()

    def drain(self) -> None:
        """Leaves to other workers what they can do as well."""
        self._draining = True

    def close(self) -> None:
        """Ends all at once; what has not arrived stays in the outbox, for whoever comes next."""
        self._draining = self._closed = True
        for held in self._open.values():
            if held.line:
                fields = {"conversation": held.id, "turns": " ".join(held.line.turn_ids)}
                log.warning("transcript not delivered yet, left to the next worker", extra=fields)
        gevent.joinall([gevent.spawn(held.stop) for held in list(self._open.values())], timeout=STOP_TIMEOUT)
        metrics.flush()
        try:
            self._store_receipts()
        except StoreUnavailable:
            log.warning("transcript: what has arrived could not be noted, it will be sent again")

    def _sync(self) -> None:
        """Tells and asks the outbox. One greenlet, so that a claim never misses a receipt that was on its way."""
        self._bell.ring()  # this loop may have broken, and is run again
        while True:
            self._bell.wait()
            try:
                self._is_telling = True
                self._store_receipts()
                self._park()
                self._release()
                self._claim()
            except StoreUnavailable:  # the courier says so in the log
                gevent.sleep(STORE_RETRY)
                self._bell.ring()
            finally:
                self._is_telling = False
            gevent.sleep(SYNC_PAUSE)

    def _store_receipts(self) -> None:
        receipts, self._receipts = self._receipts, {}
        if not receipts:
            return
        # Whole ones first: they make room in a store that is full.
        ordered = sorted((receipt for _, receipt in receipts.values()), key=lambda receipt: not receipt.whole)
        try:
            lost = self._outbox.confirm(ordered)
        except Exception:
            self._receipts = receipts | self._receipts
            raise
        metrics.transcript_turns_delivered.inc(sum(one.whole for one in ordered if one.turn_id not in lost))
        for turn_id in lost:
            log.warning("transcript: another worker has taken over", extra={"turn": turn_id})
            receipts[turn_id][0].lose()

    def _release(self) -> None:
        if not self._released:
            return
        # Not before it is stored what has arrived there: who takes over would send it again.
        untold = {conversation.id for conversation, _ in self._receipts.values()}
        released = self._released - self._open.keys() - untold
        if released:
            self._outbox.release(released)
        self._released -= released

    def _park(self) -> None:
        for conversation_id, reason in list(self._refused.items()):
            turns = self._outbox.park(conversation_id, reason)
            del self._refused[conversation_id]
            metrics.transcript_turns_parked.inc(len(turns))
            for turn_id in turns:
                fields = {"turn": turn_id, "conversation": conversation_id, "detail": reason}
                log.error("transcript parked: `relay transcript retry` once the cause is gone", extra=fields)

    def _claim(self) -> None:
        noted, self._noted = self._noted, set()
        try:
            held = self._outbox.claim(noted) if noted else {}
        except Exception:
            self._noted |= noted
            raise
        for conversation_id in noted:
            parcels = held.get(conversation_id)
            if parcels is None:
                self._lose(conversation_id)
            else:
                self._take_in(conversation_id, parcels)

    def _take_in(self, conversation_id: str, parcels: Sequence[Parcel]) -> None:
        if self._closed:
            return
        fresh = [self._up_to_date(parcel) for parcel in parcels if not self._has_arrived(parcel.turn_id)]
        conversation = self._open.get(conversation_id)
        if conversation is not None and conversation.over:
            self._again.add(conversation_id)
        elif conversation is not None:
            conversation.resting = False
            conversation.has_more = len(parcels) == WINDOW
            if not conversation.has_more:
                conversation.line.keep({parcel.turn_id for parcel in parcels})
            conversation.line.update(fresh)
        elif fresh:
            if len(self._open) >= self._max_open:
                self._make_room()
            line = Line(conversation_id, self._place.listen, self._note_arrival)
            line.update(fresh)
            self._open[conversation_id] = conversation = Conversation(line, self._sink, self._place.may_send)
            conversation.has_more = len(parcels) == WINDOW
            conversation.start(self._note_end)
        else:
            self._released.add(conversation_id)
            self._bell.ring()

    def _has_arrived(self, turn_id: str) -> bool:
        """Whether the outbox has yet to hear that it has."""
        return turn_id in self._receipts and self._receipts[turn_id][1].whole

    def _up_to_date(self, parcel: Parcel) -> Parcel:
        """With the cursor that the outbox has yet to hear of."""
        if parcel.turn_id not in self._receipts:
            return parcel
        return parcel._replace(cursor=max(parcel.cursor, self._receipts[parcel.turn_id][1].cursor))

    def _lose(self, conversation_id: str) -> None:
        if conversation_id in self._open:
            self._open[conversation_id].lose()

    def _make_room(self) -> None:
        """Closes what is open without need, the least recently used first, or leaves what cannot get through."""
        unused = [held for held in self._open.values() if not held.line and not held.resting]
        if unused:
            min(unused, key=lambda held: held.active_at).rest()
            return
        failing = [held for held in self._open.values() if held.failing_since and not self._runs_here(held)]
        if failing:
            min(failing, key=lambda held: held.failing_since or 0.0).leave()

    def _note_arrival(self, line: Line, receipt: Receipt) -> None:
        conversation = self._open[line.conversation_id]
        self._receipts[receipt.turn_id] = conversation, receipt
        if receipt.whole and conversation.has_more and len(line) < WINDOW // 2:
            self._noted.add(conversation.id)
        if receipt.whole or self._sink.hurries:
            self._bell.ring()
        # All others wait for the next tick, or go along: one transaction for many.

    def _note_end(self, conversation: Conversation) -> None:
        del self._open[conversation.id]
        if conversation.refusal:
            self._refused[conversation.id] = conversation.refusal
        elif conversation.id in self._again:
            self._again.discard(conversation.id)
            self._noted.add(conversation.id)
        else:
            self._released.add(conversation.id)
        self._bell.ring()

    def _tick(self) -> None:
        """One timer for all."""
        while True:
            gevent.sleep(TICK)
            now = time.monotonic()
            if len(self._open) > self._max_open:
                self._make_room()
            may_send = self._place.may_send()
            metrics.flush()
            metrics.transcript_lag.set(max((held.lag(now) for held in self._open.values()), default=0.0))
            if self._receipts:
                self._bell.ring()
            for conversation in list(self._open.values()):
                if not may_send:
                    self._again.add(conversation.id)
                    conversation.lose()
                elif conversation.leaving or (self._draining and self._is_for_others(conversation)):
                    conversation.leave()
                elif conversation.wake_at <= now:
                    conversation.bell.ring()

    def _is_for_others(self, conversation: Conversation) -> bool:
        """Whether another worker should go on with it, as this one stops."""
        turn_ids = conversation.line.turn_ids
        if not turn_ids or self._place.runs_elsewhere(turn_ids[0]):
            return True
        return conversation.failing_since is not None and not self._runs_here(conversation)

    def _runs_here(self, conversation: Conversation) -> bool:
        return any(self._place.runs_here(turn_id) for turn_id in conversation.line.turn_ids)

    def _find(self) -> None:
        """Takes over what nobody holds: its holder has died, or left it."""
        while True:
            gevent.sleep(FIND_INTERVAL)
            room = self._max_open - sum(bool(held.line) for held in self._open.values())
            if self._draining or not self._place.may_judge():
                continue
            if room <= 0:
                self._make_room()  # what cannot get through must not keep others from it
                continue
            try:
                for conversation_id in self._outbox.unheld(room):
                    self.note(conversation_id)
            except StoreUnavailable:  # the courier says so in the log
                gevent.sleep(STORE_RETRY)
