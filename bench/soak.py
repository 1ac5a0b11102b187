"""`python -m bench.soak --minutes 60`: one worker under a mixed load for as long as is asked; does it stay as it is?

The load is that of wire/client.c: short, ordinary and long answers, and readers who leave, all with a transcript. In
the warm-up, the first sixth, the number of streams is fitted until the worker takes about 70 % of a core; from then on
it is held, so that memory and descriptors can be compared. The exit status is 1 where they, or the tokens' ages, have
grown.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import document, program, servers
from .document import Section
from .measure import client
from .servers import Server
from .tables import markdown

BUSY = 0.7  # of a core, what the worker is to take
LATE = 200.0  # ms; a p99 beyond it says that the worker does not get the core that it could take
FIRST_STREAMS = 40
FIT_INTERVAL = 5.0  # seconds between two fittings; a stream lasts 3 to 20
WARM_UP = 1 / 6  # of the time
MOST_LINES = 60  # so many at most, but none oftener than each second
SIXTH = 6
FLAT = 1.02  # the most that memory may be in the end, times what it was
FLAT_DESCRIPTORS = 1.05  # the same of descriptors, which follow the mix: a reader who has left still has a conversation
SLOWER = 1.2  # the most that the p99 may be in the end, times what it was
COOL_DOWN = 120.0  # seconds; a link closes 60 s after its last text, a gateway's connection 30 s after its last answer
SPARE = 10  # descriptors that may be more at the end: kept connections


class Sample(NamedTuple):
    """What was seen in one interval."""

    minute: float  # since the start, at its end
    streams: int
    cpu: float  # of a core
    memory: float  # MB, at its end
    descriptors: int  # at its end
    tokens: int
    broken: int  # streams
    first_p99: float  # ms
    age_p99: float  # ms

    def __str__(self) -> str:
        return (
            f"minute {self.minute:6.2f}: {self.streams} streams, CPU {self.cpu:.0%}, {self.memory:.1f} MB, "
            f"{self.descriptors} descriptors, {self.tokens} tokens, {self.broken} broken, "
            f"first token p99 {self.first_p99:.1f} ms, age of a token p99 {self.age_p99:.2f} ms"
        )


class Finding(NamedTuple):
    what: str
    first: float
    last: float
    most: float  # that `last` may be

    @property
    def is_good(self) -> bool:
        return self.last <= self.most


def judge(samples: Sequence[Sample]) -> list[Finding]:
    """Compares the medians of the first and of the last sixth of what was seen after the warm-up."""
    number = max(1, len(samples) // SIXTH)
    first, last = samples[:number], samples[-number:]

    def finding(what: str, value: Callable[[Sample], float], growth: float) -> Finding:
        before = statistics.median(map(value, first))
        return Finding(what, before, statistics.median(map(value, last)), before * growth)

    return [
        finding("memory (MB)", lambda sample: sample.memory, FLAT),
        finding("descriptors", lambda sample: sample.descriptors, FLAT_DESCRIPTORS),
        finding("age of a token, p99 (ms)", lambda sample: sample.age_p99, SLOWER),
        Finding("broken streams", 0, sum(sample.broken for sample in samples), 0),
    ]


def fitted(streams: int, sample: Sample) -> int:
    """How many streams would take BUSY of a core, in careful steps; fewer where tokens are late."""
    if sample.age_p99 > LATE or not sample.tokens:
        return max(1, round(streams * 0.7))
    return max(1, round(streams * min(1.4, max(0.7, BUSY / max(sample.cpu, 0.01)))))


class Load:
    """The client, and the worker that it asks."""

    def __init__(self, server: Server, process: subprocess.Popen[bytes]) -> None:
        self._pids = server.workers()
        self._process = process
        self._began = self._since = time.monotonic()
        self._cpu = servers.cpu_seconds(self._pids)
        self.order(0)

    def order(self, streams: int) -> dict[str, Any]:
        """Wants so many from now on; returns what was seen since the last order."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(b"%d\n" % streams)
        seen: dict[str, Any] = json.loads(self._process.stdout.readline())
        return seen

    def sample(self, seconds: float, streams: int) -> Sample:
        """Holds so many for so long."""
        time.sleep(seconds)
        seen, now, cpu = self.order(streams), time.monotonic(), servers.cpu_seconds(self._pids)
        share, self._since, self._cpu = (cpu - self._cpu) / (now - self._since), now, cpu
        first, age = (seen[name]["p99"] if seen[name] else 0.0 for name in ("first_ms", "age_ms"))
        memory = servers.memory_kb(self._pids) / 1024
        minute = (now - self._began) / 60
        return Sample(minute, streams, share, memory, self.descriptors(), seen["tokens"], seen["broken"], first, age)

    def descriptors(self) -> int:
        return servers.descriptors(self._pids)


def fit(load: Load, seconds: float) -> int:
    """Finds in so many seconds how many streams it takes."""
    steps = max(1, round(seconds / FIT_INTERVAL))
    streams = FIRST_STREAMS
    load.order(streams)
    for _ in range(steps):
        sample = load.sample(seconds / steps, streams)
        say(f"warm-up, {sample}")
        streams = fitted(streams, sample)
    load.order(streams)
    return streams


def hold(load: Load, streams: int, seconds: float) -> list[Sample]:
    number = max(1, min(MOST_LINES, round(seconds)))
    samples = []
    for _ in range(number):
        samples.append(load.sample(seconds / number, streams))
        say(str(samples[-1]))
    return samples


def cool_down(load: Load, before: int) -> Finding:
    """Whether its descriptors come back to about what they were; a stream at a time has it tidy up."""
    deadline = time.monotonic() + COOL_DOWN
    while load.descriptors() > before + SPARE and time.monotonic() < deadline:
        load.sample(FIT_INTERVAL, 1)
    return Finding("descriptors after the load", before, load.descriptors(), before + SPARE)


def table(findings: Sequence[Finding]) -> str:
    rows = [
        [one.what, f"{one.first:.1f}", f"{one.last:.1f}", f"{one.most:.1f}", "yes" if one.is_good else "no"]
        for one in findings
    ]
    return markdown(["first", "last", "at most", "good"], rows)


def say(text: str) -> None:
    print(text, flush=True)


def soak(minutes: float, with_cool_down: bool) -> list[Finding]:
    settings = {"RETAIN_SECONDS": "60"}  # the store is then as full as it gets within the warm-up
    with (
        servers.gateway() as upstream,
        servers.relay(upstream, "websocket", **settings) as server,
        client(server, "/stream-llm", "mix", "name=soak") as process,
    ):
        servers.wait_for_worker(server)
        load = Load(server, process)
        before = load.descriptors()
        streams = fit(load, minutes * 60 * WARM_UP)
        findings = judge(hold(load, streams, minutes * 60 * (1 - WARM_UP)))
        return [*findings, cool_down(load, before)] if with_cool_down else findings


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="(default: %(default)s)")
    parser.add_argument("--no-cool-down", action="store_true", help="do not wait until its links have closed")
    parser.add_argument("--document", type=Path, help="writes the verdict there, too")
    options = parser.parse_args()
    said = program.provenance("bench.soak", [f"--minutes={options.minutes:g}"])
    say(said)
    findings = soak(options.minutes, not options.no_cool_down)
    say(f"\n{table(findings)}")
    if options.document:
        document.write(options.document, "soak", Section(f"{said}\n\n{table(findings)}"))
    sys.exit(not all(finding.is_good for finding in findings))


if __name__ == "__main__":
    program.run(main)
