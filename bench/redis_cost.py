"""What redis-server spends on what the relay asks of it, through the relay's own engine.

`measure` gives the cost of each call; `drive` has a Redis carry the load of so many streams, as workers bring it, so
that what the sum of the calls foretells can be held against what it takes. CPU is redis-server's alone.
"""

import random
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import redis

from server.journal import LEASE, RENEW_INTERVAL, Batch, Entry
from server.journal.flusher import FLUSH_INTERVAL, SLACK, WATCHED_INTERVAL
from server.journal.outbox import Receipt
from server.journal.redis import RedisJournal
from server.sse import Done, Token
from server.transcript import FIND_INTERVAL
from server.transcript.websocket import CONFIRM_INTERVAL

from . import servers
from .layout import Load
from .servers import Server

TURNS = 500  # that are begun, kept and ended to learn what that costs; as many looks and empty round trips
BATCH = 100  # scripts of a round trip: what is due within SLACK in a worker of some 250 streams
WORKERS = 32  # that look after one another, to learn what each costs the others
PAUSE = 0.001  # seconds between two round trips: a Redis that is never idle is cheaper than one that is woken each time
CURSORS = 64  # of the turns that such a look asks for, beside a look for one
RETAIN = 3600.0  # seconds; longer than any measurement
RETAIN_UNDELIVERED = 86_400.0  # seconds
JOIN_PATIENCE = 10.0  # seconds until a driver's threads must have ended
WORDS = ("the", "of", "to", "and", "your", "parcel", "order", "will", "arrive", "tomorrow", "please", "let", "know")


class Used(NamedTuple):
    """What a Redis has used since its start."""

    cpu: float  # seconds
    received: int  # bytes
    sent: int  # bytes
    memory: int  # bytes that it holds now


class RedisCosts(NamedTuple):
    """What one of each costs: microseconds of redis-server, bytes over the network both ways, bytes of memory."""

    trip_us: float  # of a round trip with nothing in it; those of scripts that come in batches are without it
    begin_us: float
    claim_us: float
    append_us: float
    confirm_us: float
    end_us: float
    tend_us: float
    look_us: float
    cursor_us: float
    begin_bytes: float
    append_bytes: float
    confirm_bytes: float
    look_bytes: float
    cursor_bytes: float
    turn_bytes: float


class Driven(NamedTuple):
    """How a Redis stood a load."""

    seconds: float
    cores: float  # of redis-server
    bytes_per_second: float
    appends: float  # a second
    looks: float  # a second
    append_p50: float  # ms of a round trip, the wait for this process' own threads included


def used(server: Server, client: "redis.Redis[Any]") -> Used:
    info: Any = client.info()
    cpu = servers.cpu_seconds({server.process.pid})
    return Used(cpu, info["total_net_input_bytes"], info["total_net_output_bytes"], info["used_memory"])


def answer(first: int, count: int, chance: random.Random) -> list[Token]:
    """So many tokens, as long as a model's are."""
    return [Token(first + n, f" {chance.choice(WORDS)}") for n in range(count)]


def entry(conversation: str) -> Entry:
    return Entry(uuid.uuid4().hex, conversation, "shop", time.time(), "f" * 64, mirrored=True)


@contextmanager
def connected() -> Iterator[tuple[Server, "redis.Redis[Any]"]]:
    with servers.redis() as server:
        client = redis.Redis.from_url(server.url)
        try:
            yield server, client
        finally:
            client.close()


def measure(load: Load, turns: int = TURNS) -> RedisCosts:
    """The cost of each call, of answers as `load` has them."""
    with connected() as (server, client):
        journal = RedisJournal(server.url, "w0", RETAIN, RETAIN_UNDELIVERED)
        others = [RedisJournal(server.url, f"w{n}", RETAIN, RETAIN_UNDELIVERED) for n in range(1, WORKERS)]

        def spent(action: Callable[[], int]) -> tuple[float, float, float]:
            """Microseconds, bytes over the network and bytes of memory, each by the count that `action` returns."""
            before = used(server, client)
            count = action()
            after = used(server, client)
            network = after.received + after.sent - before.received - before.sent - overhead
            micro = (after.cpu - before.cpu) * 1e6
            return micro / count, network / count, (after.memory - before.memory) / count

        overhead = 0.0
        overhead = spent(lambda: 1)[1]  # of looking itself
        trip = spent(lambda: ping(client, turns))[0]
        steps = Steps(journal, others, load, turns)
        for step in (steps.renew, steps.warm_up):
            step()
        begin = spent(steps.begin)
        claim = spent(steps.claim)
        append = spent(steps.append)
        confirm = spent(steps.confirm)
        one, many = spent(lambda: steps.look(1)), spent(lambda: steps.look(min(CURSORS, turns)))
        steps.hold_leases()
        tend = spent(steps.tend)
        end = spent(steps.end)
        cursors = min(CURSORS, turns) - 1
        cursor_us, cursor_bytes = max(0.0, many[0] - one[0]) / cursors, max(0.0, many[1] - one[1]) / cursors
        held = begin[2] + claim[2] + append[2] * steps.flushes + confirm[2] + end[2]
        for closing in [journal, *others]:
            closing.close()
    return RedisCosts(
        trip_us=trip,
        begin_us=begin[0],
        claim_us=claim[0],
        append_us=append[0] - trip / BATCH,
        confirm_us=confirm[0] - trip / BATCH,
        end_us=end[0],
        tend_us=tend[0] / WORKERS,
        look_us=one[0],
        cursor_us=cursor_us,
        begin_bytes=begin[1] + claim[1] + end[1],
        append_bytes=append[1],
        confirm_bytes=confirm[1],
        look_bytes=one[1],
        cursor_bytes=cursor_bytes,
        turn_bytes=held,
    )


class Steps:
    """What a turn has the relay ask of its store, each as a step of its own. Each returns how often it was asked."""

    def __init__(self, journal: RedisJournal, others: list[RedisJournal], load: Load, turns: int) -> None:
        self.flushes = load.flushes
        self._journal = journal
        self._others = others
        self._chance = random.Random(1)
        self._turns = [entry(f"conversation-{n:08}") for n in range(turns)]
        self._each = round(load.tokens / load.flushes)  # tokens of a flush
        self._at = 0  # the last id that is kept of each turn

    def renew(self) -> int:
        for journal in [self._journal, *self._others]:
            journal.renew()
        return WORKERS

    def warm_up(self) -> int:
        """Loads each script."""
        first = entry("warm")
        self._journal.begin(first, None)
        self._journal.outbox.claim(["warm"])
        self._journal.append([Batch(first.id, [Token(1, "a"), Done(2, "complete")])])
        self._journal.outbox.confirm([Receipt(first.id, 2, whole=True)])
        self._journal.outbox.release(["warm"])
        self._journal.interrupt_orphans()
        self._journal.outbox.unheld(1)
        # Each of the others has a turn that runs: it is one of those whom everyone looks after.
        for n, other in enumerate(self._others):
            other.begin(entry(f"other-{n}"), None)
            other.outbox.claim([f"other-{n}"])
        return 1

    def begin(self) -> int:
        for turn in self._turns:
            self._journal.begin(turn, None)
            time.sleep(PAUSE)
        return len(self._turns)

    def claim(self) -> int:
        self._journal.renew()
        for turn in self._turns:
            self._journal.outbox.claim([turn.conversation_id or ""])
            time.sleep(PAUSE)
        return len(self._turns)

    def append(self) -> int:
        for _ in range(self.flushes):
            tokens = answer(self._at + 1, self._each, self._chance)
            for part in parts(self._turns):
                self._journal.append([Batch(turn.id, tokens) for turn in part])
                time.sleep(PAUSE)
            self._at += self._each
        return self.flushes * len(self._turns)

    def confirm(self) -> int:
        for part in parts(self._turns):
            self._journal.outbox.confirm([Receipt(turn.id, self._at, whole=False) for turn in part])
            time.sleep(PAUSE)
        return len(self._turns)

    def look(self, cursors: int) -> int:
        """For news of so many turns, one of which has some; the news lie there already."""
        behind = {turn.id: self._at for turn in self._turns[:cursors]}
        behind[self._turns[0].id] -= self._each
        for _ in range(len(self._turns)):
            self._journal.news(behind, 1.0)
            time.sleep(PAUSE)
        return len(self._turns)

    def hold_leases(self) -> None:
        """For so long that a worker may look after the others."""
        held = time.monotonic() + LEASE
        while time.monotonic() < held:
            self.renew()
            time.sleep(RENEW_INTERVAL)
        self.renew()

    def tend(self) -> int:
        """A worker's look after all the others, those that run turns and those that hold conversations."""
        renewed = 0.0
        for _ in range(len(self._turns)):
            if (now := time.monotonic()) - renewed > RENEW_INTERVAL:
                renewed = now
                self.renew()
            self._journal.interrupt_orphans()
            self._journal.outbox.unheld(1)
            time.sleep(PAUSE)
        return len(self._turns)

    def end(self) -> int:
        for part in parts(self._turns):
            self._journal.append([Batch(turn.id, [Done(self._at + 1, "complete", "stop")]) for turn in part])
            self._journal.outbox.confirm([Receipt(turn.id, self._at + 1, whole=True) for turn in part])
        self._journal.outbox.release([turn.conversation_id or "" for turn in self._turns])
        return len(self._turns)


def ping(client: "redis.Redis[Any]", count: int) -> int:
    for _ in range(count):
        client.ping()
        time.sleep(PAUSE)
    return count


def parts(turns: list[Entry]) -> Iterator[list[Entry]]:
    for at in range(0, len(turns), BATCH):
        yield turns[at : at + BATCH]


@dataclass(slots=True, eq=False)
class Turn:
    entry: Entry
    interval: float  # seconds between two flushes
    reader: "Worker | None"  # who follows it elsewhere
    next_flush: float
    next_confirm: float
    ends: float
    last_id: int = 0
    carried: float = 0.0  # monotonic seconds up to which its tokens have come


@dataclass(slots=True)
class Worker:
    """One of the relay's workers, as its store sees it: `run` flushes, `listen` reads the others, `tend` lives on."""

    journal: RedisJournal
    load: Load
    streams: int
    chance: random.Random
    others: "list[Worker]" = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    reads: dict[str, int] = field(default_factory=dict)  # cursors of others' turns
    round_trips: list[float] = field(default_factory=list)  # ms
    appends: int = 0
    looks: int = 0
    failures: list[str] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def open(self) -> None:
        self.journal.renew()
        now = time.monotonic()
        for _ in range(self.streams):
            turn = self.begin(now)
            turn.ends = now + self.chance.random() * self.load.seconds  # as if all were somewhere on their way
            self.turns.append(turn)

    def begin(self, now: float) -> Turn:
        begun = entry(f"c-{uuid.uuid4().hex[:12]}")
        self.journal.begin(begun, None)
        self.journal.outbox.claim([begun.conversation_id or ""])
        chance = self.chance.random()
        is_watched = chance < self.load.followed_elsewhere
        is_read = chance < self.load.followed_elsewhere + self.load.mirrored_elsewhere
        reader = self.chance.choice(self.others) if is_read and self.others else None
        if reader:
            reader.reads[begun.id] = 0
        interval = WATCHED_INTERVAL if is_watched else FLUSH_INTERVAL
        flush = now + self.chance.random() * interval
        confirm = now + self.chance.random() * CONFIRM_INTERVAL
        return Turn(begun, interval, reader, flush, confirm, now + self.load.seconds, carried=now)

    def run(self) -> None:
        self._for_ever(self._flush, 0.0)

    def listen(self) -> None:
        self._for_ever(self._look, 0.0)

    def tend(self) -> None:
        self._for_ever(self._tend, min(RENEW_INTERVAL, FIND_INTERVAL))

    def _for_ever(self, action: Callable[[], None], pause: float) -> None:
        try:
            while not self.stopping.wait(pause):
                action()
        except Exception as error:  # noqa: BLE001 - told by `drive`
            self.failures.append(f"{type(error).__name__}: {error}")

    def _flush(self) -> None:
        now = time.monotonic()
        due = [turn for turn in self.turns if turn.next_flush <= now + SLACK]
        if due:
            over = {turn.entry.id: turn for turn in due if turn.ends <= now}
            begin = time.monotonic()
            self.journal.append([self._batch(turn, now, turn.entry.id in over) for turn in due])
            self.round_trips.append((time.monotonic() - begin) * 1000)
            self.appends += len(due)
            self._confirm(now, over)
            self.turns = [turn for turn in self.turns if turn.entry.id not in over]
            self.turns += [self.begin(time.monotonic()) for _ in over]
        soonest = min(turn.next_flush for turn in self.turns)
        self.stopping.wait(max(0.0, soonest - time.monotonic()))

    def _batch(self, turn: Turn, now: float, is_over: bool) -> Batch:
        turn.next_flush = max(turn.next_flush, now) + turn.interval
        count = max(1, round((now - turn.carried) * self.load.tokens_per_second))
        turn.carried = now
        events: list[Any] = answer(turn.last_id + 1, count, self.chance)
        turn.last_id += count + is_over
        return Batch(turn.entry.id, [*events, Done(turn.last_id, "complete", "stop")] if is_over else events)

    def _confirm(self, now: float, over: Mapping[str, Turn]) -> None:
        receipts = [Receipt(id, turn.last_id, whole=True) for id, turn in over.items()]
        for turn in self.turns:
            if turn.next_confirm <= now and turn.entry.id not in over:
                receipts.append(Receipt(turn.entry.id, turn.last_id, whole=False))
                turn.next_confirm = now + CONFIRM_INTERVAL
        if receipts:
            self.journal.outbox.confirm(receipts)
        if over:
            for turn in over.values():
                if turn.reader:
                    turn.reader.reads.pop(turn.entry.id, None)
            self.journal.outbox.release([turn.entry.conversation_id or "" for turn in over.values()])

    def _look(self) -> None:
        news = self.journal.news(dict(self.reads), 1.0)
        self.looks += 1
        for turn_id, events in news.events.items():
            if turn_id in self.reads:
                self.reads[turn_id] = events[-1].id
        if not self.reads:
            self.stopping.wait(FLUSH_INTERVAL)

    def _tend(self) -> None:
        self.journal.renew()
        self.journal.interrupt_orphans()
        self.journal.outbox.unheld(1)


def drive(load: Load, workers: int, seconds: float) -> Driven:
    """Has a Redis of its own carry `load` for so long, brought by so many workers in threads of this process."""
    with connected() as (server, client):
        share = load.streams // workers
        crew = [
            Worker(RedisJournal(server.url, f"w{n}", RETAIN, RETAIN_UNDELIVERED), load, share, random.Random(n))
            for n in range(workers)
        ]
        for n, worker in enumerate(crew):
            worker.others = crew[:n] + crew[n + 1 :]
            worker.open()
        threads = [
            threading.Thread(target=loop, daemon=True)
            for worker in crew
            for loop in (worker.run, worker.listen, worker.tend)
        ]
        for thread in threads:
            thread.start()
        time.sleep(min(2.0, seconds / 4))  # until all is on its way
        before, began = used(server, client), time.monotonic()
        counts = [(worker.appends, worker.looks) for worker in crew]
        for worker in crew:
            worker.round_trips.clear()
        time.sleep(seconds)
        after, took = used(server, client), time.monotonic() - began
        appends = sum(worker.appends - count for worker, (count, _) in zip(crew, counts, strict=True))
        looks = sum(worker.looks - count for worker, (_, count) in zip(crew, counts, strict=True))
        trips = [trip for worker in crew for trip in worker.round_trips]
        for worker in crew:
            worker.stopping.set()
        for thread in threads:
            thread.join(JOIN_PATIENCE)
        for worker in crew:
            worker.journal.close()
        failures = [failure for worker in crew for failure in worker.failures]
        if failures:
            raise SystemExit(f"a worker of the drive failed: {failures[0]}; no figures")
    network = after.received + after.sent - before.received - before.sent
    return Driven(
        took,
        (after.cpu - before.cpu) / took,
        network / took,
        appends / took,
        looks / took,
        statistics.median(trips),
    )
