"""Asks for an answer and times its tokens, where few are asked for: of many, `wire/client.c` takes care.

The tokens are those of `bench.gateway`.
"""

import asyncio
import json
import math
import re
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

STAMP = re.compile(rb'^data: .*"(?:token|content)": ?"(\d+) "')  # the relay's event, or the gateway's chunk


class Body:
    """Decodes a chunked body (RFC 9112, 7.1). No I/O; a chunk comes out once all of it is there."""

    def __init__(self) -> None:
        self.ended = False
        self._raw = b""

    def feed(self, data: bytes) -> bytes:
        self._raw += data
        found = []
        while (end := self._raw.find(b"\r\n")) >= 0 and not self.ended:
            size = int(self._raw[:end], 16)
            begin = end + 2
            if len(self._raw) < begin + size + 2:
                break
            found.append(self._raw[begin : begin + size])
            self._raw = self._raw[begin + size + 2 :]
            self.ended = size == 0
        return b"".join(found)


class Stream(asyncio.Protocol):
    """One question and the times of its answer, in nanoseconds."""

    def __init__(self, request: bytes) -> None:
        self.began = time.monotonic_ns()
        self.first: int | None = None  # from the beginning of the connection to the first token
        self.ages: list[int] = []  # from the sending of each token to its arrival here
        self.is_whole = False
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._head: bytes | None = b""
        self._body = Body()
        self._line = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if self._head is not None:
            self._head, separator, data = (self._head + data).partition(b"\r\n\r\n")
            if not separator:
                return
            if b" 200 " not in self._head.partition(b"\r\n")[0]:
                self._transport.close()
                return
            self._head = None
        *lines, self._line = (self._line + self._body.feed(data)).split(b"\n")
        for line in lines:
            self.line_received(now, line)
        if self._body.ended:
            self.is_whole = True
            self._transport.close()

    def line_received(self, now: int, line: bytes) -> None:
        if stamp := STAMP.match(line):
            if self.first is None:
                self.first = now - self.began
            self.ages.append(now - int(stamp[1]))

    def connection_lost(self, _: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)


def request_for(url: str, conversation: str, tokens: int, bearer: str) -> bytes:
    """A question to the relay, or, with a bearer, to the gateway itself; both answer with `tokens` tokens."""
    place = urlsplit(url)
    prompt = f"count to {tokens}"
    fields: dict[str, object] = {"conversationId": conversation, "prompt": prompt}
    credentials = ""
    if bearer:
        fields = {"messages": [{"role": "user", "content": prompt}], "stream": True}
        credentials = f"Authorization: Bearer {bearer}\r\n"
    body = json.dumps(fields)
    return (
        f"POST {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\n{credentials}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def percentiles(times: Sequence[int]) -> dict[str, float] | None:
    """p50 and p99 in milliseconds, each a value that was measured (nearest rank); None without any."""
    ordered = sorted(times)
    ranks = {"p50": 0.5, "p99": 0.99}
    return {name: ordered[math.ceil(q * len(ordered)) - 1] / 1e6 for name, q in ranks.items()} if ordered else None
