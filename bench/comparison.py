"""The relay beside others' ways to relay, in four situations."""

import contextlib
from collections.abc import Sequence

from . import servers
from .document import Section, image
from .measure import Load, Plan, Round, Target, play_rounds
from .plot import bars
from .tables import AGE, CPU, FIRST, MEMORY, Column, figures_table, median

# The widest first: memory is counted from before the first load.
LOADS = {
    "wide": Load(1000, 9, 2, 3.5),
    "paced": Load(200, 60, 20, 1.0),
    "setup": Load(600, 1, 0, 2),
    "flood": Load(50, 1000, 0, 0),
}
TARGETS = [
    Target("gateway itself", contextlib.nullcontext, loads=["paced"]),
    Target("nginx", servers.nginx, baseline="aiohttp"),
    Target("aiohttp", lambda upstream: servers.aiohttp(upstream, "off"), baseline="aiohttp"),
    Target("relay", lambda upstream: servers.relay(upstream, "off"), baseline="aiohttp"),
    Target("tutorial", lambda upstream: servers.flask(upstream, "off"), baseline="aiohttp"),
    Target(
        "Flask alone",
        lambda upstream: servers.flask(upstream, "off", "flask_constant"),
        baseline="aiohttp",
        loads=["setup"],
    ),
    Target("fastapi", servers.fastapi, baseline="aiohttp"),
    Target(
        "aiohttp, transcript",
        lambda upstream: servers.aiohttp(upstream, "websocket"),
        baseline="aiohttp, transcript",
        is_mirroring=True,
        loads=["paced"],
    ),
    Target(
        "relay, transcript",
        lambda upstream: servers.relay(upstream, "websocket"),
        baseline="aiohttp, transcript",
        is_mirroring=True,
        loads=["paced"],
    ),
]
QUESTIONS = {
    "paced": ("What does a token cost, and how late is it?", [CPU, *FIRST, *AGE]),
    "setup": (
        "What does it cost to begin a stream?",
        [Column("CPU per stream (µs)", "cpu_stream", 0, has_ratio=True), *FIRST],
    ),
    "flood": (
        "How many tokens a second, as fast as they come?",
        [Column("tokens a second", "rate", 0, has_ratio=True), CPU],
    ),
    "wide": ("What does an open stream take?", [MEMORY, CPU, *FIRST, *AGE]),
}
PLOTS = {"performance-cpu.svg": ("paced", "cpu", "CPU per token (µs)")}


def measure(plan: Plan) -> Section:
    loads = {name: plan.fit(load) for name, load in LOADS.items()}
    targets = plan.pick(TARGETS)
    played = play_rounds(targets, loads, plan.rounds)
    texts = []
    for name, (question, columns) in QUESTIONS.items():
        carried = [target for target in targets if name in played[0][target.name]]
        texts.append(f"**{question}** ({name}: {loads[name]})\n\n{figures_table(carried, played, name, columns)}")
    plots = {file: plot(targets, played, *what) for file, what in PLOTS.items()}
    pictures = [image(file, what[2]) for file, what in PLOTS.items()]
    return Section("\n\n".join([*texts, *pictures]), plots)


def plot(targets: Sequence[Target], rounds: Sequence[Round], load: str, figure: str, title: str) -> str:
    found = {
        target.name: median(rounds, target.name, load, figure)
        for target in targets
        if load in rounds[0][target.name] and target.start is not contextlib.nullcontext
    }
    return bars(title, {name: value for name, value in found.items() if value is not None})
