"""docs/performance.md: what the programs have measured, between marks; the words around them are people's."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from .servers import ROOT

DOCUMENT = ROOT / "docs" / "performance.md"


class Section(NamedTuple):
    """What one program has found: Markdown, and plots by the names of their files."""

    text: str
    plots: Mapping[str, str] = {}


def write(document: Path, name: str, section: Section) -> None:
    """Puts it in the place of what stood there, and its plots beside the document."""
    document.write_text(replaced(document.read_text(), name, section.text))
    for file, svg in section.plots.items():
        document.with_name(file).write_text(svg)


def replaced(text: str, name: str, section: str) -> str:
    """`text` with another section between the marks of that name. Raises ValueError where there are none."""
    begin, end = f"<!-- measured: {name} -->", f"<!-- end: {name} -->"
    found, count = re.subn(
        rf"{re.escape(begin)}.*{re.escape(end)}", lambda _: f"{begin}\n{section}\n{end}", text, flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"the document has no place for {name}: a line {begin}, and below it {end}")
    return found


def image(file: str, title: str) -> str:
    return f"![{title}]({file})"
