"""`python -m bench [PART ...]`: measures on this machine what docs/performance.md says, and writes it there.

Each round starts every server afresh. A figure is the median of the rounds; a ratio is taken within each round, and
then its median. CPU is that of all processes of the server.
"""

import argparse
import math
import sys
import time
from pathlib import Path

from . import comparison, document, program, scale, stores, transcript
from .measure import Plan

PARTS = {"comparison": comparison, "scale": scale, "stores": stores, "transcript": transcript}
ROUNDS = {"comparison": 3, "scale": 1, "stores": 3, "transcript": 3}
QUICK = Plan(rounds=1, size=0.25, seconds=2.0)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all where none is named")
    parser.add_argument("--rounds", type=int, help=f"(default: {ROUNDS})")
    parser.add_argument("--size", type=float, default=1.0, help="of each load: 0.1 is a tenth of the streams")
    parser.add_argument("--seconds", type=float, default=math.inf, help="that a paced stream lasts, at most")
    parser.add_argument("--only", nargs="+", default=[], metavar="SERVER", help="these rows of the tables alone")
    parser.add_argument("--quick", action="store_true", help="one round of small loads")
    parser.add_argument(
        "--document", type=Path, help="where to write, even what is not whole (default: docs/performance.md)"
    )
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"no part: {', '.join(sorted(unknown))}")
    return options


def plan_of(options: argparse.Namespace, part: str) -> Plan:
    if options.quick:
        return QUICK._replace(only=tuple(options.only))
    return Plan(options.rounds or ROUNDS[part], options.size, options.seconds, tuple(options.only))


def main() -> None:
    options = read_options()
    for part in options.parts or PARTS:
        began, plan = time.monotonic(), plan_of(options, part)
        said = program.provenance("bench", [part, f"--rounds={plan.rounds}"])
        found = PARTS[part].measure(plan)
        section = found._replace(text=f"{said}; {'medians' if plan.rounds > 1 else 'one round'}.\n\n{found.text}")
        print(f"{section.text}\n", flush=True)
        print(f"{part}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        if options.document or plan.is_whole:
            document.write(options.document or document.DOCUMENT, part, section)


if __name__ == "__main__":
    program.run(main)
