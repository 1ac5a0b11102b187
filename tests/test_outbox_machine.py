"""Any order of what can happen to text on its way into transcripts.

Holders that claim, send, hear pongs and note them, with replies that are lost; that die, sleep through their lease and
come back late, release, park; others that take over; time, purges and the end of retention.
"""

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from server.journal import LEASE, Batch, closing, memory_outbox, redis_outbox, sqlite_outbox
from server.journal.outbox import Delivery, Parcel, Receipt
from server.sse import Done, Token

from .stores import RETAIN, RETAIN_UNDELIVERED, MemoryStore, RedisServer, RedisStore, SqliteStore, entry

WORKERS = 3
CONVERSATIONS = "abc"
WINDOW = 3  # in place of the engines' own: few turns fill it


@dataclass(eq=False)
class Turn:
    entry: object
    writer: "Worker"
    kept: list = field(default_factory=list)
    ended: float | None = None
    undelivered: bool = True  # in the outbox
    cursor: int = 0  # as the store has it
    reason: str | None = None
    seen: int = 0  # the last token that Genesys Cloud got
    forgotten: bool = False

    @property
    def id(self):
        return self.entry.id

    @property
    def conversation(self):
        return self.entry.conversation_id

    def tokens(self, after, up_to):
        return [event.id for event in self.kept if type(event) is Token and after < event.id <= up_to]

    def delivery(self):
        if self.forgotten or not self.entry.mirrored:
            return None
        state = "delivered" if not self.undelivered else "parked" if self.reason else "pending"
        return Delivery(self.id, self.conversation, state, self.cursor, self.reason)


@dataclass(eq=False)
class Link:
    """What a holder has in memory of one conversation: by turn, the last event that was sent and that has arrived."""

    queue: list
    sent: dict = field(default_factory=dict)
    arrived: dict = field(default_factory=dict)
    whole: set = field(default_factory=set)  # turns of which all was sent


@dataclass(eq=False)
class Worker:
    """One that may have died; its journal is what it could do."""

    name: str
    journal: object
    links: dict[str, Link] = field(default_factory=dict)


class Outboxes(RuleBasedStateMachine):
    make_store = None  # set by each engine's class
    who = st.integers(0, WORKERS - 1)
    where = st.sampled_from(CONVERSATIONS)
    count = st.integers(1, 4)

    def __init__(self):
        super().__init__()
        self.store = type(self).make_store()
        self.names = 0
        self.turns = []  # all, in the order in which they began
        self.holders = {}  # by conversation, who claimed it last and has not given it up; may have lost its lease
        self.workers = [self.new_worker() for _ in range(WORKERS)]

    def new_worker(self):
        self.names += 1
        name = f"worker-{self.names}"
        return Worker(name, self.store.worker(name))

    def queue(self, conversation):
        return [turn for turn in self.turns if turn.conversation == conversation and turn.undelivered]

    def pending(self, conversation):
        return any(turn.reason is None for turn in self.queue(conversation))

    # What the writers do.

    @rule(who=who, where=where, mirrored=st.sampled_from([True, True, True, False]))
    def begin(self, who, where, mirrored):
        worker, holder = self.workers[who], self.holders.get(where)
        turn = Turn(entry(where, mirrored=mirrored), worker, undelivered=mirrored)
        assert worker.journal.begin(turn.entry, None) == turn.entry
        self.turns.append(turn)
        for other in self.workers:
            told = mirrored and other is holder and other is not worker
            assert list(other.journal.news({}, 0).wishes) == ([(where, "deliver")] if told else [])

    @rule(who=who, count=count, end=st.booleans())
    def say(self, who, count, end):
        """All that this worker writes goes on, and is kept at once."""
        batches = []
        for turn in self.turns:
            if turn.writer is self.workers[who] and turn.ended is None:
                last = turn.kept[-1].id if turn.kept else 0
                events = [Token(number, f"{number} ") for number in range(last + 1, last + count + 1)]
                events += [Done(last + count + 1, "complete")] if end else []
                turn.kept += events
                turn.ended = self.store.now if end else None
                batches.append(Batch(turn.id, events))
        assert not self.workers[who].journal.append(batches)

    # What the holders do.

    @rule(who=who, names=st.sets(where))
    def claim(self, who, names):
        worker = self.workers[who]
        free = [name for name in names if self.holders.get(name, worker) is worker]
        found = worker.journal.outbox.claim(names)
        for name in free:
            for turn in self.queue(name):
                turn.reason = None
        assert {name: list(some) for name, some in found.items()} == {
            name: [Parcel(turn.id, turn.cursor) for turn in self.queue(name)[:WINDOW]] for name in free
        }
        for name in free:
            self.holders[name] = worker
            worker.links.setdefault(name, Link([])).queue = self.queue(name)[:WINDOW]

    @rule(who=who)
    def look_around(self, who):
        found = self.workers[who].journal.outbox.unheld(10)
        free = {name for name in CONVERSATIONS if self.pending(name) and name not in self.holders}
        assert sorted(found) == sorted(free)
        self.claim(who, set(found))

    @rule(who=who, where=where, limit=st.sampled_from([1, 2, 100]))
    def send(self, who, where, limit):
        worker = self.workers[who]
        if where in worker.links:
            self.do_send(worker, where, limit)

    def do_send(self, worker, where, limit):
        """Sends what the store has of the first turns; a turn begins when the one before is whole."""
        link = worker.links[where]
        for turn in link.queue:
            cursor = max(link.sent.get(turn, 0), turn.cursor)
            for event in worker.journal.read(turn.id, cursor, limit)[:limit]:
                if type(event) is Token:
                    self.receive(turn, event.id)
                link.sent[turn] = event.id
                if type(event) is Done:
                    link.whole.add(turn)
            if turn not in link.whole:
                return

    def receive(self, turn, number):
        """Genesys Cloud gets each token in order, and again at most what was not noted as arrived."""
        if number <= turn.seen:
            assert number > turn.cursor, "what was confirmed is not repeated"
            return
        assert turn.tokens(turn.seen, number) == [number], "no hole"
        turn.seen = number
        for earlier in self.queue(turn.conversation):
            if earlier is turn:
                break
            assert earlier.ended is not None, "turns go one after the other"
            assert earlier.tokens(earlier.seen, earlier.kept[-1].id) == [], "earlier turns are whole"

    @rule(who=who, where=where)
    def pong(self, who, where):
        link = self.workers[who].links.get(where)
        if link is not None:
            link.arrived |= link.sent

    @rule(who=who, where=where)
    def lose_link(self, who, where):
        """What no pong has confirmed is sent again."""
        link = self.workers[who].links.get(where)
        if link is not None:
            link.sent = dict(link.arrived)
            link.whole = {turn for turn in link.whole if turn in link.sent and link.sent[turn] == turn.kept[-1].id}

    @rule(who=who, reply_is_lost=st.booleans())
    def confirm(self, who, reply_is_lost):
        self.do_confirm(self.workers[who], reply_is_lost)

    def do_confirm(self, worker, reply_is_lost=False, alive=True):
        arrived = [(turn, cursor) for link in worker.links.values() for turn, cursor in link.arrived.items()]
        receipts = [
            Receipt(turn.id, cursor, type(turn.kept[-1]) is Done and cursor == turn.kept[-1].id)
            for turn, cursor in arrived
        ]
        lost = list(worker.journal.outbox.confirm(receipts))
        holds = [alive and self.holders.get(turn.conversation) is worker for turn, _ in arrived]
        assert lost == [
            turn.id for (turn, _), held in zip(arrived, holds, strict=True) if turn.undelivered and not held
        ]
        for (turn, cursor), receipt, held in zip(arrived, receipts, holds, strict=True):
            if turn.undelivered and held:
                turn.cursor = max(turn.cursor, cursor)
                turn.undelivered = not receipt.whole
        self.purge(worker)
        if not reply_is_lost:
            worker.links = {
                name: Link(
                    [turn for turn in link.queue if turn not in link.whole or turn not in link.arrived],
                    {turn: cursor for turn, cursor in link.sent.items() if turn.undelivered},
                    {},
                    {turn for turn in link.whole if turn.undelivered},
                )
                for name, link in worker.links.items()
                if self.holders.get(name) is worker
            }

    @rule(who=who, names=st.sets(where))
    def release(self, who, names):
        worker = self.workers[who]
        worker.journal.outbox.release(names)
        for name in names:
            self.let_go(worker, name)

    def let_go(self, worker, name):
        worker.links.pop(name, None)
        if self.holders.get(name) is worker:
            del self.holders[name]

    @rule(who=who, where=where, reason=st.sampled_from(["refused", "gone"]))
    def park(self, who, where, reason):
        worker = self.workers[who]
        held = self.holders.get(where) is worker
        assert list(worker.journal.outbox.park(where, reason)) == (
            [turn.id for turn in self.queue(where)] if held else []
        )
        if held:
            for turn in self.queue(where):
                turn.reason = reason
            self.let_go(worker, where)

    @rule(who=who, where=st.one_of(st.none(), where))
    def retry(self, who, where):
        freed = [turn for turn in self.turns if turn.reason and turn.undelivered and where in (None, turn.conversation)]
        assert sorted(self.workers[who].journal.outbox.retry(where)) == sorted(turn.id for turn in freed)
        for turn in freed:
            turn.reason = None

    # What happens to workers.

    @rule(who=who)
    def die(self, who):
        """kill -9: others take over when its lease has ended."""
        dead, self.workers[who] = self.workers[who], self.new_worker()
        self.outlive_lease(dead)

    @rule(who=who, others=st.lists(who, max_size=2))
    def sleep(self, who, others):
        """It comes back late, perhaps after others took over, and tries to note what it had sent before."""
        sleeper = self.workers[who]
        held = self.outlive_lease(sleeper)
        for other in others:
            if other != who:
                self.look_around(other)
        self.do_confirm(sleeper, alive=False, reply_is_lost=True)
        assert sleeper.journal.outbox.claim(CONVERSATIONS) == {}, "it has no lease"
        assert not sleeper.journal.renew()
        if not others:
            # Nobody has looked for what it held.
            self.holders |= dict.fromkeys(held, sleeper)
            self.do_confirm(sleeper)
        links, sleeper.links = sleeper.links, {}
        self.claim(who, set(links))

    def outlive_lease(self, *dead):
        """The turns that these write end, and nobody holds what they held."""
        alive = [worker for worker in self.workers if worker not in dead]
        self.store.outlive_lease(*(worker.journal for worker in alive))
        ended = alive[0].journal.interrupt_orphans()
        orphans = [turn for turn in self.turns if turn.writer in dead and turn.ended is None]
        assert sorted(ended) == sorted(turn.id for turn in orphans)
        for turn in orphans:
            turn.kept += closing(alive[0].journal.find(turn.id).reach - 2)
            turn.ended = self.store.now
        held = [name for name, holder in self.holders.items() if holder in dead]
        self.holders = {name: holder for name, holder in self.holders.items() if holder not in dead}
        self.purge(alive[0])
        return held

    @rule(who=who, seconds=st.sampled_from([0.4 * RETAIN, 1.1 * RETAIN, 1.1 * RETAIN_UNDELIVERED]))
    def pass_time(self, who, seconds):
        """The store was out of reach for so long; then all come back, and find what they had."""
        self.store.forward(seconds)
        assert seconds > LEASE
        for worker in self.workers:
            assert not worker.journal.renew()
        self.expire(self.workers[who])
        self.purge(self.workers[who])

    def expire(self, worker):
        old = [turn for turn in self.turns if turn.undelivered and self.is_over(turn, RETAIN_UNDELIVERED)]
        assert sorted(worker.journal.outbox.expire()) == sorted(turn.delivery() for turn in old)
        for turn in old:
            turn.undelivered, turn.forgotten = False, True
        for other in self.workers:
            for link in other.links.values():
                link.queue = [turn for turn in link.queue if not turn.forgotten]

    def purge(self, worker):
        worker.journal.purge()
        for turn in self.turns:
            turn.forgotten |= not turn.undelivered and self.is_over(turn, RETAIN)

    def is_over(self, turn, time):
        return turn.ended is not None and turn.ended <= self.store.now - time

    @invariant()
    def one_holder_at_most_sends(self):
        for name in CONVERSATIONS:
            senders = [worker for worker in self.workers if name in worker.links]
            assert senders == ([self.holders[name]] if name in self.holders and senders else [])

    @invariant()
    def the_store_tells_the_truth(self):
        outbox = self.workers[0].journal.outbox
        for turn in self.turns[-6:]:
            assert outbox.find(turn.id) == turn.delivery()
            found = self.workers[0].journal.find(turn.id)
            assert (found is None) == turn.forgotten
        waiting = [turn.delivery() for turn in self.turns if turn.undelivered]
        assert sorted(outbox.undelivered(100), key=str) == sorted(waiting, key=str)

    def teardown(self):
        """In the end one worker lives on, and all text arrives."""
        try:
            last = Worker("last", self.store.worker("last"))
            dead, self.workers = self.workers, [last]
            self.outlive_lease(*dead)
            self.retry(0, None)
            while found := set(last.journal.outbox.unheld(2)):
                last.links = {}
                self.claim(0, found)
                for name in found:
                    while self.queue(name):
                        self.do_send(last, name, 1000)
                        self.pong(0, name)
                        self.do_confirm(last)
                        self.claim(0, {name})
            assert last.journal.outbox.undelivered(1) == []
            for turn in self.turns:
                assert turn.undelivered is False
                if turn.entry.mirrored and not turn.forgotten:
                    assert turn.tokens(turn.seen, turn.kept[-1].id) == []
            self.the_store_tells_the_truth()
        finally:
            self.store.close()


@pytest.fixture(scope="module")
def redis_server():
    server = RedisServer()
    yield server
    server.remove()


@pytest.mark.parametrize(("engine", "examples"), [("memory", 100), ("sqlite", 100), ("redis", 100)])
def test_whatever_happens_all_text_arrives_in_order(engine, examples, request, monkeypatch):
    for module in (memory_outbox, sqlite_outbox, redis_outbox):
        monkeypatch.setattr(module, "WINDOW", WINDOW)

    class Engine(Outboxes):
        if engine == "redis":
            server = request.getfixturevalue("redis_server")

        @classmethod
        def make_store(cls):
            match engine:
                case "memory":
                    return MemoryStore()
                case "sqlite":
                    return SqliteStore()
                case "redis":
                    return RedisStore(cls.server)

    run_state_machine_as_test(
        Engine,
        settings=settings(
            max_examples=examples, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
