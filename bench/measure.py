"""One server from its start to its end: warmed up, loaded, looked at."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import requests

from . import servers
from .servers import Server

RATE = 20  # tokens a second of each stream: a brisk model
ARRIVALS = 75  # streams a second that begin; all at once would measure a queue
WARM_UP = (5, 2)  # streams and tokens: imports, the access token and the first connections are no stream's cost
SETTLE = 0.3  # seconds after a load until nothing is left to do for it: what is written late, and confirmations
LOOK_INTERVAL = 0.5  # seconds between two looks at the memory; each takes a millisecond of a core from the servers
LATE = 30.0  # seconds that a load may take longer than its pace says
MIRROR_PATIENCE = 5.0  # seconds after an answer's end until the transcript must hold it


class Target(NamedTuple):
    """A server to measure. `baseline` names the one whose CPU and memory count as 1."""

    name: str
    start: Callable[[Server], AbstractContextManager[Server]]
    is_mirroring: bool = False
    baseline: str = ""


class Figures(NamedTuple):
    """What one server showed in one round."""

    first_p50: float  # ms
    first_p99: float  # ms
    age_p50: float  # ms
    age_p99: float  # ms
    cpu: float | None  # us a token; to begin and end a stream is part of it. None for the gateway
    memory: float | None  # KB a stream
    store_cpu: float | None = None  # us a token that the server behind the store takes, where there is one
    messages: float | None = None  # a thousand tokens, to the transcript


Round = dict[str, Figures]


def play_rounds(targets: Sequence[Target], upstream: Server, streams: int, tokens: int, rounds: int) -> list[Round]:
    """Measures each target in each round."""
    played: list[Round] = []
    for number in range(1, rounds + 1):
        played.append({})
        for target in targets:
            print(f"round {number} of {rounds}: {target.name}", file=sys.stderr, flush=True)
            played[-1][target.name] = measure(target, upstream, streams, tokens)
    return played


def measure(target: Target, upstream: Server, streams: int, tokens: int) -> Figures:
    """Starts the server, loads it, ends it. `upstream` itself may be the one that is measured."""
    requests.post(f"{upstream.url}/sandbox/reset", timeout=10).raise_for_status()
    with target.start(upstream) as server:
        path, bearer = "/stream-llm", ""
        if server is upstream:
            path, bearer = "/api/v2/ai/llm/gateway/chat", servers.access_token(upstream)
        run_load(server.url + path, bearer, *WARM_UP, name="warm")
        time.sleep(SETTLE)
        pids, store_pids = server.tree(), server.store.tree() if server.store else set()
        idle, cpu, store_cpu = servers.memory_kb(pids), servers.cpu_seconds(pids), servers.cpu_seconds(store_pids)
        memory, messages = [idle], servers.messages(upstream)
        seen = run_load(
            server.url + path,
            bearer,
            streams,
            tokens,
            name="bench",
            meanwhile=lambda: memory.append(servers.memory_kb(pids)),
        )
        time.sleep(SETTLE)  # what the server still does for these streams counts too
        if target.is_mirroring:
            check_transcripts(upstream, streams, tokens)
            messages = servers.messages(upstream) - messages
        cpu, store_cpu = servers.cpu_seconds(pids) - cpu, servers.cpu_seconds(store_pids) - store_cpu
    times = [seen[name][quantile] for name in ("first_ms", "age_ms") for quantile in ("p50", "p99")]
    if server is upstream:
        return Figures(*times, None, None)
    micro = 1e6 / seen["tokens"]
    memory_of_one = (max(memory) - idle) / streams
    return Figures(
        *times,
        cpu * micro,
        memory_of_one,
        store_cpu * micro if store_pids else None,
        1000 * messages / seen["tokens"] if target.is_mirroring else None,
    )


def run_load(
    url: str, bearer: str, streams: int, tokens: int, name: str, meanwhile: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """What `bench.load` has seen. Ends the program unless every stream came whole."""
    ramp = streams / ARRIVALS
    limit = ramp + tokens / RATE + LATE
    sizes = {"streams": streams, "tokens": tokens, "ramp": ramp, "limit": limit, "name": name, "bearer": bearer}
    options = [f"--{option}={value}" for option, value in sizes.items()]
    with running([sys.executable, "-m", "bench.load", url, *options]) as load:
        while not has_ended(load, LOOK_INTERVAL):
            meanwhile()
        seen: dict[str, Any] = json.loads(load.communicate()[0] or "{}")
    if seen.get("complete") != streams:
        raise SystemExit(f"{url}: {seen.get('complete', 0)} of {streams} streams came whole; no figures")
    return seen


@contextlib.contextmanager
def running(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, cwd=servers.ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def has_ended(process: subprocess.Popen[str], patience: float) -> bool:
    """Whether it ends within `patience` seconds."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(patience)
    return process.returncode is not None


def check_transcripts(upstream: Server, streams: int, tokens: int) -> None:
    """Ends the program unless every transcript holds every token: figures of work that was not done are none."""
    deadline = time.monotonic() + MIRROR_PATIENCE
    for number in range(streams):
        address = f"{upstream.url}/sandbox/conversations/bench-{number}"
        while len(requests.get(address, timeout=10).json()["text"].split()) != tokens:
            if time.monotonic() > deadline:
                raise SystemExit(f"the transcript of bench-{number} is not whole; no figures")
            time.sleep(0.05)
