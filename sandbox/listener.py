"""The listening socket, which can be closed for a while as an outage closes it."""

import asyncio
import socket

from aiohttp import web

from .connection import reset_transport

BACKLOG = 1024  # connections; a load test opens its streams all at once


class Listener:
    """One address to serve on. The port stays the same through outages."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._outages: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    async def open(self, runner: web.AppRunner) -> None:
        """Listens. Raises OSError when the port is taken."""
        self._runner = runner
        self._site = web.TCPSite(runner, self.host, self.port, backlog=BACKLOG)
        await self._site.start()
        self.port = self._site.port

    async def outage(self, seconds: float, spare: web.RequestHandler) -> None:
        """Refuses connections for `seconds` and resets those that exist, `spare` excepted; returns once refusing."""
        if self._runner is None or self._site is None or self._outages:
            return
        await self._site.stop()
        for connection in self._runner.server.connections if self._runner.server else []:
            if connection is not spare and connection.transport is not None:
                reset_transport(connection.transport)
        task = asyncio.create_task(self._return_after(seconds, self._runner))
        self._outages.add(task)
        task.add_done_callback(self._outages.discard)

    async def _return_after(self, seconds: float, runner: web.AppRunner) -> None:
        # Bound without listening, so that connections are refused and yet no one else is given the port.
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as placeholder:
            placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            placeholder.bind((self.host, self.port))
            await asyncio.sleep(seconds)
        await self.open(runner)
