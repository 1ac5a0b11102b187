"""The transcript's WebSocket: GET /v2/conversations/websockets?access_token=..."""

import asyncio
import itertools
import json
import socket
import time

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from .calls import Calls
from .connection import is_gone, reset, until_gone
from .conversations import Conversations, Message
from .errors import Refusal, api_error, bad_request, oauth_error
from .faults import FaultPlan, Order, retry_after_header
from .oauth import Tokens

SCOPES = ("conversation:write", "websocket:subscribe")
MAX_MESSAGE = 64 * 1024  # bytes
SMALL_BUFFER = 4096  # bytes; the receive buffer of a slow reader
HUGE_FRAME = b"\x81\x7f" + (8 * 1024 * 1024).to_bytes(8, "big")  # the head of a text (RFC 6455, 5.2)
FIRST_PIECE, NEXT_PIECE = b"\x01\x7d", b"\x00\x7d"  # heads of pieces of 125 bytes, without FIN (RFC 6455, 5.4)
PIECE = b"x" * 125
COOKIES = {"cookie": "a=1; Domain={}", "odd_cookie": "odd/name=1"}


class Transcript:
    def __init__(self, tokens: Tokens, conversations: Conversations, faults: FaultPlan, calls: Calls) -> None:
        self._tokens = tokens
        self._conversations = conversations
        self._faults = faults
        self._calls = calls
        self._numbers = itertools.count(1)
        self._sockets: set[web.WebSocketResponse] = set()

    @property
    def open_links(self) -> int:
        return len(self._sockets)

    async def close_all(self) -> None:
        """Closes every link, because the sandbox stops."""
        await asyncio.gather(*(link.close(code=WSCloseCode.GOING_AWAY) for link in list(self._sockets)))

    async def open(self, request: web.Request) -> web.StreamResponse:
        order = self._faults.take("transcript")
        try:
            self._admit(request, order)
        except Refusal as refusal:
            self._calls.handshake(refusal.status, order)
            return refusal.response()
        self._calls.handshake(101, order)
        if order is not None and order.fault == "slow_reader":
            shrink_buffer(request)
        if order is not None and order.fault == "slow_handshake":
            return await crawl(request)
        link = web.WebSocketResponse(autoping=False, max_msg_size=MAX_MESSAGE, timeout=1.0, compress=False)
        if order is not None and order.fault in COOKIES:
            link.headers["Set-Cookie"] = COOKIES[order.fault].format(request.url.host)
        await link.prepare(request)
        number = next(self._numbers)
        self._sockets.add(link)
        try:
            await Session(self, request, link, number, order).run()
        finally:
            self._sockets.discard(link)
            self._conversations.link_closed(number)
        return link

    def _admit(self, request: web.Request, order: Order | None) -> None:
        """Raises Refusal."""
        match order.fault if order else "":
            case "refused_401":
                raise oauth_error(401, "invalid_token", "The access token has expired")
            case "refused_403":
                raise oauth_error(403, "insufficient_scope", "The access token lacks the scope websocket:subscribe")
            case "refused_503":
                raise api_error(503, "service.unavailable", "The service is unavailable", retry_after_header(order))
        if "Authorization" in request.headers:
            raise bad_request("Send the access token in the query alone, with no Authorization header")
        if "Cookie" in request.headers:
            raise bad_request("This place has given no cookie")
        self._tokens.require(request.query.get("access_token", ""), *SCOPES)

    def keep(self, data: str, number: int, is_late: bool) -> None:
        """Keeps one message. Raises ValueError when it is none."""
        message = json.loads(data)
        texts = [message.get(name) for name in ("conversationId", "text")] if isinstance(message, dict) else [None]
        if not all(isinstance(text, str) for text in texts) or not texts[0]:
            raise ValueError("a message needs conversationId and text")
        if message.get("type") != "message" or message.get("role") != "agent":
            raise ValueError('a message has type "message" and role "agent"')
        identity = message.get("id")
        if identity is not None and not isinstance(identity, str):
            raise ValueError("id is a string")
        self._conversations.get(texts[0]).add(Message(texts[1], time.time(), number, identity, is_late))
        self._calls.transcript_figures["messages"] += 1

    def count_ping(self) -> None:
        self._calls.transcript_figures["pings"] += 1

    def note_pong(self, number: int) -> None:
        self._conversations.note_pong(number)

    def count_close(self, code: int) -> None:
        self._calls.close_frame(code)


class Session:
    """One open link, and the fault that may befall it."""

    def __init__(
        self,
        transcript: Transcript,
        request: web.Request,
        link: web.WebSocketResponse,
        number: int,
        order: Order | None,
    ) -> None:
        self._transcript = transcript
        self._request = request
        self._link = link
        self._number = number
        self._order = order
        self._fault = order.fault if order else ""
        self._kept = 0

    async def run(self) -> None:
        if self._fault == "closed_at_once":
            await self._link.close(code=WSCloseCode.GOING_AWAY)
            return
        while not await self._struck():
            message = await self._link.receive()
            if message.type is WSMsgType.CLOSE:
                self._transcript.count_close(message.data)
            if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
                return
            if not await self._take(message):
                return

    async def _take(self, message: WSMessage) -> bool:
        """Handles one frame; False ends the link."""
        if message.type is WSMsgType.PING:
            self._transcript.count_ping()
            if self._fault != "no_pongs":
                await self._link.pong(message.data)
                self._transcript.note_pong(self._number)
        elif message.type is WSMsgType.TEXT:
            is_late = self._fault == "slow_reader" and is_gone(self._request)
            try:
                self._transcript.keep(message.data, self._number, is_late)
            except ValueError as error:
                await self._link.close(code=WSCloseCode.POLICY_VIOLATION, message=str(error).encode()[:120])
                return False
            self._kept += 1
            if self._fault == "slow_reader":
                await asyncio.sleep(self._order.seconds if self._order and self._order.seconds else 0.5)
        return True

    async def _struck(self) -> bool:
        """Whether the fault has ended the link; after `after` messages were kept."""
        if self._order is None or self._kept < self._order.after:
            return False
        match self._fault:
            case "closed_after":
                await self._link.close(code=self._order.code)
            case "gone":
                reset(self._request)
            case "mute":
                if self._request.transport is not None and hasattr(self._request.transport, "pause_reading"):
                    self._request.transport.pause_reading()
                try:
                    await until_gone(self._request)
                except ConnectionResetError:
                    return True
            case "huge_frame" | "endless_message":
                await pour(self._request, self._fault == "huge_frame")
            case _:
                return False
        return True


async def crawl(request: web.Request) -> web.StreamResponse:
    """Answers a handshake byte by byte until the other end has had enough."""
    assert request.transport is not None
    request.transport.write(b"HTTP/1.1 101 Switching Protocols\r\nX-Slow: ")
    while not request.transport.is_closing():
        request.transport.write(b"x")
        await asyncio.sleep(0.1)
    raise ConnectionResetError


async def pour(request: web.Request, is_one_frame: bool) -> None:
    """Sends one frame, or one message in pieces, until the other end has had enough."""
    assert request.transport is not None
    request.transport.write(HUGE_FRAME if is_one_frame else FIRST_PIECE + PIECE)
    while not request.transport.is_closing():
        request.transport.write(PIECE if is_one_frame else NEXT_PIECE + PIECE)
        await asyncio.sleep(0.001)


def shrink_buffer(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
