"""`python -m bench.stores`: what each store costs and gives, measured side by side on this machine."""

import contextlib
import gc
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence

from . import pair, program, servers
from .load import percentiles
from .measure import RATE, Round, Target, play_rounds
from .program import cost_cell, markdown

MEMORY = Target("memory", lambda upstream: servers.relay(upstream, "off", "memory://"))
SQLITE = Target("sqlite", lambda upstream: servers.relay(upstream, "off"), baseline=MEMORY.name)
REDIS = Target("redis", lambda upstream: servers.relay_with_redis(upstream, "off"), baseline=MEMORY.name)
COSTS = {
    "cpu": "CPU per token (µs)",
    "memory": "memory per open stream (KB)",
    "store_cpu": "CPU of redis-server per token (µs)",
}
COSTS_LEGEND = (
    "The relay without transcript, by store: {streams} streams of {tokens} tokens, {rate} tokens a second each; "
    "medians of {rounds} rounds. In parentheses: the ratio to memory."
)
DELAYS_LEGEND = (
    f"Two relays on one store: how much later a token comes to who follows on the other one. {pair.STREAMS} streams of "
    f"{pair.TOKENS} tokens, {RATE} a second, the first {pair.UNWATCHED} left out."
)
RECOVERIES_LEGEND = (
    f"Two relays on one store: from kill -9 of the first, master and worker, until who follows its stream on the other "
    f"one has its `done`, interrupted. {pair.KILLS} kills."
)


def costs_table(targets: Sequence[Target], rounds: Sequence[Round]) -> str:
    rows = [[title, *(cost_cell(rounds, target, name) for target in targets)] for name, title in COSTS.items()]
    return markdown([target.name for target in targets], [row for row in rows if any(row[1:])])


def delays_table(delays: Mapping[str, Sequence[int]]) -> str:
    found = {name: percentiles(times) or {} for name, times in delays.items()}
    rows = [[f"delay, {rank} (ms)", *(f"{times[rank]:.1f}" for times in found.values())] for rank in ("p50", "p99")]
    return markdown(list(delays), rows)


def recoveries_table(recoveries: Mapping[str, Sequence[float]]) -> str:
    figures: dict[str, Callable[[Sequence[float]], float]] = {"min": min, "median": statistics.median, "max": max}
    rows = [
        [f"recovery, {name} (s)", *(f"{figure(seconds):.2f}" for seconds in recoveries.values())]
        for name, figure in figures.items()
    ]
    return markdown(list(recoveries), rows)


@contextlib.contextmanager
def shared_stores(with_redis: bool) -> Iterator[dict[str, str]]:
    """STORE_URLs for several relays, by the store's name."""
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder, contextlib.ExitStack() as stack:
        stores = {SQLITE.name: f"sqlite:///{folder}/shared.db"}
        if with_redis:
            stores[REDIS.name] = stack.enter_context(servers.redis()).url
        yield stores


def say(text: str) -> None:
    """What happens now, beside the figures."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    options = program.read_options("python -m bench.stores", "Measures what each store costs and gives.")
    gc.disable()  # a pause here would look like one of a relay
    targets = [MEMORY, SQLITE, REDIS]
    if shutil.which("redis-server") is None:
        say("redis-server is missing: no figures for redis")
        targets.remove(REDIS)
    print(f"{program.machine()}\n{COSTS_LEGEND.format(rate=RATE, **vars(options))}\n", flush=True)
    with servers.sandbox(1000 / RATE) as upstream, shared_stores(REDIS in targets) as stores:
        print(costs_table(targets, play_rounds(targets, upstream, **vars(options))), flush=True)
        say("delay across workers")
        delays = {name: pair.delays(upstream, url) for name, url in stores.items()}
        print(f"\n{DELAYS_LEGEND}\n\n{delays_table(delays)}", flush=True)
        say("recovery after kill -9")
        print(f"\n{RECOVERIES_LEGEND}\n\n{recoveries_table(pair.recoveries(upstream, stores))}")


if __name__ == "__main__":
    program.run(main)
