"""Two relays on one store: how late the second one's clients are, and how soon they know that the first has died.

All clients are in this process and on its clock.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import requests

from . import servers
from .load import Stream
from .measure import LATE
from .servers import Server

RATE = 20  # tokens a second of each stream: a brisk model
STREAMS = 5  # whose delay is measured
STAGGER = 0.21  # seconds between two beginnings; no multiple of the pace, or all would be in step with the flusher
TOKENS = 100  # of each of them
# Tokens left out, a second and a half of them. The writer is told once a second that someone follows elsewhere, and
# flushes faster from the flush after that on, which may be a quarter of a second away.
UNWATCHED = 30
KILLS = 5
KILL_STEP = 0.1  # seconds; each kill comes so much later than the last, to hit a lease renewed every 0.5 s at any age
LONG = 400  # tokens of an answer that is still running when its worker is killed
DONE = re.compile(rb'^data: .*"status": ?"(\w+)"')


class Following(Stream):
    """A stream followed to its end, in nanoseconds."""

    def __init__(self, request: bytes) -> None:
        super().__init__(request)
        self.status = ""
        self.ended = 0

    def line_received(self, now: int, line: bytes) -> None:
        super().line_received(now, line)
        if done := DONE.match(line):
            self.status, self.ended = done[1].decode(), now


def delays(upstream: Server, store: str) -> list[int]:
    """Nanoseconds from each token's arrival at a client of its writer to that at a client of the other worker."""
    with servers.relay(upstream, "off", store) as here, servers.relay(upstream, "off", store) as there:
        servers.wait_for_worker(here)
        servers.wait_for_worker(there)
        return asyncio.run(watch(here, there))


async def watch(here: Server, there: Server) -> list[int]:
    followed = []
    for _ in range(STREAMS):
        followed.append(await follow_on((here, there), begin(here, TOKENS)))
        await asyncio.sleep(STAGGER)
    async with asyncio.timeout(TOKENS / RATE + LATE):
        return [delay for near, far in followed for delay in await differences(near, far)]


async def differences(near: Following, far: Following) -> list[int]:
    """Ages are taken from one stamp in the token, so that their difference is that of the arrivals."""
    await near.over
    await far.over
    if len(near.ages) != TOKENS or len(far.ages) != TOKENS:
        raise SystemExit(f"{len(near.ages)} and {len(far.ages)} of {TOKENS} tokens came; no figures")
    return [late - early for early, late in zip(near.ages, far.ages, strict=True)][UNWATCHED:]


def recoveries(upstream: Server, stores: Mapping[str, str]) -> dict[str, list[float]]:
    """Seconds from kill -9 of a stream's relay until a client of the other one has its end, by store.

    All stores at once: it is waiting, mostly.
    """
    with contextlib.ExitStack() as stack:
        survivors = [stack.enter_context(servers.relay(upstream, "off", url)) for url in stores.values()]
        attempts = [kill_all(upstream, list(stores.values()), survivors, n * KILL_STEP) for n in range(KILLS)]
    return {name: [attempt[n] for attempt in attempts] for n, name in enumerate(stores)}


def kill_all(upstream: Server, stores: Sequence[str], survivors: Sequence[Server], wait: float) -> list[float]:
    """Starts a relay on each store and kills it `wait` seconds after a stream of it is followed on the survivor."""
    with contextlib.ExitStack() as stack:
        victims = [stack.enter_context(servers.relay(upstream, "off", url)) for url in stores]
        streams = [begin(victim, LONG) for victim in victims]
        return asyncio.run(recover_all(victims, survivors, streams, wait))


async def recover_all(
    victims: Sequence[Server], survivors: Sequence[Server], streams: Sequence[str], wait: float
) -> list[float]:
    each = zip(victims, survivors, streams, strict=True)
    return await asyncio.gather(*(recover(victim, survivor, stream, wait) for victim, survivor, stream in each))


async def recover(victim: Server, survivor: Server, stream_id: str, wait: float) -> float:
    (stream,) = await follow_on([survivor], stream_id)
    async with asyncio.timeout(LATE):
        while stream.first is None:
            await asyncio.sleep(0.01)
        await asyncio.sleep(wait)
        victim.kill()
        killed = time.monotonic_ns()
        await stream.over
    if stream.status != "interrupted":
        raise SystemExit(f"the stream of a killed relay ended as {stream.status!r}; no figures")
    return (stream.ended - killed) / 1e9


async def follow_on(relays: Sequence[Server], stream_id: str) -> list[Following]:
    return [await follow(relay, stream_id) for relay in relays]


async def follow(relay: Server, stream_id: str) -> Following:
    place = urlsplit(relay.url)
    request = f"GET /streams/{stream_id} HTTP/1.1\r\nHost: {place.netloc}\r\nAccept: text/event-stream\r\n\r\n"
    stream = Following(request.encode())
    await asyncio.get_running_loop().create_connection(lambda: stream, place.hostname, place.port)
    return stream


def begin(relay: Server, tokens: int) -> str:
    body = {"conversationId": "pair", "prompt": f"count to {tokens}"}
    answer = requests.post(f"{relay.url}/streams", json=body, timeout=LATE)
    answer.raise_for_status()
    stream_id: str = answer.json()["id"]
    return stream_id
