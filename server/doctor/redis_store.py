"""Redis as the store: what it is, and what it makes of what it keeps."""

import statistics
import time
from collections.abc import Callable
from typing import Any

from ..errors import StoreUnavailable
from ..journal.redis_client import TIMEOUT, Client
from .clock import Clock
from .finding import Outcome, bad, doubtful, good

LEAST_VERSION = (6, 2)
PINGS = 20
SLOW = 0.02  # seconds to and fro: what other workers see is late by several of these

FIXES = {
    "AuthenticationError": "Correct user and password in STORE_URL: redis://USER:PASSWORD@HOST.",
    "NoPermissionError": "The Redis user may not run these commands: give it the keys {relay}:* and scripts (ACL).",
    "TimeoutError": "Correct host and port in STORE_URL, and open the firewall for it.",
    "ConnectionError": "Start Redis there, or correct host and port in STORE_URL; with TLS it is rediss://.",
    "MaxConnectionsError": "Raise Redis' `maxclients`.",
    "OutOfMemoryError": "Give Redis more memory (`maxmemory`).",
    "ReadOnlyError": "Name the primary in STORE_URL: this one is a replica.",
    "ResponseError": "Name a Redis of 6.2 or later in STORE_URL, alone and not of a cluster.",
}


def ask(url: str, look: Callable[[Client, dict[str, Any]], Outcome]) -> Outcome:
    client = Client(url, TIMEOUT, 1)
    try:
        return look(client, client.execute("INFO", "all"))
    except StoreUnavailable as error:
        return doubtful(
            f"not told ({error.detail})", "This Redis does not let itself be asked: see its provider's page."
        )
    finally:
        client.close()


def version(_: Client, info: dict[str, Any]) -> Outcome:
    found = str(info.get("redis_version", "0"))
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if numbers < LEAST_VERSION:
        return bad(f"Redis {found}", "Take Redis 6.2 or later.")
    if info.get("cluster_enabled") == 1:
        return bad(
            f"Redis {found} in cluster mode, which is not followed", "Name a Redis that stands alone in STORE_URL."
        )
    if info.get("role") != "master":
        return bad(f"Redis {found}, a replica: it takes no writes", "Name the primary in STORE_URL.")
    return good(f"Redis {found}")


def memory(_: Client, info: dict[str, Any]) -> Outcome:
    policy = info.get("maxmemory_policy", "unknown")
    limit = info.get("maxmemory", 0)
    bound = f"{limit / 1024**2:.0f} MiB" if limit else "no limit"
    if policy != "noeviction":
        return bad(
            f"maxmemory-policy {policy} ({bound}): answers and undelivered text can be thrown out",
            "Set `maxmemory-policy noeviction` in that Redis, or take one of its own for the relay.",
        )
    return good(f"maxmemory-policy noeviction, {bound}")


def persistence(client: Client, info: dict[str, Any]) -> Outcome:
    if info.get("aof_enabled") == 1:
        return good("append-only file")
    try:
        snapshots = dict(client.execute("CONFIG GET", "save")).get("save", "")
    except (StoreUnavailable, ValueError, TypeError):  # managed ones do not tell
        return doubtful(
            "no append-only file", "Set `appendonly yes`: else a restart of Redis can lose the last minutes."
        )
    if snapshots:
        return doubtful(
            f"snapshots alone ({snapshots})", "Set `appendonly yes`: else a restart of Redis loses the last minutes."
        )
    return doubtful(
        "nothing on disk: a restart of Redis loses all answers and undelivered text", "Set `appendonly yes`."
    )


def latency(client: Client, _: dict[str, Any]) -> Outcome:
    taken = []
    for _number in range(PINGS):
        began = time.monotonic()
        client.execute("PING")
        taken.append(time.monotonic() - began)
    median, most = statistics.median(taken), max(taken)
    found = f"{median * 1000:.1f} ms to and fro, {most * 1000:.1f} ms at most"
    if median > SLOW:
        return doubtful(found, "Take a Redis in the same network: each event that others follow waits for it.")
    return good(found)


def note_time(url: str, clocks: list[Clock]) -> Outcome:
    """Leases go by Redis' own clock; how far this machine's is from it is told with the others."""

    def look(client: Client, _: dict[str, Any]) -> Outcome:
        seconds, microseconds = client.execute("TIME")
        ahead = int(seconds) + int(microseconds) / 1e6 - time.time()
        clocks.append(Clock("Redis", ahead))
        return good(f"{abs(ahead) * 1000:.0f} ms from this machine's")

    return ask(url, look)


CHECKS = {"version": version, "memory": memory, "disk": persistence, "latency": latency}
