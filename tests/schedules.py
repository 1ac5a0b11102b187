"""Random faults against real processes, by a seed: `python -m tests.schedules --count 200 --store redis`.

A schedule asks several questions in several conversations while links, workers and the platform break, and judges the
transcripts when all is over.
"""

import argparse
import contextlib
import os
import random
import signal
import sqlite3
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from .conftest import RelayServer, Sandbox, TcpRedis, until
from .transcripts import faults_of, tokens_of

CONVERSATIONS = 4
QUESTIONS = 3  # in each conversation
TOKENS = 40  # of an answer
SPAN = 4.0  # seconds in which faults come
LINK_FAULTS = [
    ("refused_401", {}),
    ("refused_403", {"calls": 2}),
    ("refused_503", {"retry_after": 1}),
    ("closed_at_once", {"calls": 2}),
    ("closed_after", {"after": 3, "calls": 3}),
    ("gone", {"after": 5, "calls": 3}),
    ("slow_reader", {"seconds": 0.1}),
    ("mute", {"after": 2}),
]
WORKER_FAULTS = ["kill", "hup", "stop", "term"]
STORE_OUTAGES = [1.0, 4.0, 7.0]  # seconds without an answer; a lease lasts three
PATIENCE = 90.0  # seconds for all to be delivered; a mute link is noticed after 20 s


class Fleet:
    """A sandbox, and two machines with two workers each on one store (or one, on SQLite)."""

    def __init__(self, store):
        self.sandbox = Sandbox()
        self._folder = tempfile.TemporaryDirectory(prefix="relay-schedules-")
        self._redis = TcpRedis(Path(self._folder.name)) if store == "redis" else None
        self._file = Path(self._folder.name) / "relay.db"
        url = self._redis.url if self._redis else f"sqlite:///{self._file}"
        shared = {"STORE_URL": url, "WEB_CONCURRENCY": "2", "DISCONNECT_GRACE": "-1", "GATEWAY_IDLE_TIMEOUT": "60"}
        self.relays = [RelayServer(self.sandbox.url, **shared) for _ in range(2)]

    def hold_up_store(self, seconds):
        """The store answers nobody for so long."""
        if self._redis:
            os.kill(self._redis.process.pid, signal.SIGSTOP)
            wait_until(time.monotonic() + seconds)
            os.kill(self._redis.process.pid, signal.SIGCONT)
            return
        with contextlib.closing(sqlite3.connect(self._file, isolation_level=None, timeout=30)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            wait_until(time.monotonic() + seconds)
            connection.execute("ROLLBACK")

    def close(self):
        for relay in self.relays:
            relay.stop()
        if self._redis:
            self._redis.stop()
        self.sandbox.process.stop()
        self._folder.cleanup()


def run(fleet, seed):
    """Runs one schedule; returns what is wrong, by conversation, and the faults that came."""
    dice = random.Random(seed)
    names = [f"s{seed}-{number}-{uuid.uuid4().hex[:8]}" for number in range(CONVERSATIONS)]
    asked = {name: [] for name in names}
    plan = sorted((dice.uniform(0, SPAN), fault) for fault in planned(dice))
    asking = [(dice.uniform(0, SPAN / 2), name) for name in names for _ in range(QUESTIONS)]
    begin = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        breaking = pool.submit(break_things, fleet, dice, plan, begin)
        for at, name in sorted(asking):
            wait_until(begin + at)
            question = len(asked[name])
            prompt = f"{name} {question}"
            fleet.sandbox.script(prompt, tokens_of(question, TOKENS), interval_ms=dice.choice([0, 10, 40]))
            asked[name].append(ask(dice.choice(fleet.relays), prompt, name))
        breaking.result()
    fleet.sandbox.forget_faults()
    return {name: found for name in names if (found := judged(fleet, name, asked[name]))}, [fault for _, fault in plan]


def planned(dice):
    faults = [("link", fault) for fault in dice.choices(LINK_FAULTS, k=dice.randint(0, 5))]
    faults += [("worker", fault) for fault in dice.choices(WORKER_FAULTS, k=dice.randint(0, 2))]
    faults += [("store", seconds) for seconds in dice.choices(STORE_OUTAGES, k=dice.choice([0, 0, 1]))]
    return faults + [("token", None)] * dice.randint(0, 1)


def break_things(fleet, dice, plan, begin):
    for at, (kind, fault) in plan:
        wait_until(begin + at)
        if kind == "link":
            fleet.sandbox.fault("transcript", fault[0], **fault[1])
        elif kind == "token":
            fleet.sandbox.expire_tokens()
        elif kind == "store":
            fleet.hold_up_store(fault)
        else:
            break_worker(dice.choice(fleet.relays), fault, dice)


def break_worker(relay, fault, dice):
    if fault == "hup":
        relay.process.process.send_signal(signal.SIGHUP)
        return
    worker = dice.choice(until(lambda: relay.workers, "workers"))
    with contextlib.suppress(ProcessLookupError):  # it may have ended since
        if fault == "kill":
            os.kill(worker, signal.SIGKILL)
        elif fault == "term":
            os.kill(worker, signal.SIGTERM)
        else:
            os.kill(worker, signal.SIGSTOP)
            wait_until(time.monotonic() + dice.choice([1.0, 5.0]))
            os.kill(worker, signal.SIGCONT)


def ask(relay, prompt, name):
    """As a client that repeats its question until there is an answer; the key makes that one turn."""
    key = uuid.uuid4().hex

    def begun():
        with contextlib.suppress(requests.RequestException, AssertionError):
            return relay.begin(prompt, name, key=key)

    return until(begun, "the question is taken", PATIENCE)


def judged(fleet, name, streams):
    """What is wrong with the conversation once everything is delivered."""

    def states():
        with contextlib.suppress(requests.RequestException, AssertionError):
            found = [fleet.relays[0].state(stream) for stream in streams]
            again = [relay.state(stream) for stream in streams for relay in fleet.relays * 2]
            # A worker whose turn another one has ended may show for a moment what was never kept.
            is_settled = {(state["id"], state["text"]) for state in found + again}
            delivered = all(state["transcript"]["state"] == "delivered" for state in found)
            return found if delivered and len(is_settled) == len(streams) else None

    found = until(states, f"{name} is delivered", PATIENCE)
    # A worker that is killed has sent what it had not kept yet; then the transcript, as the client, has some more.
    return faults_of(fleet.sandbox.conversation(name), [state["text"] for state in found])


def wait_until(moment):
    time.sleep(max(0.0, moment - time.monotonic()))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1, help="of the first")
    parser.add_argument("--store", choices=["sqlite", "redis"], default="redis")
    options = parser.parse_args()
    fleet = Fleet(options.store)
    try:
        wrong = sum(report(fleet, seed) for seed in range(options.seed, options.seed + options.count))
    finally:
        fleet.close()
    print(f"{options.count} schedules, {wrong} with violations")
    raise SystemExit(wrong > 0)


def report(fleet, seed):
    begin = time.monotonic()
    try:
        found, faults = run(fleet, seed)
    except AssertionError as error:
        found, faults = {"": [str(error)]}, []
    names = ", ".join(f"{kind} {fault[0] if isinstance(fault, tuple) else fault}" for kind, fault in faults)
    print(f"seed {seed}: {'VIOLATED' if found else 'ok'} in {time.monotonic() - begin:.1f} s ({names})", flush=True)
    for name, faults_found in found.items():
        print(f"    {name}: {'; '.join(faults_found)}", flush=True)
    return bool(found)


if __name__ == "__main__":
    main()
