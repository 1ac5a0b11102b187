"""The opening handshake (RFC 6455, 4.1 and 4.2.2). No I/O.

websocket-client has one, but it reads byte by byte, which keeps a worker from its other streams for half a
millisecond; it shares cookies among all links, has rules of its own for proxies, and bounds no answer.
"""

import base64
import hashlib
import secrets
from typing import NamedTuple
from urllib.parse import quote, urlsplit

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]  # names in lower case; of those that repeat, the first


def make_key() -> str:
    return base64.b64encode(secrets.token_bytes(16)).decode()


def request(url: str, token: str, key: str) -> bytes:
    """The head that asks for a link. There is no Authorization header: the token is in the query alone."""
    parts = urlsplit(url)
    query = f"{parts.query}&" if parts.query else ""
    lines = (
        f"GET {parts.path or '/'}?{query}access_token={quote(token, safe='')} HTTP/1.1",
        f"Host: {parts.netloc}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
    )
    return "\r\n".join([*lines, "", ""]).encode()


def read_answer(head: bytes) -> Answer:
    """The answer's head, without the empty line that ends it. Raises ValueError when it is not HTTP."""
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    if not version.startswith("HTTP/1."):
        raise ValueError("not HTTP")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers.setdefault(name.strip().lower(), value.strip())
    return Answer(int(rest[:3]), headers)


def is_accepted(answer: Answer, key: str) -> bool:
    """Whether the answer opens the link that was asked for with `key`: no extension, no subprotocol."""
    digest = hashlib.sha1(key.encode() + GUID, usedforsecurity=False).digest()
    get = answer.headers.get
    return (
        answer.status == 101
        and get("upgrade", "").lower() == "websocket"
        and "upgrade" in get("connection", "").lower()
        and get("sec-websocket-accept") == base64.b64encode(digest).decode()
        and not get("sec-websocket-extensions")
        and not get("sec-websocket-protocol")
    )
