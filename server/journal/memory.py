"""The journal in this process's memory: gone with the process, unseen by other workers."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..sse import Done, Event, Failure, Token
from . import Batch

MAX_BYTES = 256 * 1024 * 1024  # of kept events; beyond it the turns that ended first are forgotten before their time
EVENT_BYTES = 120  # an event's Python objects without its text


@dataclass(slots=True)
class Record:
    conversation_id: str | None
    events: list[Event] = field(default_factory=list)
    size: int = 0
    ended: bool = False


class MemoryJournal:
    """See `Journal` for the contract."""

    def __init__(self, retain: float, clock: Callable[[], float] = time.monotonic, max_bytes: int = MAX_BYTES) -> None:
        """`retain` is in seconds after a turn's end."""
        self._retain = retain
        self._clock = clock
        self._max_bytes = max_bytes
        self._records: dict[str, Record] = {}
        self._ends: OrderedDict[str, float] = OrderedDict()
        self._size = 0

    def begin(self, turn_id: str, conversation_id: str | None) -> None:
        if turn_id in self._records:
            raise ValueError(f"turn {turn_id} exists")
        self._records[turn_id] = Record(conversation_id)

    def append(self, batches: Sequence[Batch]) -> None:
        for turn_id, events in batches:
            record = self._records.get(turn_id)
            if record is None:
                continue
            fresh = [event for event in events if event.id > len(record.events)]
            if fresh and (fresh[0].id != len(record.events) + 1 or fresh[-1].id != len(record.events) + len(fresh)):
                raise ValueError(f"turn {turn_id}: event {fresh[0].id} does not follow {len(record.events)}")
            record.events += fresh
            size = sum(map(event_size, fresh))
            record.size += size
            self._size += size
            if fresh and type(fresh[-1]) is Done:
                record.ended = True
                self._ends[turn_id] = self._clock()
        while self._size > self._max_bytes and self._ends:
            self._forget_oldest()

    def read(self, turn_id: str, after: int, limit: int) -> list[Event]:
        record = self._records.get(turn_id)
        return record.events[after : after + limit] if record else []

    def purge(self) -> int:
        before = len(self._records)
        horizon = self._clock() - self._retain
        while self._ends and next(iter(self._ends.values())) <= horizon:
            self._forget_oldest()
        return before - len(self._records)

    def _forget_oldest(self) -> None:
        turn_id, _ = self._ends.popitem(last=False)
        self._size -= self._records.pop(turn_id).size


def event_size(event: Event) -> int:
    match event:
        case Token(_, text):
            return EVENT_BYTES + len(text)
        case Failure(_, error, _):
            return EVENT_BYTES + len(error)
        case Done():
            return EVENT_BYTES
