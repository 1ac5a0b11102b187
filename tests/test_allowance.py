"""What one caller may begin: the journal's contract for it, held by each engine, and the arithmetic of its window."""

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.access.allowance import UNLIMITED, Beginnings, Rate, Standing, read_at_once, read_rate
from server.errors import TooManyRequests, TooManyTurnsOfCaller
from server.sse import Done

from .stores import RETAIN, MemoryStore, RedisStore, SqliteStore, batch, entry, make_store

DAY = 86_400.0  # seconds
SLACK = 0.2  # seconds of a test that Redis' own clock may take beside the one that the test lets pass


def is_let_through(journal, allowance, **fields):
    try:
        journal.begin(entry(**fields), None, allowance)
    except TooManyRequests:
        return False
    return True


def end(journal, turn):
    journal.append([batch(turn, 1, 1, Done(2, "complete"))])


class TestRate:
    def test_only_so_many_begin_within_the_window_on_all_workers_together(self, store, ann, bob):
        allowance = store.allowance(3)
        workers = itertools.cycle([ann, bob])
        assert [is_let_through(next(workers), allowance) for _ in range(5)] == [True] * 3 + [False] * 2

    def test_each_counts_until_it_is_a_whole_window_old(self, store, ann):
        allowance = store.allowance(2, seconds=60.0)
        assert is_let_through(ann, allowance)
        store.live_on(50, ann)
        assert is_let_through(ann, allowance)
        store.live_on(9, ann)
        assert not is_let_through(ann, allowance), "no new window has begun meanwhile"
        store.live_on(1, ann)
        assert [is_let_through(ann, allowance) for _ in range(2)] == [True, False]
        store.live_on(49, ann)
        assert not is_let_through(ann, allowance)
        store.live_on(1, ann)
        assert [is_let_through(ann, allowance) for _ in range(2)] == [True, False]

    def test_a_refusal_says_when_to_come_back_and_is_right(self, store, ann):
        allowance = store.allowance(1, seconds=60.0)
        ann.begin(entry(), None, allowance)
        store.live_on(20, ann)
        with pytest.raises(TooManyRequests) as raised:
            ann.begin(entry(), None, allowance)
        wait = raised.value.retry_after / store.stretch
        assert 40 - SLACK <= wait <= 40
        assert raised.value.limit == 1
        store.live_on(wait - SLACK, ann)
        assert not is_let_through(ann, allowance)
        store.live_on(SLACK, ann)
        assert is_let_through(ann, allowance)

    def test_who_begins_is_told_what_is_left(self, store, ann):
        allowance = store.allowance(2, seconds=60.0)
        standing = ann.begin(entry(), None, allowance).standing
        assert (standing.limit, standing.left) == (2, 1)
        assert standing.reset == pytest.approx(60 * store.stretch, abs=SLACK * store.stretch)
        store.live_on(20, ann)
        standing = ann.begin(entry(), None, allowance).standing
        assert (standing.limit, standing.left) == (2, 0)
        assert standing.reset == pytest.approx(40 * store.stretch, abs=SLACK * store.stretch)

    def test_a_refused_begin_changes_nothing(self, store, ann):
        allowance = store.allowance(1)
        ann.begin(first := entry(), "first", allowance)
        refused = entry(mirrored=True)
        for _ in range(5):
            with pytest.raises(TooManyRequests):
                ann.begin(refused, "key", allowance)
        assert ann.find(refused.id) is None
        assert ann.turns_of("c", "alice", 10) == [first]
        assert ann.outbox.undelivered(10) == []
        assert not ann.outbox.unheld(10)
        store.live_on(60, ann)
        assert ann.begin(refused, "key", allowance).entry == refused, "the key is free, and refusals were not counted"

    def test_another_caller_is_not_held_up(self, store, ann):
        allowance = store.allowance(1)
        assert is_let_through(ann, allowance, caller="alice")
        assert not is_let_through(ann, allowance, caller="alice")
        assert is_let_through(ann, allowance, caller="bob")

    def test_a_key_that_repeats_an_earlier_turn_spends_nothing_and_is_never_refused(self, store, ann, bob):
        allowance = store.allowance(2)
        first = ann.begin(entry(), "key", allowance).entry
        for journal in (ann, bob, ann):
            assert journal.begin(entry(), "key", allowance) == (first, None)
        assert is_let_through(ann, allowance)
        assert not is_let_through(ann, allowance)
        assert ann.begin(entry(), "key", allowance) == (first, None)

    def test_what_was_spent_comes_back_with_time_alone(self, store, ann):
        allowance = store.allowance(1, seconds=10 * RETAIN)
        turn = ann.begin(entry(), None, allowance).entry
        end(ann, turn)
        store.live_on(2 * RETAIN, ann)
        ann.purge()
        assert ann.find(turn.id) is None
        assert not is_let_through(ann, allowance)

    def test_who_is_not_limited_is_told_nothing_and_spends_nothing(self, store, ann):
        for _ in range(5):
            assert ann.begin(entry(), None, UNLIMITED).standing is None
        assert is_let_through(ann, store.allowance(1))

    def test_a_lower_limit_holds_at_once_and_a_higher_one_as_well(self, store, ann):
        for _ in range(4):
            assert is_let_through(ann, store.allowance(4))
        assert not is_let_through(ann, store.allowance(2))
        assert [is_let_through(ann, store.allowance(6)) for _ in range(3)] == [True, True, False]

    def test_calls_that_come_together_are_let_through_as_if_one_by_one(self, store, ann, bob):
        allowance = store.allowance(5)
        calls = [store.later(is_let_through, journal, allowance) for journal in [ann, bob] * 10]
        assert sum(call.get(20) for call in calls) == 5

    def test_a_caller_who_stays_away_is_forgotten(self, store, ann, request):
        for n in range(3):
            turn = ann.begin(entry(caller=f"caller-{n}"), None, store.allowance(5, seconds=1.0)).entry
            end(ann, turn)
        store.forward(DAY)
        ann.purge()
        assert remembered(store, request) == 0


def remembered(store, request):
    """How many callers the store knows beginnings of."""
    match store:
        case MemoryStore():
            return len(store._shared.beginnings)
        case SqliteStore():
            rows = "SELECT count(*) FROM beginnings"
            return store._journals["ann"]._reading.read(lambda connection: connection.execute(rows).fetchone()[0])
    return len(request.getfixturevalue("redis_server").client.keys("{relay}:beginnings:*"))


class TestAtOnce:
    def test_only_so_many_run_at_once_on_all_workers_together(self, store, ann, bob):
        allowance = store.allowance(at_once=2)
        first = ann.begin(entry(), None, allowance).entry
        bob.begin(entry(), None, allowance)
        for journal in (ann, bob):
            with pytest.raises(TooManyTurnsOfCaller) as raised:
                journal.begin(entry(), None, allowance)
            assert raised.value.retry_after > 0
        bob.begin(entry(caller="bob"), None, allowance)
        end(ann, first)
        assert bob.begin(entry(), None, allowance).entry

    def test_the_turns_of_the_dead_count_until_they_are_ended(self, store, ann, bob):
        allowance = store.allowance(at_once=1)
        ann.begin(entry(), None, allowance)
        store.outlive_lease(bob)
        with pytest.raises(TooManyTurnsOfCaller):
            bob.begin(entry(), None, allowance)
        bob.interrupt_orphans()
        assert bob.begin(entry(), None, allowance).entry

    def test_a_refused_begin_spends_nothing(self, store, ann):
        turn = ann.begin(entry(), None, store.allowance(at_once=1)).entry
        for _ in range(5):
            with pytest.raises(TooManyTurnsOfCaller):
                ann.begin(entry(), None, store.allowance(2, at_once=1))
        end(ann, turn)
        assert ann.begin(entry(), None, store.allowance(2, at_once=1)).standing.left == 1

    def test_a_key_that_repeats_a_running_turn_is_not_refused(self, store, ann):
        allowance = store.allowance(at_once=1)
        turn = ann.begin(entry(), "key", allowance).entry
        assert ann.begin(entry(), "key", allowance).entry == turn

    def test_calls_that_come_together_are_let_through_as_if_one_by_one(self, store, ann, bob):
        def begins(journal):
            try:
                return bool(journal.begin(entry(), None, store.allowance(at_once=3)))
            except TooManyTurnsOfCaller:
                return False

        calls = [store.later(begins, journal) for journal in [ann, bob] * 10]
        assert sum(call.get(20) for call in calls) == 3


def test_in_redis_what_another_hand_deleted_holds_no_place(redis_server):
    store = RedisStore(redis_server)
    ann = store.worker("ann")
    turn = ann.begin(entry(), None, store.allowance(at_once=1)).entry
    redis_server.client.delete(f"{{relay}}:turn:{turn.id}")
    assert ann.begin(entry(), None, store.allowance(at_once=1)).entry
    store.close()


def test_in_redis_an_ended_turn_leaves_nothing_that_stays_for_ever(redis_server):
    store = RedisStore(redis_server)
    ann = store.worker("ann")
    end(ann, ann.begin(entry(), None, store.allowance(2, at_once=1)).entry)
    keys = redis_server.client.keys()
    assert {key for key in keys if redis_server.client.pttl(key) < 0} == {"{relay}:workers"}
    store.close()


def test_in_redis_a_begin_that_is_sent_twice_spends_once(redis_server):
    """The client library repeats it on a connection that was closed."""
    store = RedisStore(redis_server)
    ann = store.worker("ann")
    turn = entry()
    for _ in range(2):
        assert ann.begin(turn, None, store.allowance(2, at_once=1)).entry == turn
    end(ann, turn)
    assert ann.begin(entry(), None, store.allowance(2, at_once=1)).standing.left == 0
    store.close()


# The arithmetic.

STEPS = st.lists(st.sampled_from([0.0, 0.1, 1.0, 2.9, 3.0, 3.1, 10.0, 0.3]), min_size=1, max_size=60)


@given(STEPS, st.integers(1, 5))
def test_never_more_than_the_rate_in_any_window_and_never_fewer_than_it_allows(steps, turns):
    rate, beginnings, now, begun = Rate(turns, 3.0), Beginnings(), 1000.0, []
    for step in steps:
        now += step
        counting = [at for at in begun if at + 3.0 > now]
        wait = beginnings.wait(rate, now)
        assert (wait == 0.0) == (len(counting) < turns)
        if wait:
            assert wait == counting[-turns] + 3.0 - now
        else:
            begun.append(now)
            standing = beginnings.note(rate, now)
            assert standing == Standing(turns, turns - len(counting) - 1, [*counting, now][0] + 3.0 - now)
    assert all(later - at >= 3.0 - 1e-9 for at, later in zip(begun, begun[turns:], strict=False))


@given(st.lists(st.floats(-10, 10), max_size=40), st.integers(1, 4))
def test_a_clock_that_is_set_back_lets_no_more_through_and_holds_nobody_up_for_longer_than_a_window(steps, turns):
    """The real time goes on by a tenth of a second each step, whatever the clock says."""
    rate, beginnings, clock, begun = Rate(turns, 3.0), Beginnings(), 1000.0, []
    for number, step in enumerate(steps):
        clock += min(step, 0.1)  # set back as far as you like, never ahead
        wait = beginnings.wait(rate, clock)
        assert wait <= 3.0
        if not wait:
            begun.append(number / 10)
            beginnings.note(rate, clock)
    assert all(later - at >= 3.0 - 1e-6 for at, later in zip(begun, begun[turns:], strict=False))


@pytest.mark.parametrize("engine", ["memory", "sqlite"])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(
        st.tuples(st.sampled_from([0.0, 0.1, 1.0, 2.9, 3.0, 10.0, -1.0, -100.0]), st.sampled_from("ab")), max_size=40
    ),
    turns=st.integers(1, 4),
)
def test_each_engine_counts_as_the_arithmetic_does(engine, steps, turns, request):
    store = make_store(engine, request)
    try:
        ann, expected = store.worker("ann"), {"a": Beginnings(), "b": Beginnings()}
        allowance = store.allowance(turns, seconds=3.0)
        for step, caller in steps:
            store.now += step
            wait = expected[caller].wait(allowance.rate, store.now)
            try:
                standing = ann.begin(entry(caller=caller), None, allowance).standing
                assert not wait
                assert standing == expected[caller].note(allowance.rate, store.now)
            except TooManyRequests as refusal:
                assert refusal.retry_after == wait
            if not step:
                ann.purge()
    finally:
        store.close()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(st.tuples(st.sampled_from([0, 0, 1, 2, 3, 10]), st.sampled_from("ab")), max_size=30),
    turns=st.integers(1, 4),
)
def test_redis_counts_as_the_arithmetic_does(steps, turns, redis_server):
    """Whole seconds, and a window that ends between two of them: Redis' own clock goes on as well."""
    store = RedisStore(redis_server)
    try:
        ann, expected, now = store.worker("ann"), {"a": Beginnings(), "b": Beginnings()}, 0.0
        for step, caller in steps:
            store.forward(step)
            now += step
            begins = expected[caller].wait(Rate(turns, 3.5), now) == 0.0
            assert is_let_through(ann, store.allowance(turns, seconds=3.5), caller=caller) == begins
            if begins:
                expected[caller].note(Rate(turns, 3.5), now)
    finally:
        store.close()


@pytest.mark.parametrize("ahead", [0.5, 3600.0])
def test_redis_with_a_clock_that_was_set_back_counts_from_now_on(redis_server, ahead):
    store = RedisStore(redis_server)
    ann = store.worker("ann")
    allowance = store.allowance(2, seconds=60.0)
    ann.begin(entry(), None, allowance)
    ann.begin(entry(), None, allowance)
    store.forward(-ahead)
    with pytest.raises(TooManyRequests) as raised:
        ann.begin(entry(), None, allowance)
    assert raised.value.retry_after <= 60 * store.stretch
    store.forward(60)
    assert is_let_through(ann, allowance)
    store.close()


# How a setting is read.


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("60/minute", Rate(60, 60)),
        ("1/second", Rate(1, 1)),
        ("5 / Hour", Rate(5, 3600)),
        ("999999/day", Rate(999_999, 86_400)),
        ("off", None),
        ("OFF", None),
    ],
)
def test_a_rate_is_turns_and_a_unit(text, rate):
    assert read_rate(text) == rate


@pytest.mark.parametrize("text", ["60", "0/minute", "-1/minute", "60/month", "1.5/second", "1000000/day", "60/", "on"])
def test_what_is_no_rate_is_told_how_one_looks(text):
    with pytest.raises(ValueError, match="such as 60/minute; or off"):
        read_rate(text)


def test_turns_at_once_are_a_number_or_off():
    assert (read_at_once("3"), read_at_once("off")) == (3, None)
    for text in ("0", "-1", "two", "1.5"):
        with pytest.raises(ValueError, match="or off"):
            read_at_once(text)
