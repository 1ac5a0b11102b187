"""The TCP connection under a request: is its client still there, and how to break it."""

import asyncio
import socket
import struct
from collections.abc import Awaitable
from typing import TypeVar

from aiohttp import web

T = TypeVar("T")

LOOK_INTERVAL = 0.02  # seconds between two looks at whether a waiting client has left
TCP_ESTABLISHED = 1  # tcp_states.h of Linux, first byte of struct tcp_info
NO_LINGER = struct.pack("ii", 1, 0)


class ClientLeft(ConnectionResetError):
    """The client closed its connection before it had its answer."""


def reset_transport(transport: asyncio.Transport) -> None:
    """Breaks the connection with RST; what was not yet sent is lost."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    transport.abort()


def reset(request: web.Request) -> None:
    """Breaks the request's connection with RST."""
    if request.transport is not None:
        reset_transport(request.transport)


def is_gone(request: web.Request) -> bool:
    """Whether the client has left, also while reading is paused (there only on Linux)."""
    transport = request.transport
    if transport is None or transport.is_closing():
        return True
    sock = transport.get_extra_info("socket")
    if sock is None or not hasattr(socket, "TCP_INFO"):
        return False
    return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != TCP_ESTABLISHED)


async def while_present(request: web.Request, awaitable: Awaitable[T]) -> T:
    """Waits for `awaitable` as long as the client stays; raises ClientLeft when it goes first."""
    task = asyncio.ensure_future(awaitable)
    try:
        while not task.done():
            if is_gone(request):
                raise ClientLeft
            await asyncio.wait({task}, timeout=LOOK_INTERVAL)
        return task.result()
    finally:
        task.cancel()


async def until_gone(request: web.Request) -> None:
    """Waits until the client leaves, and raises ClientLeft then."""
    await while_present(request, asyncio.get_running_loop().create_future())
