"""`python -m bench.transcript`: what the transcript costs, and what its link's troubles do to the asker: nothing.

Each round starts every relay afresh. Paced answers are those of a brisk model; flooded ones come as fast as the sandbox
can send them, so that text waits behind the link.
"""

import statistics
from collections.abc import Mapping, Sequence

from . import program, servers
from .measure import RATE, Round, Target, play_rounds
from .program import column, cost_cell, markdown

INTERVALS = (0, 100, 250)  # ms
FAULTS = {"refused": "refused_503", "mute": "mute"}  # the sandbox's, met by every link
FLOOD = {"streams": 10, "tokens": 5000}  # at once, and of each

OFF = Target("off", lambda upstream: servers.relay(upstream, "off"))
LINKS = [
    Target(
        f"{interval} ms",
        lambda upstream, interval=interval: servers.relay(upstream, "websocket", interval_ms=interval),
        is_mirroring=True,
        baseline=OFF.name,
    )
    for interval in INTERVALS
]
HEALTHY = LINKS[0]
TROUBLED = [
    Target(name, lambda upstream, fault=fault: servers.relay_with_fault(upstream, fault), baseline=OFF.name)
    for name, fault in FAULTS.items()
]
COSTS = {"messages": ("messages per 1000 tokens", 0), "cpu": ("CPU per token (µs)", 1)}
TIMES = {
    "first_p50": "time to first token, p50 (ms)",
    "first_p99": "time to first token, p99 (ms)",
    "age_p50": "age of a token on arrival, p50 (ms)",
    "age_p99": "age of a token on arrival, p99 (ms)",
}
PACED_LEGEND = (
    "The relay without transcript, and with a link by TRANSCRIPT_INTERVAL_MS: {streams} streams of {tokens} tokens, "
    "each in a conversation of its own, {rate} tokens a second; medians of {rounds} rounds. In parentheses: the ratio "
    "to off. CPU is the relay's, and holds what it takes to begin and end a stream and its link."
)
FLOODED_LEGEND = (
    "The same in a flood: {streams} streams of {tokens} tokens as fast as the sandbox sends them; {rounds} rounds. "
    "With an interval the transcript is whole later, and what a worker does anyway in that time counts."
)
TROUBLED_LEGEND = (
    "What the asker notices of the link, in the paced rounds above: without one, while it is healthy (0 ms), while "
    "every handshake is refused with 503, and while it takes in nothing. In parentheses: the difference to healthy; of "
    "CPU, the ratio to off."
)


def costs_table(targets: Sequence[Target], rounds: Sequence[Round]) -> str:
    rows = [
        [title, *(cost_cell(rounds, target, name, digits) for target in targets)]
        for name, (title, digits) in COSTS.items()
    ]
    return markdown([target.name for target in targets], rows)


def times_table(targets: Mapping[str, Target], rounds: Sequence[Round]) -> str:
    """`targets` by the title of their column."""
    rows = [[title, *(time_cell(rounds, target, name) for target in targets.values())] for name, title in TIMES.items()]
    rows.append([COSTS["cpu"][0], *(cost_cell(rounds, target, "cpu") for target in targets.values())])
    return markdown(list(targets), rows)


def time_cell(rounds: Sequence[Round], target: Target, name: str) -> str:
    mine, healthy = column(rounds, target.name, name), column(rounds, HEALTHY.name, name)
    text = f"{statistics.median(mine):.2f}"
    if target is HEALTHY:
        return text
    return f"{text} ({statistics.median(a - b for a, b in zip(mine, healthy, strict=True)):+.2f})"


def main() -> None:
    options = program.read_options("python -m bench.transcript", "Measures what the transcript costs.")
    print(f"{program.machine()}\n{PACED_LEGEND.format(rate=RATE, **vars(options))}\n", flush=True)
    with servers.sandbox(1000 / RATE) as upstream:
        rounds = play_rounds([OFF, *LINKS, *TROUBLED], upstream, **vars(options))
    print(costs_table([OFF, *LINKS], rounds), flush=True)
    columns = {"off": OFF, "healthy": HEALTHY} | {target.name: target for target in TROUBLED}
    print(f"\n{TROUBLED_LEGEND}\n\n{times_table(columns, rounds)}", flush=True)
    flood = vars(options) | FLOOD
    print(f"\n{FLOODED_LEGEND.format(**flood)}\n", flush=True)
    with servers.sandbox(0) as upstream:
        print(costs_table([OFF, *LINKS], play_rounds([OFF, *LINKS], upstream, **flood)))


if __name__ == "__main__":
    program.run(main)
