"""Findings in, text or JSON out."""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from io import TextIOWrapper

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .finding import Finding, State

MARKS = {State.OK: "✓", State.WARNING: "!", State.FAILED: "✗", State.SKIPPED: "-"}
STYLES = {State.OK: "green", State.WARNING: "yellow", State.FAILED: "bold red", State.SKIPPED: "dim"}
NAME_WIDTH = 26  # columns for a check's name on a terminal, a third of it at most
FAILURE = 1  # exit status


class Report:
    """Prints each finding as it comes: in columns on a terminal, a line each elsewhere, one JSON list in the end."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # not every terminal has the marks

    def looking(self, name: str) -> AbstractContextManager[object]:
        """Shows on a terminal that a check is under way."""
        if self._as_json or not self._console.is_terminal:
            return nullcontext()
        return self._console.status(Text(name))

    def add(self, finding: Finding) -> None:
        if self._as_json:
            return
        if self._console.is_terminal:
            self._console.print(self._row(finding))
        else:
            print("\n".join(plain(finding)), flush=True)

    def end(self, findings: Sequence[Finding]) -> None:
        if self._as_json:
            print(orjson.dumps([one._asdict() for one in findings], option=orjson.OPT_INDENT_2).decode())
        else:
            print(f"\n{summary(findings)}")

    def _row(self, finding: Finding) -> Table:
        row = Table.grid(padding=(0, 1))
        row.add_column(width=1)
        row.add_column(width=min(NAME_WIDTH, self._console.width // 3), overflow="fold")
        row.add_column(ratio=1, overflow="fold")
        row.expand = True
        style = STYLES[finding.state]
        text = Text(finding.found, "dim" if finding.state is State.SKIPPED else "")
        if finding.fix:
            text.append(f"\n→ {finding.fix}", "cyan")
        row.add_row(Text(MARKS[finding.state], style), Text(finding.check, "bold"), text)
        return row


def plain(finding: Finding) -> list[str]:
    lines = [f"{MARKS[finding.state]} {finding.check}: {finding.found}"]
    return [*lines, f"  → {finding.fix}"] if finding.fix else lines


def summary(findings: Sequence[Finding]) -> str:
    counts = {state: sum(one.state is state for one in findings) for state in State}
    words = [f"{counts[State.OK]} ok"]
    words += [f"{number} {state}" for state, number in counts.items() if number and state is not State.OK]
    return ", ".join(words)


def exit_status(findings: Sequence[Finding]) -> int:
    return FAILURE if any(one.state is State.FAILED for one in findings) else 0
