"""The outbox of the memory engine."""

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice

from .memory_store import Record, Store, delivery_of
from .outbox import MAX_REASON, WINDOW, Delivery, Parcel, Receipt


class MemoryOutbox:
    """See `Outbox` for the contract."""

    def __init__(self, worker: str, keep: float, clock: Callable[[], float], store: Store) -> None:
        """`keep` is in seconds after an undelivered turn's end."""
        self._worker = worker
        self._keep = keep
        self._clock = clock
        self._store = store

    def claim(self, conversation_ids: Collection[str]) -> Mapping[str, Sequence[Parcel]]:
        if not self._store.lives(self._worker, self._clock()):
            return {}
        free = [name for name in conversation_ids if self._holder(name) in (None, self._worker)]
        self._store.holders |= dict.fromkeys(free, self._worker)
        self._unpark(free)
        return {name: [parcel_of(record) for record in islice(self._queue(name), WINDOW)] for name in free}

    def release(self, conversation_ids: Collection[str]) -> None:
        for name in conversation_ids:
            if self._store.holders.get(name) == self._worker:
                del self._store.holders[name]

    def unheld(self, limit: int) -> Collection[str]:
        pending = (name for name in self._store.outbox if any(record.reason is None for record in self._queue(name)))
        return list(islice((name for name in pending if self._holder(name) is None), limit))

    def confirm(self, receipts: Sequence[Receipt]) -> Collection[str]:
        lost = []
        for receipt in receipts:
            record = self._store.records.get(receipt.turn_id)
            if record is None or not self._store.is_undelivered(record):
                continue
            if self._holder(record.entry.conversation_id) != self._worker:
                lost.append(receipt.turn_id)
                continue
            record.arrived = max(record.arrived, receipt.cursor)
            if receipt.whole:
                self._store.take_out(record)
        return lost

    def park(self, conversation_id: str, reason: str) -> Collection[str]:
        if self._holder(conversation_id) != self._worker:
            return []
        del self._store.holders[conversation_id]
        parked = self._queue(conversation_id)
        for record in parked:
            record.reason = reason[:MAX_REASON]
        return [record.entry.id for record in parked]

    def retry(self, conversation_id: str | None = None) -> Collection[str]:
        return self._unpark(list(self._store.outbox) if conversation_id is None else [conversation_id])

    def find(self, turn_id: str) -> Delivery | None:
        record = self._store.records.get(turn_id)
        if record is None or not record.entry.mirrored or record.entry.conversation_id is None:
            return None
        return delivery_of(record, self._store.is_undelivered(record))

    def undelivered(self, limit: int) -> list[Delivery]:
        waiting = (record for record in self._store.records.values() if self._store.is_undelivered(record))
        return [delivery_of(record, undelivered=True) for record in islice(waiting, limit)]

    def expire(self) -> Collection[Delivery]:
        horizon = self._clock() - self._keep
        old = [turn_id for turn_id, ended in self._store.undelivered.items() if ended <= horizon]
        expired = [self._store.dropped.popleft() for _ in range(len(self._store.dropped))]
        for turn_id in old:
            record = self._store.records[turn_id]
            expired.append(delivery_of(record, undelivered=True))
            self._store.take_out(record)
            self._store.forget(turn_id)
        return expired

    def _queue(self, conversation_id: str) -> Collection[Record]:
        return self._store.outbox.get(conversation_id, {}).values()

    def _holder(self, conversation_id: str | None) -> str | None:
        """The living worker that holds it."""
        holder = self._store.holders.get(conversation_id or "")
        return holder if holder is not None and self._store.lives(holder, self._clock()) else None

    def _unpark(self, conversation_ids: Collection[str]) -> list[str]:
        parked = [record for name in conversation_ids for record in self._queue(name) if record.reason is not None]
        for record in parked:
            record.reason = None
        return [record.entry.id for record in parked]


def parcel_of(record: Record) -> Parcel:
    return Parcel(record.entry.id, record.arrived)
