"""`python -m bench.scaling`: how many machines so many streams need; writes the tables of docs/scaling.md.

What one of each costs stands in one table, `unit_costs.json`: the costs of Redis and nginx are measured here, those of
the relay's workers are other programs' figures, with the command that gives them. `layout` does the arithmetic,
`simulation` tries it on streams that come by chance, and a real Redis is driven at the load of one cell's part.
"""

import argparse
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import nginx_cost, program, redis_cost
from .layout import (
    LOSS_SHARE,
    MEMORY_SHARE,
    NETWORK_SHARE,
    NGINX_SHARE,
    PORT_SHARE,
    PORTS,
    REDIS_MEMORY_SHARE,
    REDIS_SHARE,
    TENDS,
    WORKER_SHARE,
    CannotCarry,
    Layout,
    Load,
    Machine,
    UnitCosts,
    layout,
    sample,
    store_of,
)
from .redis_cost import BATCH, CURSORS, Driven
from .servers import ROOT
from .simulation import Peaks, Simulation, Waits, redis_waits
from .tables import markdown

TABLE = ROOT / "bench/unit_costs.json"
DOCUMENT = ROOT / "docs/scaling.md"
COMMAND = "python -m bench.scaling"
GOAL = Load(1_000_000)
MACHINE = Machine()
PART = 0.01  # of the goal, that the simulation runs
SIMULATED = 450.0  # seconds
RETAIN_SIMULATED = 120.0  # seconds for which answers are kept there: so that what is kept comes and goes
WAITING = 20.0  # seconds of one Redis
SEED = 1
DRIVEN = (  # streams, workers, and the parts that are followed and mirrored elsewhere
    (1000, 4, 0.0, 0.0),
    (1000, 8, 0.02, 0.1),
    (1000, 4, 0.05, 0.2),
)
ROUNDS = 3  # of measuring Redis; each cost is the median
DRIVE_SECONDS = 5.0
SCENARIOS = {  # the parts that are followed and mirrored elsewhere
    "nobody elsewhere": (0.0, 0.0),
    "2 % and 10 %": (0.02, 0.1),
    "5 % and 20 %": (0.05, 0.2),
    "10 % and 30 %": (0.1, 0.3),
    "all and 0 %": (1.0, 0.0),
}
SIZES = (1_000, 10_000, 100_000, 1_000_000)
MEASURED = {
    "nginx_token_us": ("CPU of nginx per token, TLS, the beginning and end of a stream included", "µs"),
    "nginx_stream_kb": ("memory of nginx per open stream", "KB"),
    "redis_trip_us": ("CPU of redis-server for a round trip with nothing in it", "µs"),
    "redis_begin_us": ("to begin a turn", "µs"),
    "redis_claim_us": ("to claim its conversation", "µs"),
    "redis_append_us": (f"to keep a batch of a quarter of a second, one of {BATCH} in a round trip", "µs"),
    "redis_confirm_us": ("to note what the transcript has, each second", "µs"),
    "redis_end_us": ("to end a turn, its transcript confirmed and its conversation given up", "µs"),
    "redis_look_us": ("to tell a worker of news of one turn", "µs"),
    "redis_cursor_us": ("for each turn more that it asks for", "µs"),
    "redis_tend_us": ("for each worker that a worker looks after, twice a second", "µs"),
    "redis_begin_bytes": ("network, both ways: beginning, claim and end of a turn", "bytes"),
    "redis_append_bytes": ("a batch", "bytes"),
    "redis_confirm_bytes": ("a confirmation", "bytes"),
    "redis_look_bytes": ("news of one turn", "bytes"),
    "redis_cursor_bytes": ("each turn more that is asked for", "bytes"),
    "redis_turn_bytes": ("memory of Redis for a whole turn of 400 tokens", "bytes"),
}


class Table(NamedTuple):
    """What `unit_costs.json` holds."""

    machine: str  # on which this program measured its part
    rows: list[dict[str, Any]]

    @property
    def costs(self) -> UnitCosts:
        return UnitCosts(**{row["name"]: row["value"] for row in self.rows})


def read_table(path: Path = TABLE) -> Table:
    return Table(**json.loads(path.read_text()))


def write_table(table: Table, path: Path = TABLE) -> None:
    rows = ",\n    ".join(json.dumps(row, ensure_ascii=False) for row in table.rows)
    path.write_text(f'{{\n  "machine": {json.dumps(table.machine)},\n  "rows": [\n    {rows}\n  ]\n}}\n')


def measured(table: Table) -> Table:
    """The table with what this program measures, anew."""
    machine = program.machine()
    print("nginx", flush=True)
    found = {f"nginx_{name}": value for name, value in nginx_cost.measure()._asdict().items()}
    print("redis-server", flush=True)
    rounds = [redis_cost.measure(GOAL)._asdict() for _ in range(ROUNDS)]
    found |= {f"redis_{name}": statistics.median(each[name] for each in rounds) for name in rounds[0]}
    kept = [row for row in table.rows if row["name"] not in MEASURED]
    rows = [
        {"name": name, "value": float(f"{found[name]:.3g}"), "unit": unit, "what": what, "from": COMMAND}
        for name, (what, unit) in MEASURED.items()
    ]
    return Table(machine, kept + rows)


def costs_table(table: Table) -> str:
    rows = [[row["what"], f"{row['value']:,.4g} {row['unit']}", f"`{row['from']}`"] for row in table.rows]
    return markdown(["cost", "measured by"], rows)


def capacity_table(costs: UnitCosts, workers: int) -> str:
    """What a core does that does nothing else, all of it used; batches and looks without anything else."""
    batch = costs.redis_append_us + costs.redis_trip_us / BATCH
    look = costs.redis_look_us + CURSORS * costs.redis_cursor_us
    turn = costs.redis_begin_us + costs.redis_claim_us + costs.redis_end_us
    whole = store_of(GOAL._replace(streams=1000, followed_elsewhere=0.0, mirrored_elsewhere=0.0), 5, costs).cores / 1000
    of_stream = GOAL.tokens_per_second / 1e6
    rows = [
        ["a worker", f"{1 / (costs.relay_token_us * of_stream):,.0f} streams"],
        ["nginx", f"{1 / (costs.nginx_token_us * of_stream):,.0f} streams"],
        ["Redis: all that streams without followers elsewhere need", f"{1 / whole:,.0f} streams"],
        ["Redis: `XADD` in its script, alone", f"{1e6 / batch:,.0f} batches a second of 5 tokens"],
        ["Redis: `XREAD` of one turn, alone", f"{1e6 / costs.redis_look_us:,.0f} a second"],
        [f"Redis: `XREAD` of {CURSORS} turns", f"{1e6 / look:,.0f} a second"],
        ["Redis: turns begun, claimed and ended", f"{1e6 / turn:,.0f} a second"],
    ]
    tend = TENDS * workers**2 * costs.redis_tend_us / 1e6
    rows.append([f"Redis: {workers:,} workers that look after one another", f"needs {tend:,.0f} cores"])
    return markdown(["a core carries"], rows)


def layout_table(plans: Mapping[str, Layout | None]) -> str:
    """A column a plan; empty for what no such machine can do."""
    figures = {
        "cells": lambda plan: f"{plan.cells:,}",
        "machines of the relay in a cell": lambda plan: f"{plan.machines_per_cell}",
        "workers of a machine, cores of nginx": lambda plan: f"{plan.workers_per_machine}, {plan.nginx_cores}",
        "streams of a worker": lambda plan: f"{plan.streams_per_worker:.0f}",
        "MAX_TURNS": lambda plan: f"{plan.max_turns}",
        "streams of a cell": lambda plan: f"{plan.cell_streams:,.0f}",
        "its Redis: core": lambda plan: f"{plan.store.cores:.0%}",
        "its Redis: batches a second": lambda plan: f"{plan.store.appends:,.0f}",
        "its Redis: looks a second": lambda plan: f"{plan.store.looks:,.0f}",
        "its Redis: data, memory needed": lambda plan: f"{plan.store.memory_gb:.1f}, {plan.redis_gb:.1f} GB",
        "its Redis: network": lambda plan: f"{plan.store.gbit:.2f} Gbit/s",
        "a machine: core of each worker": lambda plan: f"{plan.worker_cores:.0%}",
        "a machine: nginx' cores": lambda plan: f"{plan.nginx_share:.0%}",
        "a machine: memory": lambda plan: f"{plan.machine_memory_gb:.1f} GB",
        "a machine: network": lambda plan: f"{plan.machine_gbit:.2f} Gbit/s",
        "a machine: links to the transcript": lambda plan: f"{plan.links_per_machine:,.0f}",
        "a machine: ports to one address": lambda plan: f"{plan.port_share:.0%}",
        "**workers in all**": lambda plan: f"**{plan.workers:,}**",
        f"**machines of {MACHINE.cores} cores in all**": lambda plan: f"**{plan.machines:,}**",
        "**Redis in all, a replica each**": lambda plan: f"**{plan.nodes:,}**",
        "**machines for them**": lambda plan: f"**{plan.redis_machines(MACHINE):,}**",
        "addresses towards the transcript, behind a NAT": lambda plan: f"{nat_addresses(plan):,}",
        "all machines: network": lambda plan: f"{plan.machine_gbit * plan.machines:,.0f} Gbit/s",
    }
    rows = [[name, *("" if plan is None else of(plan) for plan in plans.values())] for name, of in figures.items()]
    return markdown(list(plans), rows)


def nat_addresses(plan: Layout) -> int:
    """That all links to one address of Genesys Cloud need, where a NAT stands between."""
    return math.ceil(plan.links_per_machine * plan.machines / (PORT_SHARE * PORTS))


def failures_table(plan: Layout) -> str:
    """How much of the whole stands on one of each."""
    machine = plan.cell_streams / plan.machines_per_cell
    parts = {"a worker": plan.streams_per_worker, "a machine": machine, "a cell": plan.cell_streams}
    return markdown(
        ["streams", "of all"],
        [[name, f"{streams:,.0f}", f"{streams / GOAL.streams:.2%}"] for name, streams in parts.items()],
    )


def plan_of(load: Load, costs: UnitCosts) -> Layout | None:
    try:
        return layout(load, costs, MACHINE)
    except CannotCarry:
        return None


def simulation_table(plan: Layout, load: Load, peaks: Peaks, waits: Waits) -> str:
    """What the layout counts on, how full that may be, and the most that any one had in any second."""
    rows = [
        ["streams at once", f"{load.streams:,}", "", f"{peaks.streams:,}"],
        ["streams of a worker", f"{plan.streams_per_worker:.0f}", f"{plan.max_turns}", f"{peaks.worker_streams}"],
        ["core of a worker", f"{plan.worker_cores:.2f}", "1", f"{peaks.worker_cores:.2f}"],
        [
            "nginx of a machine, cores",
            f"{plan.nginx_share * plan.nginx_cores:.2f}",
            f"{plan.nginx_cores}",
            f"{peaks.nginx_cores:.2f}",
        ],
        ["all cores of a machine", "", "1", f"{peaks.machine_cores:.2f}"],
        ["core of a Redis", f"{plan.store.cores:.2f}", "1", f"{peaks.redis_cores:.2f}"],
        ["data of a Redis, GB", f"{plan.store.memory_gb:.3f}", f"{plan.redis_gb:.3f}", f"{peaks.redis_gb:.3f}"],
        ["links of a machine", f"{plan.links_per_machine:,.0f}", f"{PORTS:,}", f"{peaks.links:,}"],
        [
            "network of a machine, Gbit/s",
            f"{plan.machine_gbit:.2f}",
            f"{MACHINE.network_gbit:g}",
            f"{peaks.machine_gbit:.2f}",
        ],
    ]
    told = (
        f"{peaks.asked:,} questions; {peaks.cut:,} answers cut by the worker that was killed and the machine that was "
        f"lost; {peaks.refused:,} refused at MAX_TURNS, to come back. The Redis of a full cell, with the batches and "
        f"looks of all its workers in one queue, is busy for {waits.busy:.0%} of the time; a round trip takes "
        f"{waits.p50:.2f} ms there (p50), {waits.p99:.2f} ms (p99)."
    )
    return f"{markdown(['counted on', 'there is', 'peak'], rows)}\n\n{told}"


def check_table(checks: Sequence[tuple[Load, int, Driven]], costs: UnitCosts) -> str:
    rows = []
    for load, workers, driven in checks:
        expected = store_of(load, workers, costs)
        rows.append(
            [
                f"{load.streams:,} streams, {workers} workers, {load.followed_elsewhere:.0%} and "
                f"{load.mirrored_elsewhere:.0%} elsewhere",
                f"{expected.appends:,.0f}",
                f"{driven.appends:,.0f}",
                f"{expected.looks:,.0f}",
                f"{driven.looks:,.0f}",
                f"{expected.cores:.1%}",
                f"{driven.cores:.1%} ({driven.cores / expected.cores:.2f} ×)",
                f"{driven.append_p50:.1f} ms",
            ]
        )
    columns = ["batches a second", "came", "looks at most", "came", "core foretold", "measured", "round trip, p50"]
    return markdown(columns, rows)


def drive_all(seconds: float = DRIVE_SECONDS) -> list[tuple[Load, int, Driven]]:
    found = []
    for streams, workers, followed, mirrored in DRIVEN:
        load = GOAL._replace(streams=streams, followed_elsewhere=followed, mirrored_elsewhere=mirrored)
        print(f"a Redis with {streams} streams of {workers} workers", flush=True)
        found.append((load, workers, redis_cost.drive(load, workers, seconds)))
    return found


def arithmetic(table: Table) -> dict[str, str]:
    """The document's parts that follow from the table alone, by their names there."""
    costs = table.costs
    goal = layout(GOAL, costs, MACHINE)
    scenarios = {
        name: GOAL._replace(followed_elsewhere=followed, mirrored_elsewhere=mirrored)
        for name, (followed, mirrored) in SCENARIOS.items()
    }
    return {
        "costs": f"{table.machine}; the rows of other commands are those programs' figures.\n\n{costs_table(table)}",
        "core": capacity_table(costs, goal.workers),
        "shares": shares(),
        "layout": layout_table({name: plan_of(load, costs) for name, load in scenarios.items()}),
        "sizes": layout_table({f"{size:,}": plan_of(GOAL._replace(streams=size), costs) for size in SIZES}),
        "failures": failures_table(goal),
    }


def simulated(costs: UnitCosts) -> str:
    """The table of a simulation of PART of the goal; some seconds of work."""
    kept = GOAL._replace(retain=RETAIN_SIMULATED)
    load, plan = sample(kept, layout(kept, costs, MACHINE), PART)
    peaks = Simulation(load, plan, costs, MACHINE, SEED).run(SIMULATED)
    waits = redis_waits(layout(GOAL, costs, MACHINE), GOAL, costs, WAITING, SEED)
    return simulation_table(plan, load, peaks, waits)


def shares() -> str:
    rows = [
        ["a worker's core", f"{WORKER_SHARE:.0%}", f"{LOSS_SHARE:.0%} when one machine of its cell is gone"],
        ["nginx' cores", f"{NGINX_SHARE:.0%}", ""],
        ["a Redis' core", f"{REDIS_SHARE:.0%}", "it has one, and answers late long before it is full"],
        ["a Redis' memory", f"{REDIS_MEMORY_SHARE:.0%}", "rewriting its file can take as much again"],
        ["a machine's memory", f"{MEMORY_SHARE:.0%}", ""],
        ["a machine's network", f"{NETWORK_SHARE:.0%}", ""],
        ["ports towards one address", f"{PORT_SHARE:.0%}", f"of {PORTS:,}"],
    ]
    return markdown(["filled to", ""], rows)


def with_parts(text: str, parts: Mapping[str, str]) -> str:
    """The document with these parts between their marks. What stands there otherwise stays."""
    for name, part in parts.items():
        begin, end = f"<!-- {name}: {COMMAND} -->", f"<!-- /{name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{DOCUMENT.name} has no place for {name}: {begin} ... {end}")
        text = pattern.sub(lambda _, whole=f"{begin}\n{part}\n{end}": whole, text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description="How many machines so many streams need.")
    parser.add_argument("--as-written", action="store_true", help="measure nothing: the costs are those in the table")
    parser.add_argument("--keep", action="store_true", help="print all, and write neither table nor document")
    options = parser.parse_args()
    table = read_table()
    parts = {}
    if not options.as_written:
        table = measured(table)
        checks = drive_all()
        parts["check"] = f"{table.machine}\n\n{check_table(checks, table.costs)}"
    parts |= arithmetic(table) | {"simulation": simulated(table.costs)}
    for part in parts.values():
        print(f"\n{part}")
    if not options.keep:
        write_table(table)
        DOCUMENT.write_text(with_parts(DOCUMENT.read_text(), parts))


if __name__ == "__main__":
    program.run(main)
