"""Whether what `layout` allots is enough when streams come by chance: a simulation of events, seeded. No I/O.

Questions come at random, their answers are of random lengths and at random paces, each goes to a machine in turn and
there to a worker by chance, as connections do. A worker is killed, a machine is lost for a while, and a deploy goes
over all machines. What each worker, machine and Redis has to carry is added up second by second.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from .layout import (
    CHUNK_BYTES,
    CONFIRMS,
    FLUSHES,
    IDLE_LINK,
    MESSAGE_BYTES,
    ROUNDS,
    SEGMENT_BYTES,
    TENDS,
    TOKEN_BYTES,
    WATCHED_FLUSHES,
    Layout,
    Load,
    Machine,
    UnitCosts,
)

PACE_SPREAD = 0.25  # of the logarithm of a stream's tokens a second
LENGTH_SPREAD = 0.6  # of the logarithm of an answer's tokens
COME_BACK = 2.0  # seconds, in the mean, until who was cut off asks again
START = 5.0  # seconds until a worker that was killed is there again
OUTAGE = 60.0  # seconds until a machine that was lost is there again


class Peaks(NamedTuple):
    """The most that any one had to carry in any second, and what befell those who asked."""

    asked: int
    refused: int  # its worker was at MAX_TURNS: 503, come back
    cut: int  # by the worker that was killed and the machine that was lost
    streams: int  # of all
    worker_streams: int
    worker_cores: float
    machine_cores: float  # of all cores of a machine
    nginx_cores: float  # of a machine
    redis_cores: float
    redis_gb: float
    links: int  # of a machine
    machine_gbit: float


@dataclass(slots=True, eq=False)
class Worker:
    machine: "Node"
    running: "dict[Stream, None]" = field(default_factory=dict)  # a set in order: a seed gives the same each time
    tokens_per_second: float = 0.0
    begun: int = 0  # in this second
    is_up: bool = True


@dataclass(slots=True, eq=False)
class Node:
    """A machine of the relay."""

    cell: "Cell"
    workers: list[Worker] = field(default_factory=list)
    old: list[Worker] = field(default_factory=list)  # that end what runs, after a deploy
    links: int = 0
    is_up: bool = True


@dataclass(slots=True, eq=False)
class Cell:
    nodes: list[Node] = field(default_factory=list)
    turn: int = 0  # of the balancer
    streams: int = 0
    watched: int = 0
    mirrored: int = 0
    begun: int = 0  # in this second
    ended: int = 0  # in this second
    bytes_kept: float = 0.0


@dataclass(slots=True, eq=False)
class Stream:
    worker: Worker
    pace: float
    elsewhere: str
    bytes_kept: float


class Waits(NamedTuple):
    """How long a round trip to one Redis takes there, in milliseconds, and the part of the time that it is busy."""

    p50: float
    p99: float
    busy: float


def redis_waits(plan: Layout, load: Load, costs: UnitCosts, seconds: float, seed: int) -> Waits:
    """What comes to the Redis of one cell, first come, first served: batches of flushes and of confirmations, looks
    and beginnings of turns. Each worker's batches come at its own times; all else comes by chance."""
    chance = random.Random(seed)
    cell = load.part(load.streams / plan.cells)
    workers = plan.machines_per_cell * plan.workers_per_machine
    cursors = cell.streams * (load.followed_elsewhere + load.mirrored_elsewhere) / workers
    look = costs.redis_look_us + cursors * costs.redis_cursor_us
    turn = costs.redis_begin_us + costs.redis_claim_us + costs.redis_end_us
    arrivals: list[tuple[float, float]] = []  # seconds, and microseconds of work
    for rate, each in (
        (plan.store.appends, costs.redis_append_us),
        (cell.streams * CONFIRMS, costs.redis_confirm_us),
    ):
        of_round = rate / workers / ROUNDS
        for _ in range(workers):
            at = chance.random() / ROUNDS
            while at < seconds:
                scripts = round(chance.gauss(of_round, math.sqrt(of_round)))
                arrivals.append((at, costs.redis_trip_us + max(scripts, 1) * each))
                at += 1 / ROUNDS
    for rate, work in ((plan.store.looks, look), (cell.turns_per_second, turn)):
        at = chance.expovariate(rate) if rate else seconds
        while at < seconds:
            arrivals.append((at, work))
            at += chance.expovariate(rate)
    free_at, waits = 0.0, []
    for at, work in sorted(arrivals):
        free_at = max(free_at, at) + work / 1e6
        waits.append((free_at - at) * 1000)
    waits.sort()
    busy = sum(work for _, work in arrivals) / 1e6 / seconds
    return Waits(waits[len(waits) // 2], waits[len(waits) * 99 // 100], busy)


class Simulation:
    def __init__(self, load: Load, plan: Layout, costs: UnitCosts, machine: Machine, seed: int) -> None:
        self._load, self._plan, self._costs, self._machine = load, plan, costs, machine
        self._chance = random.Random(seed)
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._now = 0.0
        self._asked = self._refused = self._cut = 0
        self._max_turns = plan.max_turns
        self._cells = [self._cell() for _ in range(plan.cells)]
        self._leaving: deque[tuple[float, Cell, float]] = deque()  # from Redis, at these times
        self._peaks: dict[str, float] = {}

    def run(self, seconds: float) -> Peaks:
        """The first third fills; what is measured begins then, the faults one after the other behind it."""
        warm = seconds / 3
        faults = (self._kill_worker, self._lose_machine, self._deploy)
        for number, fault in enumerate(faults):
            self._at(warm + (seconds - warm) * (number + 1) / 5, fault)
        self._at(0.0, self._arrive)
        self._at(0.0, self._look)
        self._at(warm, self._peaks.clear)
        while self._queue and self._queue[0][0] <= seconds:
            self._now, _, event = heapq.heappop(self._queue)
            event()
        counts = {"asked": self._asked, "refused": self._refused, "cut": self._cut}
        kinds = Peaks.__annotations__
        peaks = {name: int(value) if kinds[name] is int else value for name, value in self._peaks.items()}
        return Peaks(**counts, **peaks)

    def _at(self, when: float, event: Callable[[], None]) -> None:
        self._count += 1  # of two at the same time the first that was thought of
        heapq.heappush(self._queue, (when, self._count, event))

    def _cell(self) -> Cell:
        cell = Cell()
        for _ in range(self._plan.machines_per_cell):
            node = Node(cell)
            node.workers = [Worker(node) for _ in range(self._plan.workers_per_machine)]
            cell.nodes.append(node)
        return cell

    def _arrive(self) -> None:
        self._at(self._now + self._chance.expovariate(self._load.turns_per_second), self._arrive)
        self._ask(self._chance.choice(self._cells))

    def _ask(self, cell: Cell) -> None:
        """A question of a conversation of this cell."""
        self._asked += 1
        worker = self._pick(cell)
        if len(worker.running) >= self._max_turns:
            self._refused += 1
            self._at(self._now + self._chance.expovariate(1 / COME_BACK), lambda: self._ask(cell))
            return
        self._begin(worker)

    def _pick(self, cell: Cell) -> Worker:
        """The balancer takes machines in turn; on the machine whichever worker is first takes the connection."""
        nodes = [node for node in cell.nodes if node.is_up]
        cell.turn += 1
        return self._chance.choice([worker for worker in nodes[cell.turn % len(nodes)].workers if worker.is_up])

    def _begin(self, worker: Worker) -> None:
        load, chance, cell = self._load, self._chance, worker.machine.cell
        tokens = load.tokens * chance.lognormvariate(-(LENGTH_SPREAD**2) / 2, LENGTH_SPREAD)
        # The mean of 1/pace is that of the load: a turn is as long, in the mean, as the load says.
        pace = load.tokens_per_second * chance.lognormvariate(PACE_SPREAD**2 / 2, PACE_SPREAD)
        draw = chance.random()
        followed = load.followed_elsewhere
        elsewhere = "watched" if draw < followed else "mirrored" if draw < followed + load.mirrored_elsewhere else ""
        stream = Stream(worker, pace, elsewhere, self._costs.redis_turn_bytes * tokens / load.tokens)
        worker.running[stream] = None
        worker.begun += 1
        worker.machine.links += 1
        cell.begun += 1
        self._count_in(stream, 1)
        self._at(self._now + load.first_token, lambda: self._speak(stream, 1))
        self._at(self._now + load.first_token + tokens / pace, lambda: self._end(stream))

    def _count_in(self, stream: Stream, sign: int) -> None:
        cell = stream.worker.machine.cell
        cell.streams += sign
        cell.watched += sign * (stream.elsewhere == "watched")
        cell.mirrored += sign * (stream.elsewhere == "mirrored")
        cell.bytes_kept += stream.bytes_kept if sign > 0 else 0

    def _speak(self, stream: Stream, sign: int) -> None:
        if stream in stream.worker.running:
            stream.worker.tokens_per_second += sign * stream.pace

    def _end(self, stream: Stream) -> None:
        if stream not in stream.worker.running:
            return  # it was cut
        self._speak(stream, -1)
        stream.worker.running.pop(stream)
        cell, node = stream.worker.machine.cell, stream.worker.machine
        cell.ended += 1
        self._count_in(stream, -1)
        self._leaving.append((self._now + self._load.retain, cell, stream.bytes_kept))
        self._at(self._now + IDLE_LINK, lambda: self._close_link(node))
        if stream.worker in node.old and not stream.worker.running:
            node.old.remove(stream.worker)

    def _close_link(self, node: Node) -> None:
        node.links -= 1

    def _cut_all(self, worker: Worker) -> None:
        """Its followers are told, and ask again."""
        cell = worker.machine.cell
        for stream in worker.running:
            self._cut += 1
            self._count_in(stream, -1)
            self._leaving.append((self._now + self._load.retain, cell, stream.bytes_kept))
            self._at(self._now + IDLE_LINK, lambda: self._close_link(worker.machine))
            self._at(self._now + self._chance.expovariate(1 / COME_BACK), lambda: self._ask(cell))
        worker.running.clear()
        worker.tokens_per_second = 0.0

    def _kill_worker(self) -> None:
        worker = self._chance.choice(self._chance.choice(self._cells[0].nodes).workers)
        worker.is_up = len([other for other in worker.machine.workers if other.is_up]) == 1
        self._cut_all(worker)
        self._at(self._now + START, lambda: setattr(worker, "is_up", True))

    def _lose_machine(self) -> None:
        if self._plan.machines_per_cell == 1:
            return
        node = self._chance.choice(self._cells[-1].nodes)
        node.is_up = False
        for worker in node.workers:
            self._cut_all(worker)
        self._at(self._now + OUTAGE, lambda: setattr(node, "is_up", True))

    def _deploy(self) -> None:
        """One machine of each cell after the other: new workers take what comes, the old ones end what runs."""
        for cell in self._cells:
            for number, node in enumerate(cell.nodes):
                self._at(self._now + number * self._load.seconds, lambda node=node: self._renew(node))

    def _renew(self, node: Node) -> None:
        node.old += [worker for worker in node.workers if worker.running]
        node.workers = [Worker(node) for _ in node.workers]

    def _look(self) -> None:
        """Each second: what each has to carry now."""
        self._at(self._now + 1.0, self._look)
        while self._leaving and self._leaving[0][0] <= self._now:
            _, cell, kept = self._leaving.popleft()
            cell.bytes_kept -= kept
        self._note("streams", sum(cell.streams for cell in self._cells))
        for cell in self._cells:
            self._note("redis_cores", self._redis(cell))
            self._note("redis_gb", cell.bytes_kept / 1e9)
            cell.begun = cell.ended = 0
            for node in cell.nodes:
                self._look_at(node)

    def _look_at(self, node: Node) -> None:
        costs, tokens = self._costs, 0.0
        for worker in [*node.workers, *node.old]:
            self._note("worker_streams", len(worker.running))
            self._note("worker_cores", worker.tokens_per_second * costs.relay_token_us / 1e6)
            tokens += worker.tokens_per_second
        nginx = tokens * costs.nginx_token_us / 1e6
        self._note("nginx_cores", nginx)
        self._note("machine_cores", (tokens * costs.relay_token_us / 1e6 + nginx) / self._machine.cores)
        self._note("links", min(node.links, self._max_turns * len([*node.workers, *node.old])))
        wire = TOKEN_BYTES + CHUNK_BYTES + MESSAGE_BYTES + 3 * SEGMENT_BYTES
        self._note("machine_gbit", tokens * wire * 8 / 1e9)

    def _redis(self, cell: Cell) -> float:
        """Cores that this second's calls take."""
        costs = self._costs
        workers = sum(len(node.workers) + len(node.old) for node in cell.nodes)
        appends = (cell.streams - cell.watched) * FLUSHES + cell.watched * WATCHED_FLUSHES
        looks = cell.watched * WATCHED_FLUSHES + cell.mirrored * FLUSHES
        trips = min(workers * ROUNDS, appends) + min(workers * ROUNDS, cell.streams * CONFIRMS)
        micro = cell.begun * (costs.redis_begin_us + costs.redis_claim_us) + cell.ended * costs.redis_end_us
        micro += trips * costs.redis_trip_us + appends * costs.redis_append_us
        micro += cell.streams * CONFIRMS * costs.redis_confirm_us
        micro += looks * (costs.redis_look_us + (cell.watched + cell.mirrored) / workers * costs.redis_cursor_us)
        return (micro + TENDS * workers * workers * costs.redis_tend_us) / 1e6

    def _note(self, name: str, value: float) -> None:
        if value > self._peaks.get(name, -math.inf):
            self._peaks[name] = value
