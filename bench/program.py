"""What the programs of the benchmark have in common: options, a clean end, tables in Markdown."""

import argparse
import os
import platform
import signal
import statistics
from collections.abc import Callable, Sequence

from .measure import Round, Target


def read_options(name: str, description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=name, description=description)
    parser.add_argument("--streams", type=int, default=50, help="at once (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=40, help="of each stream (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    return parser.parse_args()


def run(main: Callable[[], None]) -> None:
    """Runs `main`; Ctrl-C and SIGTERM end it after its servers, without a traceback."""
    signal.signal(signal.SIGTERM, stop_by_signal)
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("stopped") from None


def stop_by_signal(*_: object) -> None:
    raise KeyboardInterrupt


def machine() -> str:
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, load before {load:.1f}"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; each row begins with its title."""
    lines = [["", *columns], ["---", *["--:"] * len(columns)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cost_cell(rounds: Sequence[Round], target: Target, name: str, digits: int = 0) -> str:
    """The median, and that of the ratios to the baseline; empty for what the target does not have."""
    mine = column(rounds, target.name, name)
    if None in mine:
        return ""
    text = f"{statistics.median(mine):.{digits}f}"
    theirs = column(rounds, target.baseline, name) if target.baseline else [None]
    if None in theirs:
        return text
    return f"{text} ({statistics.median(a / b for a, b in zip(mine, theirs, strict=True)):.2f} ×)"


def column(rounds: Sequence[Round], target: str, name: str) -> list[float]:
    return [getattr(found[target], name) for found in rounds]
