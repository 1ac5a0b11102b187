"""What each store costs and gives: nothing kept, SQLite, Redis."""

import contextlib
import gc
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence

from . import pair, servers
from .document import Section
from .load import percentiles
from .measure import Load, Plan, Target, play_rounds
from .tables import AGE, CPU, FIRST, MEMORY, Column, figures_table, markdown

PACED = Load(200, 50, 20, 1.0)
NOTHING = "memory: nothing kept"
TARGETS = [
    Target(NOTHING, lambda upstream: servers.relay(upstream, "off", "memory://"), baseline=NOTHING),
    Target("sqlite", lambda upstream: servers.relay(upstream, "off"), baseline=NOTHING),
    Target("redis", lambda upstream: servers.relay_with_redis(upstream, "off"), baseline=NOTHING),
]
COLUMNS = [CPU, Column("CPU of redis-server per token (µs)", "store_cpu", 1), MEMORY, *FIRST, *AGE]
DELAYS = (
    f"**How much later does a token come to who follows on another worker?** Two relays on one store; {pair.STREAMS} "
    f"streams of {pair.TOKENS} tokens, {pair.RATE} a second, the first {pair.UNWATCHED} left out."
)
RECOVERIES = (
    f"**How soon does a follower know that its stream's worker was killed?** From kill -9 of one of two relays on one "
    f"store, master and worker, until who follows on the other one has its `done`, interrupted; {pair.KILLS} kills."
)


def measure(plan: Plan) -> Section:
    targets, load = plan.pick(TARGETS), plan.fit(PACED)
    played = play_rounds(targets, {"paced": load}, plan.rounds)
    texts = [
        f"**What does it cost to keep every answer?** (paced: {load})",
        figures_table(targets, played, "paced", COLUMNS),
    ]
    if plan.is_whole:
        texts += measure_pairs()
    return Section("\n\n".join(texts))


def measure_pairs() -> list[str]:
    is_collecting = gc.isenabled()
    gc.disable()  # a pause here would look like one of a relay
    with servers.sandbox(1000 / pair.RATE) as upstream, shared_stores() as stores:
        print("delay across workers", file=sys.stderr, flush=True)
        delays = {name: pair.delays(upstream, url) for name, url in stores.items()}
        print("recovery after kill -9", file=sys.stderr, flush=True)
        recoveries = pair.recoveries(upstream, stores)
    if is_collecting:
        gc.enable()
    return [DELAYS, delays_table(delays), RECOVERIES, recoveries_table(recoveries)]


def delays_table(delays: Mapping[str, Sequence[int]]) -> str:
    found = {name: percentiles(times) or {} for name, times in delays.items()}
    rows = [[name, *(f"{times[rank]:.1f}" for rank in ("p50", "p99"))] for name, times in found.items()]
    return markdown(["p50 (ms)", "p99 (ms)"], rows)


def recoveries_table(recoveries: Mapping[str, Sequence[float]]) -> str:
    figures: dict[str, Callable[[Sequence[float]], float]] = {"min": min, "median": statistics.median, "max": max}
    rows = [[name, *(f"{figure(seconds):.2f}" for figure in figures.values())] for name, seconds in recoveries.items()]
    return markdown([f"{name} (s)" for name in figures], rows)


@contextlib.contextmanager
def shared_stores() -> Iterator[dict[str, str]]:
    """STORE_URLs for several relays, by the store's name."""
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder, servers.redis() as redis:
        yield {"sqlite": f"sqlite:///{folder}/shared.db", "redis": redis.url}
