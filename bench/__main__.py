"""`python -m bench`: the figures that the README claims, measured side by side on this machine.

Each round starts every server afresh and has it relay the same paced answers of the sandbox. A figure is the median of
the rounds; a difference or ratio is taken within each round, and then its median.
"""

import argparse
import contextlib
import os
import platform
import signal
import statistics
import sys
from collections.abc import Iterator, Sequence

from . import servers
from .measure import RATE, Figures, Target, measure
from .servers import Server

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
TIMES = {
    "first_p50": "time to first token, p50 (ms)",
    "first_p99": "time to first token, p99 (ms)",
    "age_p50": "age of a token on arrival, p50 (ms)",
    "age_p99": "age of a token on arrival, p99 (ms)",
}
COSTS = {
    "cpu": "CPU per token (µs)",
    "memory": "memory per open stream (KB)",
}
LEGEND = (
    "{streams} streams of {tokens} tokens, {rate} tokens a second each; medians of {rounds} rounds. "
    "In parentheses: what is added to the gateway's own time, and the ratio to the tutorial's relay. "
    "CPU is that of all processes of the server, and holds what it takes to begin and end a stream."
)
Round = dict[str, Figures]


def play(upstream: Server, streams: int, tokens: int, title: str) -> Iterator[tuple[str, Figures]]:
    """One round."""
    for target in TARGETS:
        print(f"{title}: {target.name}", file=sys.stderr, flush=True)
        yield target.name, measure(target, upstream, streams, tokens)


def table(rounds: Sequence[Round]) -> str:
    """Markdown: a row a figure, a column a server."""
    lines = [["", *(target.name for target in TARGETS)], ["---", *["--:"] * len(TARGETS)]]
    lines += [[title, *(time_cell(rounds, target, name) for target in TARGETS)] for name, title in TIMES.items()]
    lines += [[title, *(cost_cell(rounds, target, name) for target in TARGETS)] for name, title in COSTS.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def time_cell(rounds: Sequence[Round], target: Target, name: str) -> str:
    mine, direct = column(rounds, target.name, name), column(rounds, GATEWAY, name)
    text = f"{statistics.median(mine):.2f}"
    if target.name == GATEWAY:
        return text
    return f"{text} ({statistics.median(a - b for a, b in zip(mine, direct, strict=True)):+.2f})"


def cost_cell(rounds: Sequence[Round], target: Target, name: str) -> str:
    if target.name == GATEWAY:
        return ""
    mine = column(rounds, target.name, name)
    text = f"{statistics.median(mine):.0f}"
    if not target.baseline:
        return text
    theirs = column(rounds, target.baseline, name)
    return f"{text} ({statistics.median(a / b for a, b in zip(mine, theirs, strict=True)):.2f} ×)"


def column(rounds: Sequence[Round], target: str, name: str) -> list[float]:
    return [getattr(found[target], name) for found in rounds]


def machine() -> str:
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, load before {load:.1f}"


def stop_by_signal(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures what the README claims.")
    parser.add_argument("--streams", type=int, default=50, help="at once (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=40, help="of each stream (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop_by_signal)
    print(f"{machine()}\n{LEGEND.format(rate=RATE, **vars(options))}\n", flush=True)
    with servers.sandbox(1000 / RATE) as upstream:
        rounds = [
            dict(play(upstream, options.streams, options.tokens, f"round {number} of {options.rounds}"))
            for number in range(1, options.rounds + 1)
        ]
    print(table(rounds))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("stopped") from None
