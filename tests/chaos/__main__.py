"""Breaks whatever can break, at random, and looks whether the promises hold: `make chaos CHAOS_ARGS="--seconds 3600"`.

A long run is many rounds, with the seeds that follow each other, each with processes of its own.
"""

import argparse
import math
import random
import shlex
import signal

from .plan import KINDS
from .round import run

ROUND = 300.0  # seconds of faults in one round at most


def main():
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="in which faults come; then all must come to rest")
    parser.add_argument("--seed", type=int, default=None, help="of the first round; else a random one")
    parser.add_argument("--store", choices=["sqlite", "redis"], default=None, help="else as the seed has it")
    parser.add_argument("--without", nargs="*", choices=KINDS, default=(), help="kinds of faults that do not come")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the processes that it has started first
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    rounds = math.ceil(options.seconds / ROUND)
    seconds = options.seconds / rounds
    is_broken = False
    for number in range(seed, seed + rounds):
        report = run(number, seconds, options.store, options.without)
        print(told(report, seconds, options.without), flush=True)
        is_broken |= bool(report.violations)
    raise SystemExit(is_broken)


def told(report, seconds, without=()):
    """A round in words, with the command that repeats it."""
    repeat = f"--seconds {seconds:g} --seed {report.seed} --store {report.store}"
    if without:
        repeat += f" --without {shlex.join(without)}"
    lines = [
        f"seed {report.seed} on {report.store}: {report.turns.total()} turns with {report.readers} readers: "
        + listed(report.turns),
        f"  {report.faults.total()} faults: {listed(report.faults)}",
        *(f"  VIOLATION {fault}" for fault in report.violations),
        f"  {len(report.violations)} violations; again: python -m tests.chaos {repeat}",
    ]
    return "\n".join(lines)


def listed(counts):
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


if __name__ == "__main__":
    main()
