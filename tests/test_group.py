"""Calls in one thread, joined; and what SQLite makes of it: one transaction for many who write."""

import sqlite3
import threading

import gevent
import pytest

from server.errors import StoreUnavailable
from server.journal.group import MAX_GROUP, Group
from server.journal.sqlite_file import BUSY_TIMEOUT, Channel, connect

from .conftest import until


class Held:
    """A group whose thread doubles numbers, once it is let."""

    def __init__(self):
        self.let = threading.Event()
        self.groups = []
        self.group = Group(self._run)

    def busy_with(self, number):
        """A call whose thread waits."""
        call = gevent.spawn(self.group.call, number)
        with gevent.Timeout(10):
            while not self.groups:
                gevent.sleep(0.001)
        return call

    def _run(self, numbers):
        self.groups.append(list(numbers))
        self.let.wait(10)
        return [2 * number for number in numbers]


@pytest.fixture
def held():
    held = Held()
    yield held
    held.let.set()
    held.group.end()


@pytest.fixture
def channel(tmp_path):
    channel = Channel(tmp_path / "relay.db")
    channel.write(lambda connection: connection.execute("CREATE TABLE numbers (n INTEGER PRIMARY KEY)"))
    yield channel
    channel.close()


def put(number):
    return lambda connection: connection.execute("INSERT INTO numbers VALUES (?)", (number,)).rowcount


def numbers_in(channel):
    return [n for (n,) in channel.read(lambda connection: connection.execute("SELECT n FROM numbers").fetchall())]


def test_calls_that_come_while_one_is_under_way_go_together_and_each_gets_its_own_result(held):
    calls = [held.busy_with(0), *(gevent.spawn(held.group.call, number) for number in range(1, 5))]
    gevent.sleep(0)
    held.let.set()
    gevent.joinall(calls, timeout=10)
    assert [call.value for call in calls] == [0, 2, 4, 6, 8]
    assert held.groups == [[0], [1, 2, 3, 4]]


def test_no_more_go_together_than_may(held):
    calls = [held.busy_with(0), *(gevent.spawn(held.group.call, number) for number in range(MAX_GROUP + 1))]
    gevent.sleep(0)
    held.let.set()
    gevent.joinall(calls, timeout=10)
    assert [len(group) for group in held.groups] == [1, MAX_GROUP, 1]


def test_the_event_loop_runs_on_while_the_thread_is_held_up(held):
    call = held.busy_with(1)
    assert not call.ready()
    held.let.set()
    assert call.get(timeout=10) == 2


def test_who_is_killed_while_waiting_takes_no_one_along(held):
    calls = [held.busy_with(0), *(gevent.spawn(held.group.call, number) for number in (1, 2))]
    gevent.sleep(0)
    calls[0].kill()
    calls[1].kill()
    held.let.set()
    assert calls[2].get(timeout=10) == 4
    assert held.group.call(5) == 10


def test_a_thread_that_was_ended_is_followed_by_another(held):
    held.let.set()
    assert held.group.call(1) == 2
    held.group.end()
    assert held.group.call(2) == 4


def test_a_call_that_has_not_begun_when_the_thread_is_ended_is_made_once(held, capsys):
    held.let.set()
    assert held.group.call(1) == 2
    late = gevent.spawn(held.group.call, 2)
    ending = gevent.spawn(held.group.end)  # runs before the call begins, which waits for all that are ready
    assert late.get(timeout=10) == 4
    assert ending.ready()
    assert held.groups == [[1], [2]]
    assert capsys.readouterr().err == "", "the event loop met no error"


def test_many_writes_take_few_transactions(channel):
    begun = []
    channel.read(lambda connection: connection.set_trace_callback(begun.append))
    writes = [gevent.spawn(channel.write, put(number)) for number in range(50)]
    gevent.joinall(writes, timeout=10)
    assert numbers_in(channel) == list(range(50))
    assert begun.count("BEGIN IMMEDIATE") == begun.count("COMMIT") == 1


def test_a_write_that_fails_takes_no_other_along(channel):
    writes = [gevent.spawn(channel.write, put(number)) for number in (1, 2, 3, 2, 4)]
    gevent.joinall(writes, timeout=10)
    assert isinstance(writes[3].exception, StoreUnavailable)
    assert [write.value for write in writes if write is not writes[3]] == [1, 1, 1, 1]
    assert numbers_in(channel) == [1, 2, 3, 4]


def test_what_is_no_failure_of_the_store_is_raised_as_it_is(channel):
    def break_down(connection):
        put(1)(connection)
        raise LookupError("ours")

    with pytest.raises(LookupError, match="ours"):
        channel.write(break_down)
    assert numbers_in(channel) == []


def test_a_lock_that_is_held_is_waited_for_once_by_all_who_write(channel, tmp_path):
    other = connect(tmp_path / "relay.db")
    other.execute("BEGIN IMMEDIATE")
    writes = [gevent.spawn(channel.write, put(number)) for number in range(20)]
    gevent.joinall(writes, timeout=3 * BUSY_TIMEOUT)
    assert all(isinstance(write.exception, StoreUnavailable) for write in writes)
    other.execute("ROLLBACK")
    other.close()
    until(lambda: channel.write(put(1)) == 1)
    assert sqlite3.connect(tmp_path / "relay.db").execute("SELECT n FROM numbers").fetchall() == [(1,)]
