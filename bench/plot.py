"""Plots as SVG: lines over a number, bars by name. No I/O.

The text takes the colour of the page's, where a browser shows the file by itself; the series' colours can be told apart
in a bright and in a dark page, and by those who see no red or green.
"""

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito
WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 40, 50  # room beside the axes
BAR, BAR_GAP, BAR_NAMES = 20, 8, 150  # of plots with bars: height, room between two, room for the names
STYLE = (
    "<style>text{font:12px sans-serif;fill:#222}.grid{stroke:#8884;fill:none}.back{fill:#fff}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.back{fill:#111}}</style>"
)

Series = Mapping[str, Sequence[tuple[float, float]]]


def lines(title: str, across: str, series: Series) -> str:
    """Points joined by lines, from 0 on both axes; `title` says what goes up, `across` what goes across."""
    points = [point for found in series.values() for point in found]
    most_x, most_y = (ceiling(max((point[axis] for point in points), default=0)) for axis in (0, 1))

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + x / most_x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y / most_y * (HEIGHT - TOP - BOTTOM)

    parts = []
    for step in range(6):
        x, y = most_x * step / 5, most_y * step / 5
        (left, high), (right, _), (at, low) = place(0, y), place(most_x, y), place(x, 0)
        parts.append(f'<path class="grid" d="M{left:.1f} {high:.1f}H{right:.1f}"/>')
        parts.append(text(left - 8, high + 4, number(y), "end"))
        parts.append(text(at, low + 18, number(x), "middle"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, across, "middle"))
    for order, (name, found) in enumerate(series.items()):
        colour = COLOURS[order % len(COLOURS)]
        places = [place(*point) for point in found]
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        parts += key(WIDTH - RIGHT + 15, TOP + 20 * order, name, colour)
    return drawing(title, HEIGHT, parts)


def bars(title: str, values: Mapping[str, float]) -> str:
    """A bar each, with its value."""
    most = max(values.values(), default=0) or 1
    parts = []
    for order, (name, value) in enumerate(values.items()):
        y, length = TOP + order * (BAR + BAR_GAP), value / most * (WIDTH - BAR_NAMES - 70)
        colour = COLOURS[0] if name.startswith("relay") else "#999999"
        parts.append(text(BAR_NAMES - 8, y + 14, name, "end"))
        parts.append(f'<rect x="{BAR_NAMES}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>')
        parts.append(text(BAR_NAMES + length + 6, y + 14, number(value)))
    return drawing(title, TOP + len(values) * (BAR + BAR_GAP) + 10, parts)


def drawing(title: str, height: int, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
    back = f'<rect class="back" width="{WIDTH}" height="{height}"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", STYLE, back, text(16, 22, title), *parts, "</svg>", ""])


def key(x: float, y: float, name: str, colour: str) -> list[str]:
    return [f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colour}"/>', text(x + 18, y + 10, name)]


def text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def ceiling(value: float) -> float:
    """The next number that is round: 1, 2, 2.5 or 5 and zeros."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= value * (1 - 1e-9))


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:,.1f}"
