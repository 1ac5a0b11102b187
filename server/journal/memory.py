"""The journal in this process's memory: gone with the process, unseen by other processes."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence

from ..access.allowance import AT_ONCE_RETRY, UNLIMITED, Allowance, Beginnings
from ..errors import TooManyRequests, TooManyTurnsOfCaller
from ..sse import Done, Event, Extra, Failure, Token
from . import LEASE, Batch, Begun, Entry, News, Wish, closing
from .memory_outbox import MemoryOutbox
from .memory_store import Record, Store
from .outbox import Outbox

MAX_BYTES = 256 * 1024 * 1024  # of kept events; beyond it the turns that ended first are forgotten before their time
EVENT_BYTES = 120  # an event's Python objects without its text
NEWS_LIMIT = 512  # events of one turn that `news` brings at once


class MemoryJournal:
    """See `Journal` for the contract."""

    shared_fate = True

    def __init__(
        self,
        worker: str,
        retain: float,
        retain_undelivered: float,
        clock: Callable[[], float] = time.time,
        store: Store | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """`retain` and `retain_undelivered` are in seconds after a turn's end.

        Without `store`, the journal has one of its own.
        """
        self._worker = worker
        self._retain = retain
        self._clock = clock
        self._store = store or Store()
        self._max_bytes = max_bytes
        self._woken = False
        self.outbox: Outbox = MemoryOutbox(worker, max(retain, retain_undelivered), clock, self._store)

    def begin(self, entry: Entry, key: str | None, allowance: Allowance = UNLIMITED) -> Begun:
        full_key = None if key is None else (entry.caller, key)
        if full_key is not None and full_key in self._store.keys:
            return Begun(self._store.records[self._store.keys[full_key]].entry)
        if entry.id in self._store.records:
            raise ValueError(f"turn {entry.id} exists")
        now, rate, at_once = self._clock(), *allowance
        beginnings = self._store.beginnings.get(entry.caller, Beginnings())
        if rate is not None and (wait := beginnings.wait(rate, now)):
            raise TooManyRequests(rate.turns, wait)
        if at_once is not None and self._store.running[entry.caller] >= at_once:
            raise TooManyTurnsOfCaller(retry_after=AT_ONCE_RETRY)
        standing = None
        if rate is not None:
            self._store.beginnings[entry.caller] = beginnings
            standing = beginnings.note(rate, now)
        self._store.running[entry.caller] += 1
        record = self._store.records[entry.id] = Record(entry, self._worker, full_key)
        if full_key is not None:
            self._store.keys[full_key] = entry.id
        if entry.mirrored and entry.conversation_id is not None:
            self._store.post(record, now)
        return Begun(entry, standing)

    def append(self, batches: Sequence[Batch]) -> Collection[str]:
        latest: dict[str, Batch] = {}
        for batch in batches:
            record = self._store.records.get(batch.turn_id)
            if record is not None:
                latest[batch.turn_id] = batch
                if record.writer == self._worker and record.entry.running:
                    self._keep(record, batch)
        known = self._store.records
        lost = [turn for turn, batch in latest.items() if known[turn].entry.last_id > batch.events[-1].id]
        self._store.shrink(self._max_bytes)
        self._store.note_change()
        return lost

    def read(self, turn_id: str, after: int, limit: int) -> list[Event]:
        record = self._store.records.get(turn_id)
        if record is None:
            return []
        begin = min(after, len(record.events))
        while begin > 0 and record.events[begin - 1].id > after:  # ids jump before the closing events
            begin -= 1
        return record.events[begin : begin + limit]

    def find(self, turn_id: str) -> Entry | None:
        record = self._store.records.get(turn_id)
        return None if record is None else record.entry

    def turns_of(self, conversation_id: str, caller: str, limit: int) -> list[Entry]:
        found = [record.entry for record in self._store.records.values()]
        found = [entry for entry in found if entry.conversation_id == conversation_id and entry.caller == caller]
        return sorted(found, key=lambda entry: entry.began)[-limit:]

    def news(self, cursors: Mapping[str, int], timeout: float) -> News:
        deadline = time.monotonic() + timeout
        while True:
            changed = self._store.changed
            found = {turn_id: self.read(turn_id, cursor, NEWS_LIMIT) for turn_id, cursor in cursors.items()}
            found = {turn_id: events for turn_id, events in found.items() if events}
            wishes = self._store.wishes.pop(self._worker, [])
            left = deadline - time.monotonic()
            if found or wishes or self._woken or left <= 0:
                self._woken = False
                return News(found, wishes)
            changed.wait(left)

    def wake(self) -> None:
        self._woken = True
        self._store.note_change()

    def ask(self, turn_ids: Collection[str], wish: Wish) -> Collection[str]:
        running = set()
        for turn_id in turn_ids:
            record = self._store.records.get(turn_id)
            if record is not None and record.entry.running:
                running.add(turn_id)
                self._store.wish(record.writer, turn_id, wish)
        self._store.note_change()
        return running

    def renew(self) -> bool:
        now = self._clock()
        unbroken = self._store.leases.get(self._worker, 0.0) >= now
        self._store.leases[self._worker] = now + LEASE
        return unbroken

    def interrupt_orphans(self) -> Collection[str]:
        now = self._clock()
        orphans = [
            record
            for record in self._store.records.values()
            if record.entry.running and record.writer != self._worker and not self._store.lives(record.writer, now)
        ]
        for record in orphans:
            self._keep(record, Batch(record.entry.id, closing(record.entry.reach)))
        if orphans:
            self._store.note_change()
        return [record.entry.id for record in orphans]

    def purge(self) -> int:
        horizon = self._clock() - self._retain
        old = [turn_id for turn_id, ended in self._store.ended.items() if ended <= horizon]
        for turn_id in old:
            self._store.forget(turn_id)
        self._store.forget_beginnings(self._clock())
        return len(old)

    def erase(self, conversation_id: str, caller: str) -> Collection[str]:
        found = [record for record in self._store.records.values() if record.entry.conversation_id == conversation_id]
        found = [record for record in found if record.entry.caller == caller]
        ended = [record for record in found if not record.entry.running]
        undelivered = [record for record in ended if self._store.is_undelivered(record)]
        for record in undelivered:
            self._store.take_out(record)
        for record in ended:
            self._store.forget(record.entry.id)
        if undelivered:
            self._store.tell_holder(conversation_id, self._clock())
        return [record.entry.id for record in found if record.entry.running]

    def secret(self, proposed: bytes) -> bytes:
        self._store.secret = self._store.secret or proposed
        return self._store.secret

    def close(self) -> None:
        self._store.leases.pop(self._worker, None)

    def _keep(self, record: Record, batch: Batch) -> None:
        fresh = [event for event in batch.events if event.id > record.entry.last_id]
        if not fresh:
            return
        record.events += fresh
        size = sum(map(event_size, fresh))
        record.size += size
        self._store.size += size
        record.entry = record.entry._replace(last_id=fresh[-1].id, reach=batch.reach, status=batch.status)
        if not record.entry.running:
            record.entry = record.entry._replace(ended=self._clock())
            self._store.note_end(record, self._clock())


def event_size(event: Event) -> int:
    match event:
        case Token(_, text):
            return EVENT_BYTES + len(text)
        case Extra(_, choice):
            return EVENT_BYTES + len(choice)
        case Failure(_, error, _):
            return EVENT_BYTES + len(error)
        case Done():
            return EVENT_BYTES
