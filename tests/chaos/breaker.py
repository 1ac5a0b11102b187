"""Carries out a plan's faults, each at its time, and remembers when they were at work."""

import contextlib
import os
import signal
import sqlite3
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import requests

from server.journal.flusher import FLUSH_INTERVAL

from ..conftest import until
from ..schedules import break_worker, wait_until
from .judge import DEADLY, LAST_MOMENT, STORE
from .records import Question

# Seconds for which a fault still explains what fails. A login's waits in the sandbox for the next login; a token that
# was just renewed is not renewed again for some seconds.
AFTERMATH = {"outage": 4.0, "login": float("inf"), "expiry": 10.0}
AFTER = 0.5  # seconds, for all others
KEPT = 5.0  # seconds after which a store that is in order again has all that waited for it


class Breaker:
    def __init__(self, world, dice):
        self.counts = Counter()
        self._world = world
        self._dice = dice
        self._at_work = []  # kind, begin and end of each
        self._store = threading.Lock()  # one fault of the store at a time

    def run(self, faults, begin):
        """Returns when all is over."""
        with ThreadPoolExecutor(16) as pool:
            done = [pool.submit(self._strike, fault, begin + fault.at) for fault in faults]
        for future in done:
            future.result()

    def meanwhile(self, began, ended, told):
        """Kinds of faults that were at work between two moments (monotonic); `told` is when a reader first saw the end.

        What kills a worker takes along what is not older than a flush, the end as well: it may come a little later.
        """
        spans = [(kind, start, end + AFTERMATH.get(kind, AFTER)) for kind, start, end in list(self._at_work)]
        deaths = [
            (kind, start, start + AFTER if kind == "stop" else end) for kind, start, end in spans if kind in DEADLY
        ]
        for kind, start, end in sorted(spans, key=lambda span: span[1]):
            if kind in STORE and start <= ended <= end:
                ended = end + KEPT  # only then is it certain that the end is kept
        found = {kind for kind, start, end in spans if start <= ended and began <= end}
        last = {kind for kind, start, end in deaths if start - FLUSH_INTERVAL <= told <= end}
        return frozenset(found | last | ({LAST_MOMENT} if last else set()))

    def outages(self):
        """When the store may have kept nothing: begin and end of each, in seconds since 1970."""
        ahead = time.time() - time.monotonic()
        return [(start + ahead, end + ahead + KEPT) for kind, start, end in list(self._at_work) if kind in STORE]

    def _strike(self, fault, at):
        wait_until(at)
        kind = fault.kind
        if kind == "redis restart" and not self._world.redis:
            kind = "store"
        span = [kind, time.monotonic(), float("inf")]
        self._at_work.append(span)
        try:
            name = self._carry_out(kind, fault.details)
            self.counts[name or kind] += 1
        finally:
            span[2] = time.monotonic()

    def _carry_out(self, kind, details):
        """What to count it as, where that is not its kind."""
        world = self._world
        match kind:
            case "link" | "login":
                place = "transcript" if kind == "link" else "oauth"
                self._order(lambda: world.sandbox.fault(place, **details))
                return f"{place} {details['fault']}"
            case "expiry":
                self._order(world.sandbox.expire_tokens)
            case "outage":
                self._order(lambda: world.sandbox.fault("gateway", "refused", seconds=details))
                time.sleep(details)
            case "kill" | "hup" | "stop" | "term":
                break_worker(world.relay, kind, self._dice)
            case "clock":
                world.clock.set(details)
            case "proxy reload":
                world.nginx.reload()
            case _:
                with self._store:
                    self._break_store(kind, details)
        return None

    def _order(self, give):
        """Until the sandbox takes it: it may be in an outage."""

        def is_given():
            with contextlib.suppress(requests.RequestException):
                give()
                return True

        until(is_given, "the sandbox takes an order", 60)

    def _break_store(self, kind, seconds):
        world = self._world
        if kind == "disk full":
            world.disk.fill(world.pids())
            time.sleep(seconds)
            world.disk.free()
            if world.redis and world.redis.process.poll() is not None:  # it ends when it cannot write
                world.redis.start()
        elif kind == "redis restart":
            world.redis.stop()
            time.sleep(seconds)
            world.redis.start()
        elif world.redis:
            os.kill(world.redis.process.pid, signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(world.redis.process.pid, signal.SIGCONT)
        else:
            with contextlib.closing(sqlite3.connect(world.file, isolation_level=None, timeout=30)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                time.sleep(seconds)
                connection.execute("ROLLBACK")


def order_all(world, questions: list[Question]):
    """The answers, and the faults that each question itself meets, before anything breaks."""
    for question in questions:
        world.sandbox.script(question.prompt, question.tokens, interval_ms=question.interval_ms)
        if question.fault:
            world.sandbox.fault("gateway", prompt=question.prompt, **question.fault)
