"""What the memory engine's journals and outboxes share."""

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field

from gevent.event import Event as Flag

from ..access.allowance import LONGEST, Beginnings
from ..sse import Event
from . import LEASE, Entry, Wish
from .outbox import Delivery, State

MAX_WISHES = 10_000  # that wait for a worker; older ones are dropped
MAX_DROPPED = 10_000  # deliveries given up for want of memory that wait to be told


@dataclass(slots=True)
class Record:
    entry: Entry
    writer: str
    key: tuple[str, str] | None
    events: list[Event] = field(default_factory=list)
    size: int = 0
    arrived: int = 0  # the transcript's cursor
    reason: str | None = None  # why the outbox has set it aside


@dataclass(slots=True)
class Store:
    records: dict[str, Record] = field(default_factory=dict)
    keys: dict[tuple[str, str], str] = field(default_factory=dict)  # caller and idempotency key: the turn's id
    ended: OrderedDict[str, float] = field(default_factory=OrderedDict)  # when, of turns that no outbox keeps
    running: Counter[str] = field(default_factory=Counter)  # turns, by caller
    beginnings: dict[str, Beginnings] = field(default_factory=dict)  # by caller
    leases: dict[str, float] = field(default_factory=dict)
    wishes: dict[str, list[tuple[str, Wish]]] = field(default_factory=dict)
    outbox: dict[str, dict[str, Record]] = field(default_factory=dict)  # by conversation; the oldest first
    undelivered: OrderedDict[str, float] = field(default_factory=OrderedDict)  # when those of the outbox ended
    holders: dict[str, str] = field(default_factory=dict)  # by conversation; the dead too
    dropped: deque[Delivery] = field(default_factory=lambda: deque(maxlen=MAX_DROPPED))
    changed: Flag = field(default_factory=Flag)
    size: int = 0
    secret: bytes = b""

    def note_change(self) -> None:
        changed, self.changed = self.changed, Flag()
        changed.set()

    def lives(self, worker: str, now: float) -> bool:
        """Whether its lease holds; one that ends too late is of a clock that was set back."""
        return now <= self.leases.get(worker, 0.0) <= now + LEASE

    def wish(self, worker: str, name: str, wish: Wish) -> None:
        waiting = self.wishes.setdefault(worker, [])
        if (name, wish) not in waiting:
            waiting.append((name, wish))
            del waiting[:-MAX_WISHES]

    def post(self, record: Record, now: float) -> None:
        """Puts a turn that begins into the outbox, and tells the holder where that is another living worker."""
        conversation = record.entry.conversation_id
        assert conversation is not None
        self.outbox.setdefault(conversation, {})[record.entry.id] = record
        if self.holders.get(conversation) != record.writer:
            self.tell_holder(conversation, now)

    def tell_holder(self, conversation: str, now: float) -> None:
        """Its outbox has changed."""
        holder = self.holders.get(conversation, "")
        if self.lives(holder, now):
            self.wish(holder, conversation, "deliver")
            self.note_change()

    def is_undelivered(self, record: Record) -> bool:
        return record.entry.id in self.outbox.get(record.entry.conversation_id or "", ())

    def take_out(self, record: Record) -> None:
        """Out of the outbox."""
        conversation = record.entry.conversation_id
        assert conversation is not None
        queue = self.outbox[conversation]
        del queue[record.entry.id]
        if not queue:
            del self.outbox[conversation]
        ended = self.undelivered.pop(record.entry.id, None)
        if ended is not None:
            self.ended[record.entry.id] = ended

    def note_end(self, record: Record, now: float) -> None:
        self.running[record.entry.caller] -= 1
        if not self.running[record.entry.caller]:
            del self.running[record.entry.caller]
        ends = self.undelivered if self.is_undelivered(record) else self.ended
        ends[record.entry.id] = now

    def forget(self, turn_id: str) -> None:
        """Forgets a turn that no outbox keeps."""
        del self.ended[turn_id]
        record = self.records.pop(turn_id)
        self.size -= record.size
        if record.key is not None:
            del self.keys[record.key]

    def forget_beginnings(self, now: float) -> None:
        """Those of callers of whom none counts any more."""
        for caller in [name for name, found in self.beginnings.items() if found.newest <= now - LONGEST]:
            del self.beginnings[caller]

    def shrink(self, size: int) -> None:
        """Forgets turns that have ended before their time, those that are delivered first."""
        while self.size > size and (self.ended or self.undelivered):
            if not self.ended:
                record = self.records[next(iter(self.undelivered))]
                self.dropped.append(delivery_of(record, undelivered=True))
                self.take_out(record)
            self.forget(next(iter(self.ended)))


def delivery_of(record: Record, undelivered: bool) -> Delivery:
    assert record.entry.conversation_id is not None
    state: State = "delivered" if not undelivered else "pending" if record.reason is None else "parked"
    return Delivery(record.entry.id, record.entry.conversation_id, state, record.arrived, record.reason)
