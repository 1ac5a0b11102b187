"""The layout for a million streams: its arithmetic, its simulation, and what docs/scaling.md says of both."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import nginx_cost, redis_cost, scaling
from bench.layout import (
    CORES_BESIDE,
    LOSS_SHARE,
    MEMORY_SHARE,
    NETWORK_SHARE,
    NGINX_SHARE,
    NODE_CORES,
    PORT_SHARE,
    REDIS_MEMORY_SHARE,
    REDIS_SHARE,
    WORKER_SHARE,
    CannotCarry,
    Load,
    Machine,
    layout,
    machines_for,
    sample,
    store_of,
)
from bench.simulation import Simulation
from server.journal import RENEW_INTERVAL
from server.journal.flusher import FLUSH_INTERVAL, SLACK, WATCHED_INTERVAL
from server.transcript import FIND_INTERVAL
from server.transcript.conversation import IDLE
from server.transcript.websocket import CONFIRM_INTERVAL, PING_INTERVAL

COSTS = scaling.read_table().costs
MACHINE = Machine()
ROUNDING = 1.02  # streams are whole ones
SHORT = Load(200, tokens=40, followed_elsewhere=0.1, mirrored_elsewhere=0.2)

loads = st.builds(
    Load,
    streams=st.integers(1, 3_000_000),
    tokens_per_second=st.floats(5, 100),
    tokens=st.integers(10, 4000),
    first_token=st.floats(0, 60),
    retain=st.floats(10, 7200),
    followed_elsewhere=st.floats(0, 0.05),
    mirrored_elsewhere=st.floats(0, 0.2),
)


def planned(load, machine=MACHINE):
    try:
        return layout(load, COSTS, machine)
    except CannotCarry:
        return None


def test_the_document_says_what_its_table_of_costs_comes_to():
    text = scaling.DOCUMENT.read_text()
    parts = scaling.arithmetic(scaling.read_table())
    assert "<!-- simulation: " in text
    assert scaling.with_parts(text, parts) == text, "run python -m bench.scaling --as-written"


def test_the_arithmetic_has_the_servers_own_intervals():
    from bench import layout as numbers  # noqa: PLC0415 - its constants by their names

    assert 1 / numbers.FLUSHES == FLUSH_INTERVAL
    assert 1 / numbers.WATCHED_FLUSHES == WATCHED_INTERVAL
    assert 1 / numbers.ROUNDS == SLACK
    assert 1 / numbers.CONFIRMS == CONFIRM_INTERVAL
    assert 1 / numbers.TENDS == RENEW_INTERVAL == FIND_INTERVAL
    assert 1 / numbers.LINK_PINGS == PING_INTERVAL
    assert numbers.IDLE_LINK == IDLE


def cores(plan):
    return plan.machines * MACHINE.cores + plan.nodes * NODE_CORES


@pytest.mark.parametrize(("carried", "machines"), [(1, 2), (5, 2), (8, 2), (9, 3), (15, 3), (16, 4), (20, 4), (40, 8)])
def test_a_cell_stands_the_loss_of_a_machine(carried, machines):
    assert machines_for(carried, workers=5) == machines
    assert WORKER_SHARE * carried / 5 / (machines - 1) <= LOSS_SHARE


@given(loads)
@settings(deadline=None)
def test_a_layout_fills_nothing_beyond_its_share(load):
    plan = planned(load)
    if plan is None:
        return
    assert plan.worker_cores <= WORKER_SHARE * ROUNDING
    assert plan.worker_cores * plan.machines_per_cell / (plan.machines_per_cell - 1) <= LOSS_SHARE * ROUNDING
    assert plan.nginx_share <= NGINX_SHARE * ROUNDING
    assert plan.workers_per_machine + plan.nginx_cores == MACHINE.cores - CORES_BESIDE
    assert plan.store.cores <= REDIS_SHARE * ROUNDING
    assert plan.store.memory_gb <= REDIS_MEMORY_SHARE * MACHINE.memory_gb * ROUNDING
    assert plan.machine_memory_gb <= MEMORY_SHARE * MACHINE.memory_gb * ROUNDING
    assert plan.machine_gbit <= NETWORK_SHARE * MACHINE.network_gbit * ROUNDING
    assert plan.port_share <= PORT_SHARE * ROUNDING
    assert plan.streams_per_worker * plan.workers >= load.streams * (2 - ROUNDING)


@given(loads, st.integers(1, 1_000_000))
@settings(deadline=None)
def test_more_streams_never_need_less(load, more):
    plan, larger = planned(load), planned(load._replace(streams=load.streams + more))
    assert (plan is None) == (larger is None), "whether a cell can be at all does not hang on how many there are"
    if plan and larger:
        assert cores(larger) >= cores(plan)


@given(loads)
@settings(deadline=None)
def test_followers_on_other_workers_never_make_it_cheaper(load):
    alone = load._replace(followed_elsewhere=0.0, mirrored_elsewhere=0.0)
    assert store_of(alone, 20, COSTS).cores <= store_of(load, 20, COSTS).cores * ROUNDING
    plan = planned(load)
    if plan:
        assert cores(planned(alone)) <= cores(plan)


def test_a_load_that_no_cell_can_carry_is_refused():
    with pytest.raises(CannotCarry):
        layout(Load(1000, retain=10_000_000.0), COSTS, MACHINE)


def test_a_simulation_is_the_same_for_a_seed_and_sees_what_is_too_small():
    load, plan = sample(Load(1_000_000, retain=20.0), planned(Load(1_000_000, retain=20.0)), 0.003)
    first, again = (Simulation(load, plan, COSTS, MACHINE, seed=7).run(90.0) for _ in range(2))
    assert first == again
    assert first.worker_cores < 1
    assert first.redis_cores < 1
    assert first.cut > 0
    assert first.refused < first.asked / 100
    small = plan._replace(machines_per_cell=2, streams_per_worker=plan.streams_per_worker)
    assert Simulation(load, small, COSTS, MACHINE, seed=7).run(90.0).refused > first.asked / 100


def test_a_real_redis_carries_a_small_load_and_tells_what_each_call_costs():
    costs = redis_cost.measure(SHORT, turns=50)
    assert all(cost > 0 for name, cost in costs._asdict().items() if name != "cursor_us"), costs
    driven = redis_cost.drive(SHORT, workers=2, seconds=1.0)
    wanted = store_of(SHORT, 2, COSTS)
    assert wanted.appends / 3 < driven.appends < wanted.appends * 1.5
    assert 0 < driven.looks <= wanted.looks * 1.5
    assert 0 < driven.cores < 1


def test_a_real_nginx_tells_what_a_token_costs():
    with ThreadPoolExecutor(1) as pool:  # the browser tests leave an event loop in the main thread
        costs = pool.submit(nginx_cost.measure, streams=10, tokens=10).result()
    assert costs.token_us > 0
