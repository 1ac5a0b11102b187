"""Stores for the journal's tests: for each engine one that several workers share, and whose time a test lets pass.

The tests run without gevent's patches: Redis is waited for in threads, the other engines in greenlets.
"""

import shutil
import subprocess
import tempfile
import threading
import time
import uuid
from pathlib import Path

import gevent
import redis

from server.access.allowance import Allowance, Rate
from server.journal import FRESH, LEASE, RENEW_INTERVAL, Batch, Entry
from server.sse import Token

from .conftest import until

RETAIN = 60.0  # seconds
RETAIN_UNDELIVERED = 600.0  # seconds
STEP = 2.0  # seconds between two renewals of those who live on; less than LEASE
STRETCH = 100  # seconds of Redis to one of a test: what a slow machine takes on top does not count
# Each key of a Redis comes so many milliseconds nearer to its end; the ends of undelivered turns, the beginnings of
# leases and those that count for a caller's rate lie further back.
FORWARD = """
for _, key in ipairs(redis.call('KEYS', '*')) do
  local left = redis.call('PTTL', key)
  if left >= 0 then redis.call('PEXPIRE', key, left - ARGV[1]) end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', '{relay}:outbox', '-inf', '(inf')) do
  redis.call('ZINCRBY', '{relay}:outbox', -ARGV[1] / 1000, id)
end
for _, key in ipairs(redis.call('KEYS', '{relay}:worker:*')) do
  redis.call('SET', key, string.format('%.6f', redis.call('GET', key) - ARGV[1] / 1000), 'KEEPTTL')
end
for _, key in ipairs(redis.call('KEYS', '{relay}:beginnings:*')) do
  for n, at in ipairs(redis.call('LRANGE', key, 0, -1)) do
    redis.call('LSET', key, n - 1, string.format('%.6f', at - ARGV[1] / 1000))
  end
end
"""


class RedisServer:
    """A redis-server of the test's own on a socket in a folder of its own. `stop` and `start` keep its address."""

    def __init__(self, *options):
        self.folder = Path(tempfile.mkdtemp(prefix="relay-redis-"))
        self.url = f"unix://{self.folder}/redis.sock"
        self.client = redis.Redis.from_url(self.url, decode_responses=True)
        self._options = options
        self.start()

    def start(self):
        base = ["redis-server", "--port", "0", "--unixsocket", f"{self.folder}/redis.sock", "--dir", str(self.folder)]
        self.process = subprocess.Popen(
            [*base, "--save", "", "--appendonly", "no", *self._options], stdout=subprocess.DEVNULL
        )
        until(self._answers, "PING")

    def _answers(self):
        try:
            return self.client.ping()
        except redis.ConnectionError:
            assert self.process.poll() is None, "redis-server ended"
            return False

    def stop(self):
        self.process.kill()
        self.process.wait()
        (self.folder / "redis.sock").unlink(missing_ok=True)

    def remove(self):
        self.stop()
        self.client.close()
        shutil.rmtree(self.folder)


class Store:
    """What the workers of one test share. Subclasses: one for each engine."""

    stretch = 1  # seconds of the engine to one of a test

    def __init__(self):
        self.now = 1_800_000_000.0
        self._journals = {}

    def clock(self):
        return self.now

    def open(self, worker):
        raise NotImplementedError

    def worker(self, name):
        """A journal for this worker, with a lease."""
        journal = self._journals[name] = self.open(name)
        journal.renew()
        return journal

    def forward(self, seconds):
        """Time passes for the store, and nobody does anything meanwhile."""
        self.now += seconds

    def live_on(self, seconds, *journals):
        """Time passes, and these renew their leases as they should."""
        end = self.now + seconds
        while self.now < end:
            self.forward(min(STEP, end - self.now))
            for journal in journals:
                assert journal.renew(), "the lease of one who renews it is unbroken"

    def outlive_lease(self, *survivors):
        """So long that whoever is not among the survivors loses its lease."""
        self.live_on(LEASE + RENEW_INTERVAL, *survivors)

    def allowance(self, turns=None, seconds=60.0, at_once=None):
        """So many turns in so many of the test's seconds, and running at once."""
        return Allowance(turns and Rate(turns, seconds * self.stretch), at_once)

    def later(self, call, *args):
        """Starts a call that may wait; `get` on what this returns waits for its result."""
        return gevent.spawn(call, *args)

    def pause(self, seconds):
        gevent.sleep(seconds)

    def close(self):
        for journal in self._journals.values():
            journal.close()


class MemoryStore(Store):
    def __init__(self):
        from server.journal import memory  # noqa: PLC0415 - only who tests this engine needs it

        super().__init__()
        self._engine = memory
        self._shared = memory.Store()

    def open(self, worker):
        return self._engine.MemoryJournal(worker, RETAIN, RETAIN_UNDELIVERED, self.clock, self._shared)


class SqliteStore(Store):
    def __init__(self):
        from server.journal import sqlite  # noqa: PLC0415 - only who tests this engine needs it

        super().__init__()
        self._engine = sqlite
        self._folder = Path(tempfile.mkdtemp(prefix="relay-sqlite-"))

    def open(self, worker):
        clocks = self.clock, self.clock
        return self._engine.SqliteJournal(self._folder / "relay.db", worker, RETAIN, RETAIN_UNDELIVERED, *clocks)

    def close(self):
        super().close()
        shutil.rmtree(self._folder)


class RedisStore(Store):
    stretch = STRETCH

    def __init__(self, server):
        from server.journal import redis as engine  # noqa: PLC0415 - only who tests this engine needs it

        super().__init__()
        self._engine = engine
        self._engine.LEASE, self._engine.FRESH = LEASE * STRETCH, FRESH * STRETCH
        self._server = server
        server.client.flushall()

    def open(self, worker):
        return self._engine.RedisJournal(self._server.url, worker, RETAIN * STRETCH, RETAIN_UNDELIVERED * STRETCH)

    def forward(self, seconds):
        super().forward(seconds)
        self._server.client.eval(FORWARD, 0, round(seconds * STRETCH * 1000))

    def close(self):
        super().close()
        self._engine.LEASE, self._engine.FRESH = LEASE, FRESH

    def later(self, call, *args):
        return Waiting(call, args)

    def pause(self, seconds):
        time.sleep(seconds)


def make_store(engine, request):
    """A store of this engine, for a test that closes it."""
    match engine:
        case "memory":
            return MemoryStore()
        case "sqlite":
            return SqliteStore()
    return RedisStore(request.getfixturevalue("redis_server"))


class Waiting(threading.Thread):
    """A call in a thread, with the result in `get`, as a greenlet has it."""

    def __init__(self, call, args):
        super().__init__(daemon=True)
        self._call, self._args = call, args
        self._result = self._error = None
        self.start()

    def run(self):
        try:
            self._result = self._call(*self._args)
        except Exception as error:  # noqa: BLE001 - raised in `get`
            self._error = error

    def get(self, timeout):
        self.join(timeout)
        assert not self.is_alive(), f"{self._call} still waits after {timeout} s"
        if self._error is not None:
            raise self._error
        return self._result

    def ready(self):
        return not self.is_alive()


def entry(conversation="c", caller="alice", began=1_800_000_000.25, **more):
    return Entry(uuid.uuid4().hex, conversation, caller, began, **more)


def tokens(first, last):
    """Tokens with these ids; each text tells its id."""
    return [Token(number, f"t{number} ") for number in range(first, last + 1)]


def batch(turn, first, last, *closing):
    return Batch(turn.id, [*tokens(first, last), *closing])
