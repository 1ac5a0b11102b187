"""What must be left when all is over: nothing."""

import contextlib
import sqlite3

import redis
import requests

from ..conftest import until
from .world import RETAIN

CALM = 100.0  # seconds for all to go: an idle link stays a minute
AHEAD = 2 * RETAIN + 3600  # seconds that the clock jumps for all, and dead workers, to be beyond their retention
SLACK = {"socket": 1, "to Redis": 16, "greenlet": 2}  # over the idle level: kept connections, who answers just now
TABLES = ("turns", "batches", "wishes", "holders")


def leaks(world, idle):
    """Which followers, turns, links, workers, descriptors, greenlets or rows stay; `idle` is `idle_holdings` before."""
    found = [
        left(lambda: extra_workers(world), "workers"),
        left(lambda: {name: value for name, value in world.gauges().items() if value}, "gauges"),
        left(lambda: open_links(world), "links at the sandbox"),
        left(lambda: extra_holdings(world, idle), "descriptors or greenlets"),
        rows_of_redis(world) if world.redis else rows_of_sqlite(world),
    ]
    return [fault for fault in found if fault]


def left(look, what):
    """What `look` still shows after a long patience, as a sentence; "" when it comes to show nothing."""
    seen = None

    def is_gone():
        nonlocal seen
        with contextlib.suppress(requests.RequestException, redis.RedisError, sqlite3.Error, OSError):
            seen = look()
            return not seen

    try:
        until(is_gone, what, CALM)
    except AssertionError:
        return f"{what} that stay: {seen}"
    return ""


def extra_workers(world):
    count = len(world.relay.workers)
    return {} if count == 2 else {"workers": count}


def open_links(world):
    return world.sandbox.calls()["transcript"]["open"]


def extra_holdings(world, idle):
    """Over the idle level, by worker."""
    world.warm_up()
    found = {}
    for worker in world.relay.workers:
        now = world.holdings(worker)
        over = {kind: count for kind, count in now.items() if count > idle[kind] + SLACK.get(kind, 0)}
        found |= {worker: over} if over else {}
    return found


def rows_of_sqlite(world):
    """What of turns is left once their time is over."""
    with contextlib.closing(sqlite3.connect(world.file, timeout=30)) as connection:

        def count(select):
            return connection.execute(select).fetchone()[0]

        running = left(
            lambda: count("SELECT count(*) FROM turns WHERE status = 'running' OR place IS NOT NULL"), "rows"
        )
        world.clock.set(AHEAD)
        try:
            kept = left(lambda: {t: n for t in TABLES if (n := count(f"SELECT count(*) FROM {t}"))}, "rows")  # noqa: S608
        finally:
            world.clock.set(0.0)
    return " ".join(filter(None, [running, kept]))


def rows_of_redis(world):
    """Redis' own clock cannot jump: what belongs to a turn must have an end of its life instead."""
    with contextlib.closing(redis.Redis.from_url(world.redis.url, decode_responses=True)) as client:
        return left(lambda: endless_keys(client), "keys without an end")


def endless_keys(client):
    found = []
    for key in client.scan_iter(count=1000):
        kind = key.split(":")[1]
        if kind not in ("workers", "holding", "secret") and client.ttl(key) == -1:
            found.append(key)
    return found[:5]


def idle_holdings(world):
    """What a worker has that was used and has nothing to do: the most of each kind that one of them has."""
    world.warm_up()
    return world.holdings(world.relay.workers[0]) | world.holdings(world.relay.workers[1])
