"""Whether a token costs more where more streams are open, and what a second worker gives."""

from collections.abc import Callable, Sequence

from . import servers
from .document import Section, image
from .measure import Figures, Load, Plan, Round, Target, play_rounds
from .plot import lines
from .tables import markdown, median

STREAMS = (100, 500, 1500, 5000)
TOKENS_A_SECOND = 2000  # of all streams together, however many: what a token costs is then a matter of their number
ARRIVALS = 250  # streams a second that begin
OPEN = 4.0  # seconds for which all streams are open
FLOOD = Load(50, 2000, 0, 0)
TARGETS = [
    Target("1 worker", lambda upstream: servers.relay(upstream, "off")),
    Target("2 workers", lambda upstream: servers.relay(upstream, "off", workers=2)),
]
PLOTS: dict[str, tuple[str, Callable[[Figures], float | None]]] = {
    "performance-scale-cpu.svg": ("CPU per token while all streams are open (µs)", lambda found: found.cpu_open),
    "performance-scale-memory.svg": ("memory per open stream (KB)", lambda found: found.memory),
    "performance-scale-age.svg": ("age of a token, p99 (ms)", lambda found: found.age_p99),
}


def load_of(streams: int, seconds: float) -> Load:
    """All streams are open for so long."""
    ramp, rate = streams / ARRIVALS, TOKENS_A_SECOND / streams
    return Load(streams, max(2, round((ramp + seconds) * rate)), rate, ramp)


def measure(plan: Plan) -> Section:
    numbers = [max(1, round(streams * plan.size)) for streams in STREAMS]
    loads = {f"{streams}": load_of(streams, min(OPEN, plan.seconds)) for streams in numbers}
    targets, flood = plan.pick(TARGETS), plan.fit(FLOOD)
    played = play_rounds(targets, loads | {"flood": flood}, plan.rounds)
    texts = [
        f"**Does a token cost more where more streams are open?** {TOKENS_A_SECOND:,} tokens a second in all, whatever "
        f"the number of streams; {ARRIVALS} begin in a second.",
        *(table(target.name, loads, played) for target in targets),
        *(image(file, title) for file, (title, _) in PLOTS.items()),
        f"**What does a second worker give?** ({flood})",
        markdown(
            ["tokens a second"],
            [[target.name, f"{median(played, target.name, 'flood', 'rate'):,.0f}"] for target in targets],
        ),
    ]
    return Section("\n\n".join(texts), {file: plot(played, loads, *what) for file, what in PLOTS.items()})


def table(target: str, loads: dict[str, Load], rounds: Sequence[Round]) -> str:
    figures = {
        "CPU per token while all are open (µs)": ("cpu_open", 1),
        "CPU per token, beginnings and ends with it (µs)": ("cpu", 1),
        "memory per open stream (KB)": ("memory", 0),
        "first token, p50 (ms)": ("first_p50", 1),
        "first token, p99 (ms)": ("first_p99", 1),
        "age of a token, p50 (ms)": ("age_p50", 2),
        "age of a token, p99 (ms)": ("age_p99", 2),
    }
    rows = [["tokens a second of each", *(f"{load.rate:.3g}" for load in loads.values())]]
    for title, (figure, digits) in figures.items():
        found = [median(rounds, target, name, figure) for name in loads]
        rows.append([title, *("" if value is None else f"{value:,.{digits}f}" for value in found)])
    return f"{target}, by the number of streams:\n\n{markdown([f'{load.streams:,}' for load in loads.values()], rows)}"


def plot(rounds: Sequence[Round], loads: dict[str, Load], title: str, figure: Callable[[Figures], float | None]) -> str:
    """Of several rounds, the last."""
    series = {}
    for target, found in rounds[-1].items():
        values = [(load.streams, figure(found[name])) for name, load in loads.items()]
        series[target] = [(float(streams), value) for streams, value in values if value is not None]
    return lines(title, "streams open at once", series)
