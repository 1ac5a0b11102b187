"""Any order of what can happen to text on its way into transcripts.

Holders that claim, send, hear pongs and note them, with replies that are lost; that die, sleep through their lease and
come back late, release, park; others that take over; time, purges and the end of retention.
"""

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from server.errors import StoreUnavailable
from server.journal import LEASE, Batch, closing, memory_outbox, redis_outbox, sqlite_outbox
from server.journal.outbox import Delivery, Parcel, Receipt
from server.sse import Done, Token

from .stores import RETAIN, RETAIN_UNDELIVERED, MemoryStore, RedisStore, SqliteStore, entry

WORKERS = 3
CONVERSATIONS = "ab"
DEEDS = (
    *("say", "end", "send", "send all", "pong", "pong", "lose the link"),
    *("confirm", "confirm, without a reply", "confirm, without a reply", "repeat", "repeat", "claim"),
)
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
    """What a holder has in memory of one conversation: by turn, the last event that was sent, and that has arrived."""

    queue: list
    sent: dict = field(default_factory=dict)
    arrived: dict = field(default_factory=dict)


@dataclass(eq=False)
class Worker:
    """One that may have died; its journal is what it could do."""

    name: str
    journal: object
    links: dict[str, Link] = field(default_factory=dict)
    asleep: bool = False
    unanswered: list = field(default_factory=list)  # what it tried to note, and got no reply


class Outboxes(RuleBasedStateMachine):
    make_store = None  # set by each engine's class
    pick = st.integers(0, 11)  # one of those that can do it
    where = st.sampled_from(CONVERSATIONS)

    def __init__(self):
        super().__init__()
        self.store = type(self).make_store()
        self.names = 0
        self.turns = []  # all, in the order in which they began
        self.holders = {}  # by conversation, the living worker that holds it
        self.lapsed = {}  # by conversation, the sleeper that held it, while nobody has looked for what it held
        self.workers = [self.new_worker() for _ in range(WORKERS)]

    def new_worker(self):
        self.names += 1
        name = f"worker-{self.names}"
        return Worker(name, self.store.worker(name))

    @property
    def awake(self):
        return [worker for worker in self.workers if not worker.asleep]

    def one(self, pick):
        return self.awake[pick % len(self.awake)]

    @property
    def links(self):
        """Those of whoever is awake."""
        return [(worker, name) for worker in self.awake for name in worker.links]

    def queue(self, conversation):
        return [turn for turn in self.turns if turn.conversation == conversation and turn.undelivered]

    def pending(self, conversation):
        return any(turn.reason is None for turn in self.queue(conversation))

    # What the writers do.

    @initialize(pick=pick)
    def begin_with_a_holder(self, pick):
        for where in CONVERSATIONS:
            self.begin(pick, where, 2, True)
        self.do_claim(self.workers[0], CONVERSATIONS)

    @rule(pick=pick, where=where, count=st.integers(1, 4), mirrored=st.sampled_from([True, True, True, False]))
    def begin(self, pick, where, count, mirrored):
        worker, holder = self.one(pick), self.holders.get(where)
        for _ in range(count):
            turn = Turn(entry(where, mirrored=mirrored), worker, undelivered=mirrored)
            assert worker.journal.begin(turn.entry, None).entry == turn.entry
            self.turns.append(turn)
        for other in self.awake:
            heard = set(other.journal.news({}, 0).wishes)
            assert heard == ({(where, "deliver")} if mirrored and other is holder is not worker else set())
        if holder is not None:
            self.do_claim(holder, {where})

    def say(self, count, share):
        """All turns whose writers live go on, and this share of them ends; all is kept at once."""
        running = [turn for turn in self.turns if turn.ended is None and not turn.writer.asleep]
        for n, turn in enumerate(running):
            last = turn.kept[-1].id if turn.kept else 0
            events = [Token(number, f"{number} ") for number in range(last + 1, last + count + 1)]
            if n < share * len(running):
                events.append(Done(last + count + 1, "complete"))
                turn.ended = self.store.now
            assert not turn.writer.journal.append([Batch(turn.id, events)])
            turn.kept += events
        self.purge()

    # What the holders do.

    @rule(pick=pick, names=st.sets(where, min_size=1))
    def claim(self, pick, names):
        self.do_claim(self.one(pick), names)

    def do_claim(self, worker, names):
        free = [name for name in names if self.holders.get(name, worker) is worker]
        found = worker.journal.outbox.claim(names)
        for name in free:
            self.holders[name] = worker
            self.lapsed.pop(name, None)
            for turn in self.queue(name):
                turn.reason = None
            worker.links.setdefault(name, Link([])).queue = self.queue(name)[:WINDOW]
        assert {name: list(parcels) for name, parcels in found.items()} == {
            name: [Parcel(turn.id, turn.cursor) for turn in worker.links[name].queue] for name in free
        }

    @rule(pick=pick, take=st.sampled_from([True, True, False]))
    def look_around(self, pick, take):
        found = self.one(pick).journal.outbox.unheld(10)
        assert sorted(found) == [name for name in CONVERSATIONS if self.pending(name) and name not in self.holders]
        self.lapsed = {}
        if take:
            self.do_claim(self.one(pick), set(found))

    @precondition(lambda self: self.links)
    @rule(pick=pick, deeds=st.lists(st.sampled_from(DEEDS), min_size=5, max_size=15))
    def deliver(self, pick, deeds):
        """What happens on one link, in any order."""
        worker, name = self.links[pick % len(self.links)]
        for deed in deeds:
            link = worker.links[name]
            match deed:
                case "say":
                    self.say(3, 0)
                case "end":
                    self.say(1, 0.6)
                case "send":
                    self.do_send(worker, name, 1)
                case "send all":
                    self.do_send(worker, name, 100)
                case "pong":
                    link.arrived |= link.sent
                case "lose the link":
                    link.sent = dict(link.arrived)  # what no pong has confirmed is sent again
                case "confirm":
                    self.do_confirm(worker, self.arrived(worker))
                    self.tidy(worker)
                case "confirm, without a reply":
                    worker.unanswered.append(self.arrived(worker))
                    self.do_confirm(worker, self.arrived(worker))
                case "repeat":
                    for arrived in worker.unanswered:
                        self.do_confirm(worker, arrived)
                case "claim":
                    self.do_claim(worker, {name})

    def do_send(self, worker, name, limit):
        """Sends of each turn what the store has; one begins when the one before is whole."""
        link = worker.links[name]
        for turn in link.queue:
            while events := worker.journal.read(turn.id, max(link.sent.get(turn, 0), turn.cursor), limit)[:limit]:
                for event in events:
                    if type(event) is Token:
                        self.receive(turn, event.id)
                    link.sent[turn] = event.id
                if limit < 100:
                    return
            if not self.is_whole(turn, link.sent.get(turn)):
                return

    def is_whole(self, turn, cursor):
        return turn.ended is not None and cursor == turn.kept[-1].id

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

    def arrived(self, worker):
        return [
            (turn, cursor, self.is_whole(turn, cursor))
            for link in worker.links.values()
            for turn, cursor in link.arrived.items()
        ]

    def do_confirm(self, worker, arrived):
        lost = worker.journal.outbox.confirm([Receipt(turn.id, cursor, whole) for turn, cursor, whole in arrived])
        expected = []
        for turn, cursor, whole in arrived:
            if turn.undelivered and self.holders.get(turn.conversation) in (None, worker):
                turn.cursor = max(turn.cursor, cursor)
                turn.undelivered = not whole
                turn.reason = None if whole else turn.reason
            elif turn.undelivered:
                expected.append(turn.id)
        assert list(lost) == expected
        self.purge()

    def tidy(self, worker):
        """Lets go of what was noted."""
        for link in worker.links.values():
            link.queue = [turn for turn in link.queue if turn.undelivered]
            link.sent = {turn: cursor for turn, cursor in link.sent.items() if turn.undelivered}
            link.arrived = {}

    @rule(pick=pick, where=where, how=st.sampled_from(["release", "refused", "gone", "retry", "retry all"]))
    def give_up_or_retry(self, pick, where, how):
        worker = self.one(pick)
        match how:
            case "release":
                worker.journal.outbox.release([where])
                self.let_go(worker, where)
            case "retry":
                self.retry(worker, where)
            case "retry all":
                self.retry(worker, None)
            case reason:
                worker = self.holders.get(where, worker) if pick % 2 else worker
                turns = self.queue(where) if self.holders.get(where) is worker else []
                assert list(worker.journal.outbox.park(where, reason)) == [turn.id for turn in turns]
                for turn in turns:
                    turn.reason = reason
                self.let_go(worker, where)

    def let_go(self, worker, name):
        worker.links.pop(name, None)
        if self.holders.get(name) is worker:
            del self.holders[name]

    def retry(self, worker, where):
        freed = [turn for turn in self.turns if turn.undelivered and turn.reason and where in (None, turn.conversation)]
        assert sorted(worker.journal.outbox.retry(where)) == sorted(turn.id for turn in freed)
        for turn in freed:
            turn.reason = None

    # What happens to workers.

    @rule(pick=pick, fate=st.sampled_from(["die", "sleep", "sleep", "nap", "wake", "wake", "wait", "wait long"]))
    def suffer(self, pick, fate):
        match fate:
            case "die":
                self.die(pick % WORKERS)
            case "sleep" | "nap" if len(self.awake) > 1:
                worker = self.links[pick % len(self.links)][0] if self.links else self.one(pick)
                self.sleep(worker)
                if fate == "nap":
                    self.wake(worker)
            case "wake" if len(self.awake) < WORKERS:
                sleepers = [worker for worker in self.workers if worker.asleep]
                self.wake(sleepers[pick % len(sleepers)])
            case "wait":
                self.pass_time((0.4 if pick % 2 else 1.1) * RETAIN)
            case "wait long":
                self.pass_time(1.1 * RETAIN_UNDELIVERED)

    def die(self, who):
        """kill -9: others take over when its lease has ended."""
        dead, self.workers[who] = self.workers[who], self.new_worker()
        dead.asleep = True
        self.outlive_lease(dead)
        self.lapsed = {name: sleeper for name, sleeper in self.lapsed.items() if sleeper is not dead}

    def sleep(self, worker):
        """It stops for longer than its lease, before it can note what has arrived."""
        self.say(2, 0.3)
        for name, link in worker.links.items():
            self.do_send(worker, name, 100)
            link.arrived |= link.sent
        worker.asleep = True
        self.outlive_lease(worker)

    def wake(self, worker):
        """It comes back late, and tries to note what it had sent before."""
        worker.asleep = False
        arrived = self.arrived(worker)
        self.do_confirm(worker, arrived)
        with pytest.raises(StoreUnavailable):
            worker.journal.outbox.claim(CONVERSATIONS)
        with pytest.raises(StoreUnavailable):
            worker.journal.outbox.park(CONVERSATIONS[0], "refused")
        assert not worker.journal.news({}, 0).wishes, "it holds nothing"
        assert not worker.journal.renew()
        self.give_time()
        # What nobody has looked for it holds again; of what somebody has looked for, only a claim tells.
        self.holders |= {name: worker for name, sleeper in self.lapsed.items() if sleeper is worker}
        self.do_confirm(worker, [one for one in arrived if one[0].conversation in self.holders])
        links, worker.links = worker.links, {}
        self.do_claim(worker, set(links))

    def outlive_lease(self, *dead):
        """The turns that these write end, and nobody holds what they held."""
        alive = [worker for worker in self.awake if worker not in dead]
        self.store.outlive_lease(*(worker.journal for worker in alive))
        ended = alive[0].journal.interrupt_orphans()
        orphans = [turn for turn in self.turns if turn.writer in dead and turn.ended is None]
        assert sorted(ended) == sorted(turn.id for turn in orphans)
        for turn in orphans:
            turn.kept += closing(alive[0].journal.find(turn.id).reach - 2)
            turn.ended = self.store.now
        self.lapsed |= {name: holder for name, holder in self.holders.items() if holder in dead}
        self.holders = {name: holder for name, holder in self.holders.items() if holder not in dead}
        self.purge()

    def give_time(self):
        """Who has renewed too late leaves others the time to renew as well before it takes what they hold."""
        self.store.live_on(LEASE + 0.1, *(worker.journal for worker in self.awake))

    def pass_time(self, seconds):
        """The store was out of reach for so long; then all come back, and find what they had."""
        self.store.forward(seconds)
        assert seconds > LEASE
        for worker in self.awake:
            assert not worker.journal.renew()
        self.give_time()
        old = [turn for turn in self.turns if turn.undelivered and self.is_over(turn, RETAIN_UNDELIVERED)]
        assert sorted(self.awake[0].journal.outbox.expire(), key=str) == sorted(
            (turn.delivery() for turn in old), key=str
        )
        for turn in old:
            turn.undelivered, turn.forgotten = False, True
        for worker in self.workers:
            for link in worker.links.values():
                link.queue = [turn for turn in link.queue if not turn.forgotten]
        self.purge()

    def purge(self):
        self.awake[0].journal.purge()
        for turn in self.turns:
            turn.forgotten |= not turn.undelivered and self.is_over(turn, RETAIN)

    def is_over(self, turn, time):
        return turn.ended is not None and turn.ended <= self.store.now - time

    @invariant()
    def one_holder_sends(self):
        assert self.holders == {name: worker for worker, name in self.links}
        assert len(self.holders) == len(self.links)

    @invariant()
    def the_store_tells_the_truth(self):
        worker = self.awake[0]
        for turn in self.turns[-6:]:
            assert worker.journal.outbox.find(turn.id) == turn.delivery()
            assert (worker.journal.find(turn.id) is None) == turn.forgotten
        waiting = [turn.delivery() for turn in self.turns if turn.undelivered]
        assert sorted(worker.journal.outbox.undelivered(1000), key=str) == sorted(waiting, key=str)

    def teardown(self):
        """In the end one worker lives on, and all text arrives."""
        try:
            last = Worker("last", self.store.worker("last"))
            dead, self.workers = self.workers, [last]
            self.outlive_lease(*dead)
            self.retry(last, None)
            while found := set(last.journal.outbox.unheld(2)):
                assert not found & self.holders.keys()
                self.do_claim(last, found)
                for name in found:
                    for _ in range(len(self.queue(name)) // WINDOW + 1):
                        self.do_send(last, name, 100)
                        last.links[name].arrived |= last.links[name].sent
                        self.do_confirm(last, self.arrived(last))
                        self.tidy(last)
                        self.do_claim(last, {name})
                    assert not self.queue(name)
            assert last.journal.outbox.undelivered(1) == []
            for turn in self.turns:
                assert not turn.undelivered
                if turn.entry.mirrored and not turn.forgotten:
                    assert turn.tokens(turn.seen, turn.kept[-1].id) == []
            self.the_store_tells_the_truth()
        finally:
            self.store.close()


@pytest.mark.parametrize(("engine", "examples"), [("memory", 200), ("sqlite", 70), ("redis", 70)])
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
