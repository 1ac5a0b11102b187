"""One server from its start to its end: warmed up, loaded, looked at."""

import contextlib
import json
import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from . import instrument, servers
from .servers import ROOT, Server

CHAT = "/api/v2/ai/llm/gateway/chat"
SETTLE = 0.6  # seconds after a load until nothing is left to do for it: what is written late, and confirmations
LOOK_INTERVAL = 0.5  # seconds between two looks at the memory; each takes a millisecond of a core from the servers
LATE = 40.0  # seconds that a load may take longer than its pace says
MIRROR_PATIENCE = 10.0  # seconds after an answer's end until the transcript must hold it


class Load(NamedTuple):
    streams: int
    tokens: int  # of each
    rate: float  # tokens a second of each; 0 for as fast as they are taken
    ramp: float  # seconds over which the streams begin

    def __str__(self) -> str:
        pace = f"{self.rate:g} a second each" if self.rate else "as fast as they are taken"
        tokens = f"{self.tokens:,} tokens, {pace}" if self.tokens > 1 else "one token"
        return f"{self.streams:,} streams of {tokens}, begun {f'over {self.ramp:.1f} s' if self.ramp else 'at once'}"


WARM_UP = Load(20, 5, 0, 0.2)  # imports, the access token and the first connections are no stream's cost


class Target(NamedTuple):
    """A server to measure. `baseline` names the one whose figures count as 1."""

    name: str
    start: Callable[[Server], AbstractContextManager[Server]]
    baseline: str = ""
    is_mirroring: bool = False
    loads: Sequence[str] = ()  # those that it is asked to carry; all where none is named


class Plan(NamedTuple):
    """How much is to be measured: all, or a look."""

    rounds: int
    size: float = 1.0  # of each load: 0.1 is a tenth of the streams
    seconds: float = math.inf  # that a stream with a pace lasts, at most
    only: Sequence[str] = ()  # the targets' names; all where none is named

    def fit(self, load: Load) -> Load:
        """The same with fewer and shorter streams, which begin as densely."""
        streams = max(1, round(load.streams * self.size))
        tokens = max(2, int(self.seconds * load.rate)) if load.rate and math.isfinite(self.seconds) else load.tokens
        return load._replace(streams=streams, tokens=min(load.tokens, tokens), ramp=load.ramp * self.size)

    @property
    def is_whole(self) -> bool:
        return self == Plan(self.rounds)

    def pick(self, targets: Iterable[Target]) -> list[Target]:
        return [target for target in targets if not self.only or target.name in self.only]


class Figures(NamedTuple):
    """What one server showed under one load. None for what it does not have; of the gateway itself, what it costs."""

    first_p50: float  # ms
    first_p99: float  # ms
    age_p50: float  # ms
    age_p99: float  # ms
    rate: float  # tokens a second
    cpu: float  # us a token; to begin and end the streams is part of it
    cpu_open: float | None  # us a token while all streams are open: no part of it
    cpu_stream: float  # us a stream, with all its tokens
    memory: float  # KB a stream
    store_cpu: float | None  # us a token that the server behind the store takes
    messages: float | None  # a thousand tokens, to the transcript


Round = dict[str, dict[str, Figures]]  # by target, then by load


class Usage(NamedTuple):
    """CPU seconds used, and the tokens that the client had when they were read."""

    cpu: float
    tokens: int


def play_rounds(targets: Sequence[Target], loads: Mapping[str, Load], rounds: int, links: str = "open") -> list[Round]:
    """Measures each target in each round, in turn, each time from its start."""
    played: list[Round] = []
    for number in range(1, rounds + 1):
        played.append({})
        for target in targets:
            print(f"round {number} of {rounds}: {target.name}", file=sys.stderr, flush=True)
            played[-1][target.name] = measure(target, loads, links)
    return played


def measure(target: Target, loads: Mapping[str, Load], links: str = "open") -> dict[str, Figures]:
    """Starts a gateway and the server, puts the loads on it one after the other, ends them."""
    with servers.gateway(links) as upstream, target.start(upstream) as server:
        run_load(upstream, server, WARM_UP, "warm")
        time.sleep(SETTLE)
        idle = servers.memory_kb(server.tree())
        return {
            name: measure_load(upstream, server, load, idle, target.is_mirroring)
            for name, load in loads.items()
            if not target.loads or name in target.loads
        }


def measure_load(upstream: Server, server: Server, load: Load, idle: int, is_mirroring: bool) -> Figures:
    """`idle` is the memory of the server before its first load."""
    pids, store_pids = server.tree(), server.store.tree() if server.store else set()
    mirrored = servers.transcript_of(upstream)
    cpu, store_cpu = servers.cpu_seconds(pids), servers.cpu_seconds(store_pids)
    memory, marks = [idle], {}

    def look() -> None:
        memory.append(servers.memory_kb(pids))

    def note(mark: str, tokens: int) -> None:
        marks[mark] = Usage(servers.cpu_seconds(pids), tokens)

    seen = run_load(upstream, server, load, "bench", look, note)
    if is_mirroring:
        wait_for_transcript(upstream, mirrored["tokens"] + seen["tokens"])
    time.sleep(SETTLE)  # what the server still does for these streams counts too
    cpu, store_cpu = servers.cpu_seconds(pids) - cpu, servers.cpu_seconds(store_pids) - store_cpu
    sent = servers.transcript_of(upstream)["messages"] - mirrored["messages"]
    micro = 1e6 / seen["tokens"]
    times = [seen[name][quantile] for name in ("first_ms", "age_ms") for quantile in ("p50", "p99")]
    return Figures(
        *times,
        rate=seen["tokens_per_second"],
        cpu=cpu * micro,
        cpu_open=cost_between(marks),
        cpu_stream=1e6 * cpu / load.streams,
        memory=(max(memory) - idle) / load.streams,
        store_cpu=store_cpu * micro if store_pids else None,
        messages=1000 * sent / seen["tokens"] if is_mirroring else None,
    )


def cost_between(marks: Mapping[str, Usage]) -> float | None:
    """Microseconds a token while all streams were open; None where they never were, or not for long enough to tell."""
    if {"open", "closing"} - marks.keys() or marks["closing"].tokens <= marks["open"].tokens:
        return None
    return 1e6 * (marks["closing"].cpu - marks["open"].cpu) / (marks["closing"].tokens - marks["open"].tokens)


def run_load(
    upstream: Server,
    server: Server,
    load: Load,
    name: str,
    look: Callable[[], object] = lambda: None,
    note: Callable[[str, int], object] = lambda mark, tokens: None,
) -> dict[str, Any]:
    """What the client has seen. Ends the program unless every stream came whole.

    Meanwhile it calls `look` from time to time, and `note` at each of the client's marks.
    """
    limit = load.ramp + (load.tokens / load.rate if load.rate else 0) + LATE
    sizes = {"streams": load.streams, "tokens": load.tokens, "rate": load.rate, "ramp": 1000 * load.ramp}
    options = [f"{option}={value}" for option, value in (sizes | {"limit": limit, "name": name}).items()]
    path = CHAT if server is upstream else "/stream-llm"
    seen: dict[str, Any] = {}
    with client(server, path, *options) as process:
        for line in read_lines(process, look):
            seen = json.loads(line)
            if "mark" in seen:
                note(seen["mark"], seen["tokens"])
    if seen.get("complete") != load.streams:
        raise SystemExit(f"{server.url}: {seen.get('complete', 0)} of {load.streams} streams came whole; no figures")
    return seen


@contextlib.contextmanager
def client(server: Server, path: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """wire/client.c, asking a server."""
    command = [instrument.program("client"), f"{urlsplit(server.url).port}", path, *options]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, bufsize=0, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def read_lines(process: subprocess.Popen[bytes], look: Callable[[], object]) -> Iterator[bytes]:
    """The lines of its output as they come; in between it calls `look`."""
    assert process.stdout is not None
    rest = b""
    while True:
        if not select.select([process.stdout], [], [], LOOK_INTERVAL)[0]:
            look()
            continue
        data = os.read(process.stdout.fileno(), 65536)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from lines


def wait_for_transcript(upstream: Server, tokens: int) -> None:
    """Ends the program unless the transcript gets every token: figures of work that was not done are none."""
    deadline = time.monotonic() + MIRROR_PATIENCE
    while (there := servers.transcript_of(upstream)["tokens"]) < tokens:
        if time.monotonic() > deadline:
            raise SystemExit(f"the transcript has {there} of {tokens} tokens; no figures")
        time.sleep(0.05)
