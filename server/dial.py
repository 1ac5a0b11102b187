"""The way to a host: through the proxy that the environment names, with TLS, watched by the kernel."""

import math
import socket
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import gevent.socket
from gevent.lock import BoundedSemaphore
from requests.utils import get_environ_proxies, select_proxy

from .settings import SettingsError
from .tls import tls_context

CONNECT_TIMEOUT = 5.0  # seconds; for TCP, for the proxy's answer and for TLS
ADDRESS_LIFE = 10.0  # seconds that what a name stands for is taken as known: each look-up takes a thread
# A dead connection sends nothing, so only the kernel's own questions and missing acknowledgements (RFC 5482) tell.
WATCH = {
    "TCP_KEEPIDLE": 15,  # seconds of silence until the kernel asks whether the other side is there
    "TCP_KEEPINTVL": 5,  # seconds between two such questions
    "TCP_USER_TIMEOUT": 15_000,  # milliseconds without an acknowledgement until the connection counts as dead
}
MAX_PROXY_HEAD = 64 * 1024  # bytes
DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class Proxy(NamedTuple):
    host: str
    port: int
    user: str | None
    password: str | None

    def __repr__(self) -> str:
        return f"Proxy({self.host}:{self.port})"

    @property
    def headers(self) -> dict[str, str]:
        if self.user is None and self.password is None:
            return {}
        pair = f"{self.user or ''}:{self.password or ''}"
        return {"Proxy-Authorization": f"Basic {b64encode(pair.encode()).decode()}"}


class ProxyRefused(OSError):
    """The proxy does not let us through."""


class Way:
    """How to reach one address. Found once: to search the environment and read a bundle takes milliseconds."""

    def __init__(self, url: str, tunnel: bool, clock: Callable[[], float] = time.monotonic) -> None:
        """`tunnel` asks a proxy, where there is one, for a connection to the host (CONNECT).

        Raises SettingsError for a proxy that cannot be used.
        """
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port or DEFAULT_PORTS[parts.scheme]
        self._context = tls_context() if parts.scheme in ("https", "wss") else None
        self.proxy = proxy_for(url)
        self.tunnel = tunnel
        self._clock = clock
        self._addresses: list[Any] = []  # as getaddrinfo gives them
        self._known_until = -math.inf  # on the clock
        self._looking = BoundedSemaphore()

    @property
    def authority(self) -> str:
        """Host and port, as the header `Host` has them (RFC 9110, 7.2)."""
        port = DEFAULT_PORTS["http" if self._context is None else "https"]
        return self._bracketed if self._port == port else f"{self._bracketed}:{self._port}"

    @property
    def _bracketed(self) -> str:
        return f"[{self._host}]" if ":" in self._host else self._host

    def dial(self) -> socket.socket:
        """A connection to the address, without a timeout of its own. Raises OSError."""
        try:
            return self._dial()
        except OSError:
            self._known_until = -math.inf  # another address may be better
            raise

    def _dial(self) -> socket.socket:
        sock = self._connect()
        try:
            watch(sock)
            if self.proxy is not None and self.tunnel:
                open_tunnel(sock, f"{self._bracketed}:{self._port}", self.proxy)
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_hostname=self._host)
            sock.settimeout(None)  # from here on, who uses it watches the clock
        except BaseException:  # also what is thrown in: a turn that is ended
            sock.close()
            raise
        return sock

    def _connect(self) -> socket.socket:
        """To the first address that answers. Raises OSError."""
        failure = OSError("no address")
        for family, kind, protocol, _, address in self._look_up():
            try:
                return connect(family, kind, protocol, address)
            except OSError as error:
                failure = error
        try:
            raise failure
        finally:
            del failure  # its traceback leads here

    def _look_up(self) -> list[Any]:
        with self._looking:  # who comes meanwhile takes what the first one finds
            if self._clock() >= self._known_until:
                host, port = (self.proxy.host, self.proxy.port) if self.proxy else (self._host, self._port)
                self._addresses = gevent.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                self._known_until = self._clock() + ADDRESS_LIFE
            return self._addresses


def connect(family: int, kind: int, protocol: int, address: Any) -> socket.socket:
    """Raises OSError, also where this machine has no such addresses."""
    sock: socket.socket = gevent.socket.socket(family, kind, protocol)
    try:
        sock.settimeout(CONNECT_TIMEOUT)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def proxy_for(url: str) -> Proxy | None:
    """The proxy that the environment names for `url`, read as `requests` reads it (NO_PROXY too); ws counts as http.

    Raises SettingsError for one that is not spoken to in plain HTTP.
    """
    web = "http" + url.removeprefix("ws") if url.startswith("ws") else url
    found = select_proxy(web, get_environ_proxies(web))
    if not found:
        return None
    host = urlsplit(url).hostname
    try:
        parts = urlsplit(found if "://" in found else f"http://{found}")
        port = parts.port or 80
    except ValueError:
        raise SettingsError(f"The proxy for {host} (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY) is no address") from None
    if parts.scheme != "http" or not parts.hostname:
        raise SettingsError(
            f"The proxy for {host} begins with {parts.scheme}://, but only http:// proxies can be used: change "
            f"HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, or add {host} to NO_PROXY"
        )
    user = None if parts.username is None else unquote(parts.username)
    password = None if parts.password is None else unquote(parts.password)
    return Proxy(parts.hostname, port, user, password)


def open_tunnel(sock: socket.socket, target: str, proxy: Proxy) -> None:
    """CONNECT (RFC 9110, 9.3.6). Raises ProxyRefused."""
    sock.sendall(head(f"CONNECT {target} HTTP/1.1", {"Host": target} | proxy.headers))
    answer = b""
    while b"\r\n\r\n" not in answer:
        piece = sock.recv(4096)
        answer += piece
        if not piece or len(answer) > MAX_PROXY_HEAD:
            raise ProxyRefused("no answer to CONNECT")
    status = answer.split(None, 2)[1:2]
    if not status or not status[0].startswith(b"2"):
        raise ProxyRefused("CONNECT was refused")


def watch(sock: socket.socket) -> None:
    """Has the kernel find out when the other side is gone without a word."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in WATCH.items():
        if hasattr(socket, name):  # Linux has all of them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def head(first_line: str, headers: Mapping[str, str]) -> bytes:
    """Raises ValueError for what would break out of its line, or cannot be written in it (RFC 9110, 5.5)."""
    lines = [first_line, *(f"{name}: {value}" for name, value in headers.items())]
    if any(not line.isprintable() for line in lines):
        raise ValueError("a header with control characters")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
