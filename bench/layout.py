"""How many of everything a load needs, from what one of each costs. No I/O.

A cell is some machines of the relay and one Redis of their own: all keys of a Redis are in one hash slot, so that one
Redis is as much as a store can be. Cells know nothing of one another; a conversation belongs to one of them.
"""

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

# What a resource may be filled to when all runs well. The rest is for bursts, for what a machine that fails leaves to
# the others, and for figures that were measured elsewhere.
WORKER_SHARE = 0.5  # of a core
NGINX_SHARE = 0.5  # of the cores of nginx
REDIS_SHARE = 0.5  # of the one core that a Redis can use
MEMORY_SHARE = 0.7
REDIS_MEMORY_SHARE = 0.5  # of a Redis' part of a machine; rewriting the file can take as much again
NETWORK_SHARE = 0.5
PORT_SHARE = 0.5
FULL_SHARE = 0.9  # of a core, at which a worker refuses more: the unlucky one of those when a machine is gone
LOSS_SHARE = 0.8  # of a core, on the machines that are left when one of a cell is gone

FLUSHES = 4.0  # a second, of a turn: FLUSH_INTERVAL
WATCHED_FLUSHES = 20.0  # a second, of a turn that someone follows on another worker: WATCHED_INTERVAL
ROUNDS = 10.0  # a second, of a worker, at most; each is one round trip: SLACK
CONFIRMS = 1.0  # a second, of a turn with a transcript: CONFIRM_INTERVAL
TENDS = 2.0  # a second, of a worker, after all the others: RENEW_INTERVAL and FIND_INTERVAL
IDLE_LINK = 60.0  # seconds that a link to the transcript stays after its text
LINK_PINGS = 1 / 20  # a second, of a link without text
PORTS = 28_232  # of one address towards one other: net.ipv4.ip_local_port_range as Linux has it
NODES = 2  # of Redis in a cell: one, and its replica
NODE_CORES = 2  # of each: it uses one, and one for what writes its file
CORES_BESIDE = 1  # of a machine, for the kernel's network and all else
TCP_BYTES = 66  # Ethernet, IPv4 and TCP with time stamps, of each segment; as much again for half an acknowledgement
TLS_BYTES = 22  # of a record of TLS 1.3 (RFC 8446, 5.2)
SEGMENT_BYTES = TCP_BYTES + TCP_BYTES // 2 + TLS_BYTES
TOKEN_BYTES = 40  # of a token's event in its chunk: `id: 123`, `data: {"token":" parcel"}`
CHUNK_BYTES = 230  # of a token's chunk from the gateway, in OpenAI's shape
MESSAGE_BYTES = 130  # of a message to the transcript, with its conversation


class Load(NamedTuple):
    """What is asked of the whole, when most is asked."""

    streams: int  # at once
    tokens_per_second: float = 20.0  # of each
    tokens: int = 400  # of an answer
    first_token: float = 1.0  # seconds
    retain: float = 3600.0  # RETAIN_SECONDS
    followed_elsewhere: float = 0.02  # part of the streams that someone reads on another worker than the turn's
    mirrored_elsewhere: float = 0.1  # part whose transcript another worker holds: later turns of a conversation

    @property
    def seconds(self) -> float:
        """Of a turn."""
        return self.first_token + self.tokens / self.tokens_per_second

    @property
    def turns_per_second(self) -> float:
        return self.streams / self.seconds

    @property
    def flushes(self) -> int:
        """Of an answer that no one follows elsewhere."""
        return math.ceil(self.tokens / self.tokens_per_second * FLUSHES)

    @property
    def links(self) -> float:
        """To the transcript, where there is room: each turn in a conversation of its own, whose link stays a while."""
        return self.streams + self.turns_per_second * IDLE_LINK

    def part(self, streams: float) -> "Load":
        return self._replace(streams=math.ceil(streams))


@dataclass(frozen=True, slots=True)
class UnitCosts:
    """What one of each costs: CPU in microseconds, memory in the unit of the name, `bytes` over the network."""

    relay_token_us: float
    relay_stream_kb: float
    relay_link_kb: float
    relay_worker_mb: float
    nginx_token_us: float
    nginx_stream_kb: float
    redis_trip_us: float
    redis_begin_us: float
    redis_claim_us: float
    redis_append_us: float
    redis_confirm_us: float
    redis_end_us: float
    redis_look_us: float
    redis_cursor_us: float
    redis_tend_us: float
    redis_begin_bytes: float
    redis_append_bytes: float
    redis_confirm_bytes: float
    redis_look_bytes: float
    redis_cursor_bytes: float
    redis_turn_bytes: float


class Machine(NamedTuple):
    cores: int = 8
    memory_gb: float = 32.0
    network_gbit: float = 10.0


class Store(NamedTuple):
    """What one Redis carries."""

    appends: float  # a second, of batches
    looks: float  # a second, for news that there are
    cores: float
    memory_gb: float
    gbit: float


class Layout(NamedTuple):
    """How many of everything; what each of them then has to carry."""

    cells: int
    machines_per_cell: int
    workers_per_machine: int
    nginx_cores: int  # of a machine
    streams_per_worker: float
    max_turns: int  # MAX_TURNS of a worker; it holds no more links than that
    store: Store  # of a cell
    redis_gb: float  # that a Redis needs: its data, its share observed
    worker_cores: float  # of a core, that a worker uses
    nginx_share: float  # of nginx' cores
    machine_memory_gb: float
    machine_gbit: float
    links_per_machine: float
    port_share: float  # of those towards the transcript's address, where all are to one

    @property
    def machines(self) -> int:
        return self.cells * self.machines_per_cell

    @property
    def workers(self) -> int:
        return self.machines * self.workers_per_machine

    @property
    def nodes(self) -> int:
        """Of Redis: each has a replica."""
        return NODES * self.cells

    @property
    def cell_streams(self) -> float:
        return self.streams_per_worker * self.workers_per_machine * self.machines_per_cell

    def redis_machines(self, machine: Machine) -> int:
        """Machines for the nodes."""
        each = min(machine.cores // NODE_CORES, math.floor(machine.memory_gb / self.redis_gb))
        return math.ceil(self.nodes / each)


def sample(load: Load, plan: Layout, part: float) -> tuple[Load, Layout]:
    """So much of it in whole cells, each as full as before."""
    cells = max(1, round(plan.cells * part))
    return load.part(load.streams * cells / plan.cells), plan._replace(cells=cells)


class CannotCarry(Exception):
    """What fills one worker is more than a Redis can serve, or more than a machine of this kind is."""


def store_of(load: Load, workers: int, costs: UnitCosts) -> Store:
    """What a Redis carries of so many workers with this load."""
    watched = load.streams * load.followed_elsewhere
    mirrored = load.streams * load.mirrored_elsewhere
    flushes = min(FLUSHES, load.tokens_per_second)
    watched_flushes = min(WATCHED_FLUSHES, load.tokens_per_second)
    appends = (load.streams - watched) * flushes + watched * watched_flushes
    confirms = load.streams * CONFIRMS
    # Each batch that someone waits for ends a wait of its own, at most; more in one look are fewer looks.
    looks = watched * watched_flushes + mirrored * flushes
    cursors = (watched + mirrored) / workers  # that one look asks for
    turns = load.turns_per_second
    trips = min(workers * ROUNDS, appends) + min(workers * ROUNDS, confirms)
    micro = (
        turns * (costs.redis_begin_us + costs.redis_claim_us + costs.redis_end_us)
        + trips * costs.redis_trip_us
        + appends * costs.redis_append_us
        + confirms * costs.redis_confirm_us
        + looks * (costs.redis_look_us + cursors * costs.redis_cursor_us)
        + TENDS * workers * workers * costs.redis_tend_us
    )
    network = (
        turns * costs.redis_begin_bytes
        + appends * costs.redis_append_bytes
        + confirms * costs.redis_confirm_bytes
        + looks * (costs.redis_look_bytes + cursors * costs.redis_cursor_bytes)
    )
    memory = (load.streams + turns * load.retain) * costs.redis_turn_bytes
    return Store(appends, looks, micro / 1e6, memory / 1e9, network * 8 / 1e9)


def layout(load: Load, costs: UnitCosts, machine: Machine) -> Layout:
    """The cells and machines that carry `load` with the least hardware. Raises CannotCarry."""
    streams = WORKER_SHARE * 1e6 / (costs.relay_token_us * load.tokens_per_second)  # that fill a worker's share
    workers = workers_of(streams, load, costs, machine)
    wanted = math.ceil(load.streams / streams)
    most = most_carried(workers, streams, load, costs, machine)

    def cost(carried: int) -> tuple[float, int]:
        cells = math.ceil(wanted / carried)
        return cells * (machines_for(carried, workers) + NODES * NODE_CORES / machine.cores), cells

    best = min(range(1, most + 1), key=cost)
    plan = described(math.ceil(wanted / best), machines_for(best, workers), workers, load, costs)
    left = machine.cores - CORES_BESIDE - workers
    return plan._replace(nginx_cores=left, nginx_share=plan.nginx_share * plan.nginx_cores / left)


def machines_for(carried: int, workers: int) -> int:
    """How many machines of so many workers carry what fills `carried` workers, and what one leaves to the others."""
    filled = carried / workers
    return max(math.ceil(filled), 1 + math.ceil(filled * WORKER_SHARE / LOSS_SHARE))


def most_carried(workers: int, streams: float, load: Load, costs: UnitCosts, machine: Machine) -> int:
    """How many workers that are filled with so many streams the Redis of a cell serves."""

    def fits(carried: int) -> bool:
        store = store_of(load.part(carried * streams), machines_for(carried, workers) * workers, costs)
        return store.cores <= REDIS_SHARE and store.memory_gb <= REDIS_MEMORY_SHARE * machine.memory_gb

    if not fits(1):
        raise CannotCarry("a Redis cannot serve one worker: keep answers for a shorter time")
    return next(carried for carried in itertools.count(1) if not fits(carried + 1))


def workers_of(streams: float, load: Load, costs: UnitCosts, machine: Machine) -> int:
    """How many workers of so many streams a machine carries, nginx beside them."""
    workers = machine.cores
    while workers > 0:
        found = described(1, 1, workers, load.part(workers * streams), costs)
        if (
            workers + found.nginx_cores + CORES_BESIDE <= machine.cores
            and found.machine_memory_gb <= MEMORY_SHARE * machine.memory_gb
            and found.machine_gbit <= NETWORK_SHARE * machine.network_gbit
            and found.port_share <= PORT_SHARE
        ):
            return workers
        workers -= 1
    raise CannotCarry("a machine cannot hold one worker and its nginx")


def described(cells: int, machines: int, workers: int, load: Load, costs: UnitCosts) -> Layout:
    """What each of so many carries; `machines` are of a cell, `workers` of a machine."""
    cell = load.part(load.streams / cells)
    streams = load.streams / cells / machines  # of a machine
    max_turns = math.floor(FULL_SHARE * 1e6 / (costs.relay_token_us * load.tokens_per_second))
    links = max(streams, min(load.links / cells / machines, max_turns * workers))
    tokens = streams * load.tokens_per_second  # a second
    store = store_of(cell, machines * workers, costs)
    nginx = tokens * costs.nginx_token_us / 1e6
    nginx_cores = max(1, math.ceil(nginx / NGINX_SHARE))
    memory = workers * costs.relay_worker_mb / 1e3
    memory += streams * (costs.relay_stream_kb + costs.nginx_stream_kb) / 1e6
    memory += (links - streams) * costs.relay_link_kb / 1e6
    wire = TOKEN_BYTES + CHUNK_BYTES + MESSAGE_BYTES + 3 * SEGMENT_BYTES
    pings = (links - streams) * LINK_PINGS * 2 * SEGMENT_BYTES
    gbit = (tokens * wire + pings) * 8 / 1e9 + store.gbit / machines
    return Layout(
        cells=cells,
        machines_per_cell=machines,
        workers_per_machine=workers,
        nginx_cores=nginx_cores,
        streams_per_worker=streams / workers,
        max_turns=max_turns,
        store=store,
        redis_gb=store.memory_gb / REDIS_MEMORY_SHARE,
        worker_cores=tokens / workers * costs.relay_token_us / 1e6,
        nginx_share=nginx / nginx_cores,
        machine_memory_gb=memory,
        machine_gbit=gbit,
        links_per_machine=links,
        port_share=links / PORTS,
    )
