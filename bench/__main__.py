"""`python -m bench`: the figures that the README claims, measured side by side on this machine.

Each round starts every server afresh, warms it up, and has it relay the same paced answers of the sandbox. A figure is
the median of the rounds; a difference or ratio is taken within each round first.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import requests

from . import servers
from .servers import Server

RATE = 20  # tokens a second of each stream: a brisk model
ARRIVALS = 60  # streams a second that begin; all at once would measure a queue
WARM_UP = (10, 5)  # streams and tokens: imports, the access token and the first connections are no stream's cost
SETTLE = 0.3  # seconds after a load until nothing is left to do for it: flushes and confirmations
MEMORY_INTERVAL = 0.1  # seconds between two looks at the memory
LATE = 30.0  # seconds that a load may take longer than its pace says


class Target(NamedTuple):
    """A column of the table."""

    name: str
    start: Callable[[Server], AbstractContextManager[Server]]
    is_mirroring: bool = False
    baseline: str = ""  # the column whose CPU and memory are 1


GATEWAY = "gateway itself"
TARGETS = [
    Target(GATEWAY, contextlib.nullcontext),
    Target("tutorial", lambda upstream: servers.naive(upstream, "off")),
    Target("relay", lambda upstream: servers.relay(upstream, "off"), baseline="tutorial"),
    Target("tutorial, transcript", lambda upstream: servers.naive(upstream, "websocket"), is_mirroring=True),
    Target(
        "relay, transcript",
        lambda upstream: servers.relay(upstream, "websocket"),
        is_mirroring=True,
        baseline="tutorial, transcript",
    ),
]


class Figures(NamedTuple):
    """One server in one round."""

    first_p50: float  # ms
    first_p99: float
    age_p50: float  # ms
    age_p99: float
    cpu: float | None  # us a token, what it takes to begin and end a stream included; None for the gateway
    memory: float | None  # KB a stream


ROWS = {
    "first_p50": "time to first token, p50 (ms)",
    "first_p99": "time to first token, p99 (ms)",
    "age_p50": "age of a token on arrival, p50 (ms)",
    "age_p99": "age of a token on arrival, p99 (ms)",
    "cpu": "CPU per token (µs)",
    "memory": "memory per open stream (KB)",
}
Round = dict[str, Figures]


def measure(target: Target, upstream: Server, streams: int, tokens: int) -> Figures:
    """One server from its start to its end."""
    requests.post(f"{upstream.url}/sandbox/reset", timeout=10).raise_for_status()
    with target.start(upstream) as server:
        run_load(target, server, *WARM_UP, name="warm")
        time.sleep(SETTLE)
        pids = server.tree()
        cpu, idle = servers.cpu_seconds(pids), servers.memory_kb(pids)
        peak = idle

        def look() -> None:
            nonlocal peak
            peak = max(peak, servers.memory_kb(pids))

        seen = run_load(target, server, streams, tokens, name="bench", meanwhile=look)
        time.sleep(SETTLE)  # what the server still does for these streams counts too
        cpu = servers.cpu_seconds(pids) - cpu
        if target.is_mirroring:
            check_transcripts(upstream, streams, tokens)
    times = [seen[name][quantile] for name in ("first_ms", "age_ms") for quantile in ("p50", "p99")]
    if server is upstream:
        return Figures(*times, None, None)
    return Figures(*times, cpu / seen["tokens"] * 1e6, (peak - idle) / streams)


def run_load(
    target: Target, server: Server, streams: int, tokens: int, name: str, meanwhile: Callable[[], None] = lambda: None
) -> dict:
    """What `bench.load` has seen. Ends the program unless every stream came whole."""
    url, bearer = f"{server.url}/stream-llm", []
    if target.name == GATEWAY:
        url, bearer = f"{server.url}/api/v2/ai/llm/gateway/chat", ["--bearer", servers.access_token(server)]
    ramp = streams / ARRIVALS
    sizes = {"streams": streams, "tokens": tokens, "ramp": ramp, "limit": ramp + tokens / RATE + LATE, "name": name}
    options = [f"--{option}={value}" for option, value in sizes.items()]
    command = [sys.executable, "-m", "bench.load", url, *options, *bearer]
    with running(command) as load:
        while load.poll() is None:
            meanwhile()
            time.sleep(MEMORY_INTERVAL)
        seen = json.loads(load.communicate()[0] or "{}")
    if seen.get("complete") != streams:
        raise SystemExit(f"{target.name}: {seen.get('complete', 0)} of {streams} streams came whole; no figures")
    return seen


@contextlib.contextmanager
def running(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, cwd=servers.ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def check_transcripts(upstream: Server, streams: int, tokens: int) -> None:
    """Ends the program unless every transcript holds every token: a figure without the work would be none."""
    for number in range(streams):
        shown = requests.get(f"{upstream.url}/sandbox/conversations/bench-{number}", timeout=10).json()
        if len(shown["text"].split()) != tokens:
            raise SystemExit(f"the transcript of bench-{number} is not whole; no figures")


def table(rounds: Sequence[Round]) -> str:
    """Markdown: a row a figure, a column a server."""
    head = ["", *(target.name for target in TARGETS)]
    lines = [head, ["---", *["--:"] * len(TARGETS)]]
    lines += [[title, *(cell(rounds, target, name) for target in TARGETS)] for name, title in ROWS.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(rounds: Sequence[Round], target: Target, name: str) -> str:
    """The figure; times with what they add to the gateway's own, the rest with the ratio to the baseline."""
    values = [getattr(figures[target.name], name) for figures in rounds]
    if None in values:
        return ""
    is_time = name not in ("cpu", "memory")
    text = f"{statistics.median(values):.{2 if is_time else 0}f}"
    other = GATEWAY if is_time else target.baseline
    if other in ("", target.name):
        return text
    pairs = list(zip(values, (getattr(figures[other], name) for figures in rounds), strict=True))
    if is_time:
        return f"{text} ({statistics.median(mine - theirs for mine, theirs in pairs):+.2f})"
    return f"{text} ({statistics.median(mine / theirs for mine, theirs in pairs):.2f} ×)"


def machine() -> str:
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, load before {load:.1f}"


def stop_by_signal(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--streams", type=int, default=50, help="at once (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=40, help="of each stream (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop_by_signal)
    print(f"{machine()}\n", flush=True)
    rounds: list[Round] = []
    with servers.sandbox(1000 / RATE) as upstream:
        for number in range(1, options.rounds + 1):
            found: Round = {}
            for target in TARGETS:
                print(f"round {number} of {options.rounds}: {target.name}", file=sys.stderr, flush=True)
                found[target.name] = measure(target, upstream, options.streams, options.tokens)
            rounds.append(found)
    print(table(rounds))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("stopped") from None
