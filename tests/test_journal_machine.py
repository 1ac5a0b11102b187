"""Any order of what can happen to a journal.

Turns that run, flushes of which the reply is lost, workers that die or sleep through their lease, followers that come,
go and come back anywhere, time and purges.
"""

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from server.journal import LEASE, RUNNING, Batch, closing
from server.sse import Done, Extra, Failure, Token

from .stores import RETAIN, MemoryStore, RedisStore, SqliteStore, entry

WORKERS = 3


@dataclass(eq=False)
class Worker:
    """One that may have died; its journal is what it could do."""

    name: str
    journal: object
    turns: list["Turn"] = field(default_factory=list)


def said(number, beside):
    """Text, or what comes beside it."""
    return Extra(number, b'{"delta":{"x":%d}}' % number) if beside else Token(number, f"{number} ")


@dataclass(eq=False)
class Turn:
    entry: object
    key: tuple | None
    said: list = field(default_factory=list)  # all that the writer's own clients can have seen
    confirmed: int = 0  # the last event of which the writer knows that it is kept
    kept: list = field(default_factory=list)  # what the journal must have
    reach: int = 0
    ended: float | None = None
    fenced: bool = False  # ended by another worker
    forgotten: bool = False

    @property
    def id(self):
        return self.entry.id

    @property
    def last_id(self):
        return self.kept[-1].id if self.kept else 0

    def behind(self, cursor):
        return [] if self.forgotten else [event for event in self.kept if event.id > cursor]


@dataclass(eq=False)
class Follower:
    turn: Turn
    start: int
    got: list = field(default_factory=list)

    @property
    def cursor(self):
        return self.got[-1].id if self.got else self.start


class Journals(RuleBasedStateMachine):
    turns = Bundle("turns")
    followers = Bundle("followers")
    make_store = None  # set by each engine's class
    who = st.integers(0, WORKERS - 1)

    def __init__(self):
        super().__init__()
        self.store = type(self).make_store()
        self.names = 0
        self.known = []  # all turns
        self.orphans = []  # turns whose writer has died, or lost its lease, and which still run
        self.all_followers = []
        self.workers = [self.new_worker() for _ in range(WORKERS)]

    def new_worker(self):
        self.names += 1
        name = f"worker-{self.names}"
        return Worker(name, self.store.worker(name))

    # What a worker does.

    @rule(target=turns, who=who, caller=st.sampled_from("ab"), key=st.sampled_from([None, None, "k", "l"]))
    def begin(self, who, caller, key):
        worker = self.workers[who]
        full_key = None if key is None else (caller, key)
        earlier = next((turn for turn in self.known if full_key and turn.key == full_key and not turn.forgotten), None)
        asked = entry(caller=caller)
        found = worker.journal.begin(asked, key).entry
        if earlier is not None:
            assert found.id == earlier.id, "the key's first turn"
            return earlier
        assert found == asked
        turn = Turn(asked, full_key, reach=asked.reach)
        self.known.append(turn)
        worker.turns.append(turn)
        return turn

    @rule(
        turn=turns,
        count=st.integers(1, 5),
        end=st.sampled_from([None, None, "complete", "failed", "cancelled"]),
        beside=st.booleans(),
    )
    def say(self, turn, count, end, beside):
        if not any(turn in worker.turns for worker in self.workers) or (turn.said and type(turn.said[-1]) is Done):
            return
        first = len(turn.said) + 1
        turn.said += [said(number, beside) for number in range(first, first + count)]
        if end == "failed":
            turn.said.append(Failure(len(turn.said) + 1, "No.", "no"))
        if end:
            turn.said.append(Done(len(turn.said) + 1, end))

    @rule(who=who, reply_is_lost=st.booleans())
    def flush(self, who, reply_is_lost):
        self.do_flush(self.workers[who], reply_is_lost)

    def do_flush(self, worker, reply_is_lost=False):
        due = [turn for turn in worker.turns if len(turn.said) > turn.confirmed]
        batches = [Batch(turn.id, turn.said[turn.confirmed :]) for turn in due]
        lost = set(worker.journal.append(batches))
        assert lost == {turn.id for turn in due if turn.fenced and not turn.forgotten}
        for turn, batch in zip(due, batches, strict=True):
            if not turn.fenced:
                turn.kept += [event for event in batch.events if event.id > turn.last_id]
                turn.reach = batch.reach
                if batch.status != RUNNING and turn.ended is None:
                    turn.ended = self.store.now
            if not reply_is_lost:
                turn.confirmed = len(turn.said)
        if not reply_is_lost:
            worker.turns = [turn for turn in worker.turns if not (turn.fenced or turn.ended)]

    # What happens to workers.

    @rule(who=who)
    def crash(self, who):
        """What it had not flushed is gone; gunicorn starts another."""
        self.orphans += [turn for turn in self.workers[who].turns if turn.ended is None]
        self.workers[who] = self.new_worker()

    @rule(who=who)
    def sleep(self, who):
        """It comes back after its lease, and nobody has noticed or somebody has: see `bury`."""
        self.store.outlive_lease(*(worker.journal for worker in self.workers if worker is not self.workers[who]))
        self.purge(who)
        self.bury((who + 1) % WORKERS, self.workers[who])
        assert not self.workers[who].journal.renew()

    @rule(who=who)
    def notice_the_dead(self, who):
        self.store.outlive_lease(*(worker.journal for worker in self.workers))
        self.purge(who)
        self.bury(who)

    def bury(self, who, sleeper=None):
        dead = [*self.orphans, *(turn for turn in sleeper.turns if turn.ended is None)] if sleeper else self.orphans
        assert set(self.workers[who].journal.interrupt_orphans()) == {turn.id for turn in dead}
        for turn in dead:
            last = closing(turn.reach)
            assert not turn.said or last[0].id > turn.said[-1].id, "no client waits behind its own cursor"
            turn.kept += last
            turn.ended, turn.fenced = self.store.now, True
        self.orphans = []

    @rule(who=who)
    def renew(self, who):
        assert self.workers[who].journal.renew()

    # What happens to all.

    @rule(who=who, share=st.sampled_from([0.4, 1.1]))
    def pass_time_and_purge(self, who, share):
        self.store.forward(share * RETAIN)
        assert share * RETAIN > LEASE
        for worker in self.workers:
            assert not worker.journal.renew()
        self.purge(who)

    @rule(who=who, caller=st.sampled_from("ab"))
    def erase(self, who, caller):
        theirs = [turn for turn in self.known if turn.entry.caller == caller and not turn.forgotten]
        running = self.workers[who].journal.erase("c", caller)
        assert set(running) == {turn.id for turn in theirs if turn.ended is None}
        for turn in theirs:
            turn.forgotten = turn.ended is not None

    def purge(self, who):
        self.workers[who].journal.purge()
        for turn in self.known:
            turn.forgotten |= turn.ended is not None and turn.ended <= self.store.now - RETAIN

    # What followers do, on any worker.

    @rule(target=followers, turn=turns, share=st.floats(0, 1))
    def follow(self, turn, share):
        """From the start, or from wherever a client of the writer can have been."""
        most = max(len(turn.said), turn.last_id)
        follower = Follower(turn, round(share * most))
        self.all_followers.append(follower)
        return follower

    @rule(follower=followers, who=who, limit=st.sampled_from([1, 3, 100]))
    def read(self, follower, who, limit):
        self.do_read(follower, self.workers[who], limit)

    def do_read(self, follower, worker, limit):
        expected = follower.turn.behind(follower.cursor)
        got = worker.journal.read(follower.turn.id, follower.cursor, limit)
        assert got == expected[: len(got)]
        assert len(got) >= min(limit, len(expected))
        follower.got += got

    @rule(some=st.lists(followers, max_size=4, unique_by=lambda follower: follower.turn.id), who=who)
    def hear(self, some, who):
        cursors = {follower.turn.id: follower.cursor for follower in some}
        news = self.workers[who].journal.news(cursors, 0)
        assert not news.wishes
        for follower in some:
            got = list(news.events.get(follower.turn.id, []))
            assert got == follower.turn.behind(follower.cursor)
            follower.got += got
        assert news.events.keys() <= cursors.keys()

    @rule(follower=followers, share=st.floats(0, 1))
    def resume(self, follower, share):
        """The link broke: the client has only some of what was sent to it."""
        del follower.got[round(share * len(follower.got)) :]

    @rule(follower=consumes(followers))
    def leave(self, follower):
        self.all_followers.remove(follower)

    @rule(turn=turns, who=who, wish=st.sampled_from(["cancel", "watch"]))
    def ask(self, turn, who, wish):
        asked = self.workers[who].journal.ask([turn.id], wish)
        assert list(asked) == ([turn.id] if turn.ended is None else [])
        writer = next((worker for worker in self.workers if turn in worker.turns), None)
        for worker in self.workers:
            heard = list(worker.journal.news({}, 0).wishes)
            assert heard == ([(turn.id, wish)] if asked and worker is writer else [])

    @invariant()
    def entries_tell_the_truth(self):
        for turn in self.known[-3:]:
            found = self.workers[0].journal.find(turn.id)
            if turn.forgotten:
                assert found is None
            else:
                assert (found.last_id, found.running) == (turn.last_id, turn.ended is None)
                assert found.reach >= max(turn.last_id, len(turn.said) if found.running else 0)

    @invariant()
    def followers_see_each_event_once(self):
        for follower in self.all_followers:
            ids = [follower.start, *(event.id for event in follower.got)]
            jumps = [n for n in range(1, len(ids)) if ids[n] != ids[n - 1] + 1]
            closings = [n for n, event in enumerate(follower.got, 1) if type(event) is Failure]
            assert all(ids[n] > ids[n - 1] for n in jumps)
            assert jumps in ([], closings), "ids are consecutive but for the jump before closing events"
            ends = [n for n, event in enumerate(follower.got, 1) if type(event) is Done]
            assert ends in ([], [len(follower.got)]), "one Done, and nothing follows it"

    def teardown(self):
        """In the end all turns end, and all followers see all that was kept behind their cursors."""
        try:
            for worker in self.workers:
                self.do_flush(worker)
                self.orphans += [turn for turn in worker.turns if turn.ended is None]
            last = Worker("last", self.store.worker("last"))
            self.workers = [last]
            self.store.outlive_lease(last.journal)
            self.purge(0)
            self.bury(0)
            for turn in self.known:
                assert turn.ended is not None
                assert [type(event) for event in turn.behind(0)].count(Done) == (not turn.forgotten)
            for follower in self.all_followers:
                while follower.turn.behind(follower.cursor):
                    self.do_read(follower, last, 7)
                if not follower.turn.forgotten:
                    assert follower.got == follower.turn.behind(follower.start)
            self.followers_see_each_event_once()
        finally:
            self.store.close()


@pytest.mark.parametrize(("engine", "examples"), [("memory", 100), ("sqlite", 100), ("redis", 100)])
def test_whatever_happens_the_contract_holds(engine, examples, request):
    class Engine(Journals):
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
