"""The asker does not pay for a link that is not well: two relays side by side, asked at the same time."""

import asyncio
import statistics
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from bench.load import Stream, request_for

from .conftest import RelayServer, Sandbox

PAIRS = 32  # of questions, one to each relay
TOKENS = 5  # of each answer
PACE = 10  # ms between two of them
MOST_UNTIL_FIRST = 10e6  # ns, in the median; up to 3 ms were measured, either way, on a busy machine with two cores
MOST_AGE = 3e6  # ns, in the median; 0.1 ms were measured
CALLS = 1_000_000  # all of them


class StampedSandbox(Sandbox):
    """Its tokens hold the time at which they are sent."""

    module = "bench.gateway"


@pytest.fixture(scope="module")
def sides():
    """Two relays, each with a sandbox of its own."""
    with ThreadPoolExecutor() as pool:
        sandboxes = [*pool.map(lambda _: StampedSandbox(SANDBOX_PACE_MS=f"{PACE}"), range(2))]
        relays = [*pool.map(lambda sandbox: RelayServer(sandbox.url), sandboxes)]
        yield [*zip(relays, sandboxes, strict=True)]
        list(pool.map(RelayServer.stop, relays))
    for sandbox in sandboxes:
        sandbox.process.stop()


async def ask(relay, conversation):
    place = urlsplit(relay.url)
    stream = Stream(request_for(f"{relay.url}/stream-llm", conversation, TOKENS, bearer=""))
    await asyncio.get_running_loop().create_connection(lambda: stream, place.hostname, place.port)
    await stream.over
    assert stream.is_whole
    assert len(stream.ages) == TOKENS
    return stream


async def ask_both(relays, name):
    """Pairs of streams that ran at the same time; now the one is asked first, now the other."""
    pairs = []
    for number in range(PAIRS):
        streams = [asyncio.ensure_future(ask(relay, f"{name}-{number}")) for relay in relays[:: (-1) ** number]]
        pairs.append([await stream for stream in streams[:: (-1) ** number]])
    return pairs


@pytest.mark.parametrize("fault", ["refused_503", "slow_handshake", "mute"])
def test_the_asker_does_not_feel_that_the_link_is_not_well(sides, conversation, fault):
    (well, sandbox), (unwell, failing) = sides
    failing.reset()
    failing.fault("transcript", fault, calls=CALLS)
    with ThreadPoolExecutor(1) as pool:  # the browser tests leave an event loop in the main thread
        pairs = pool.submit(asyncio.run, ask_both([well, unwell], conversation)).result()
    assert sandbox.text_of(f"{conversation}-0")
    assert failing.text_of(f"{conversation}-0") == ""
    assert failing.calls()["transcript"]["handshakes"] >= PAIRS
    longer_until_first = [failed.first - healthy.first for healthy, failed in pairs]
    older = [b - a for healthy, failed in pairs for a, b in zip(healthy.ages, failed.ages, strict=True)]
    assert statistics.median(longer_until_first) < MOST_UNTIL_FIRST
    assert statistics.median(older) < MOST_AGE
