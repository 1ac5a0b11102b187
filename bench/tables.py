"""Figures in Markdown: a row a server, a column a figure. No I/O."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from .measure import Round, Target


class Column(NamedTuple):
    title: str
    figure: str  # of Figures
    digits: int = 0
    has_ratio: bool = False  # in parentheses: to the target's baseline


FIRST = [Column("first token, p50 (ms)", "first_p50", 1), Column("p99 (ms)", "first_p99", 1)]
AGE = [Column("age of a token, p50 (ms)", "age_p50", 2), Column("p99 (ms)", "age_p99", 2)]
CPU = Column("CPU per token (µs)", "cpu", 1, has_ratio=True)
MEMORY = Column("memory per stream (KB)", "memory", 0, has_ratio=True)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; each row begins with its title."""
    lines = [["", *columns], ["---", *["--:"] * len(columns)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figures_table(targets: Sequence[Target], rounds: Sequence[Round], load: str, columns: Sequence[Column]) -> str:
    """Those of the targets that have carried the load."""
    carried = [target for target in targets if load in rounds[0][target.name]]
    rows = [[target.name, *(cell(rounds, target, load, column) for column in columns)] for target in carried]
    return markdown([column.title for column in columns], rows)


def cell(rounds: Sequence[Round], target: Target, load: str, column: Column) -> str:
    """The median, and that of the ratios to the baseline in the same round; empty for what the target does not have."""
    mine = values(rounds, target.name, load, column.figure)
    if None in mine:
        return ""
    text = f"{statistics.median(mine):,.{column.digits}f}"
    if not column.has_ratio or target.baseline not in rounds[0]:
        return text
    theirs = values(rounds, target.baseline, load, column.figure)
    if None in theirs or 0 in theirs:
        return text
    return f"{text} ({statistics.median(a / b for a, b in zip(mine, theirs, strict=True)):.2f} ×)"


def values(rounds: Sequence[Round], target: str, load: str, figure: str) -> list[float]:
    return [getattr(found[target][load], figure) for found in rounds]


def median(rounds: Sequence[Round], target: str, load: str, figure: str) -> float | None:
    found = values(rounds, target, load, figure)
    return None if None in found else statistics.median(found)
