"""`python -m bench`: the figures that the README claims, measured side by side on this machine.

Each round starts every server afresh and has it relay the same paced answers of the sandbox. A figure is the median of
the rounds; a difference or ratio is taken within each round, and then its median.
"""

import contextlib
import statistics
from collections.abc import Sequence

from . import program, servers
from .measure import RATE, Round, Target, play_rounds
from .program import column, cost_cell, markdown

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


def table(rounds: Sequence[Round]) -> str:
    """Markdown: a row a figure, a column a server."""
    rows = [[title, *(time_cell(rounds, target, name) for target in TARGETS)] for name, title in TIMES.items()]
    rows += [[title, *(cost_cell(rounds, target, name) for target in TARGETS)] for name, title in COSTS.items()]
    return markdown([target.name for target in TARGETS], rows)


def time_cell(rounds: Sequence[Round], target: Target, name: str) -> str:
    mine, direct = column(rounds, target.name, name), column(rounds, GATEWAY, name)
    text = f"{statistics.median(mine):.2f}"
    if target.name == GATEWAY:
        return text
    return f"{text} ({statistics.median(a - b for a, b in zip(mine, direct, strict=True)):+.2f})"


def main() -> None:
    options = program.read_options("python -m bench", "Measures what the README claims.")
    print(f"{program.machine()}\n{LEGEND.format(rate=RATE, **vars(options))}\n", flush=True)
    with servers.sandbox(1000 / RATE) as upstream:
        print(table(play_rounds(TARGETS, upstream, **vars(options))))


if __name__ == "__main__":
    program.run(main)
