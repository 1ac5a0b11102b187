"""What a worker may take for certain of its own lease, by a SQLite file that another connection has locked."""

import sqlite3
import time
from contextlib import closing, contextmanager

import gevent
import pytest

from server.journal import LEASE, RENEW_INTERVAL
from server.journal.courier import MARGIN, Courier
from server.journal.health import Health
from server.journal.sqlite import SqliteJournal
from server.journal.sqlite_file import BUSY_TIMEOUT

from .stores import RETAIN, RETAIN_UNDELIVERED


@pytest.fixture
def path(tmp_path):
    return tmp_path / "relay.db"


@pytest.fixture
def courier(path):
    """One that holds its lease."""
    journal = SqliteJournal(path, "ann", RETAIN, RETAIN_UNDELIVERED)
    courier = Courier(journal, Health(), lambda *_: None, lambda: None)
    holding = gevent.spawn(courier.hold_lease)
    wait_for(lambda: courier.lease_is_sure)
    yield courier
    holding.kill()
    journal.close()


@contextmanager
def locked(path):
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def wait_for(condition):
    """Lets the courier run meanwhile."""
    with gevent.Timeout(10):
        while not condition():
            gevent.sleep(0.01)


def test_a_lease_is_sure_while_nobody_reaches_the_store(path, courier):
    with locked(path):
        locked_until = time.monotonic() + LEASE + 1.0
        while time.monotonic() < locked_until:
            gevent.sleep(0.1)
            assert courier.lease_is_sure


def test_but_not_after_a_sleep_that_was_longer_than_the_lease(path, courier):
    """Who was stopped while the store was locked does not know what came after that."""
    with locked(path):
        wait_for(lambda: courier._health.failing)
        time.sleep(LEASE - MARGIN)  # the whole process stands still
        assert not courier.lease_is_sure
        time.sleep(MARGIN)
        until_tried = time.monotonic() + BUSY_TIMEOUT + RENEW_INTERVAL
        while time.monotonic() < until_tried:
            gevent.sleep(0.1)
            assert not courier.lease_is_sure
    wait_for(lambda: courier.lease_is_sure)
