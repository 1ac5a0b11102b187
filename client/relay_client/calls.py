"""What the calls of both clients have in common: addresses, the key, patience, failures. No I/O."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import httpx

from .course import refusal
from .errors import RelayError

SILENCE = 40.0  # seconds without a byte until a connection counts as dead; the relay pings each 15 s
TIMEOUT = httpx.Timeout(SILENCE, connect=10.0)
BROKEN = (httpx.TransportError, httpx.DecodingError, ValueError)  # what a connection that breaks off raises


class Calls:
    """Where a relay is, and who asks."""

    def __init__(self, base: str, key: str | None) -> None:
        self._base = base.rstrip("/") + "/"
        self._key = key

    @property
    def streams(self) -> str:
        """Where questions go."""
        return f"{self._base}streams"

    def address(self, place: str) -> str:
        """The address of a stream, by its id or by the `url` that came with it."""
        return urljoin(self._base, place if "/" in place else f"streams/{quote(place, safe='')}")

    def headers(self, address: str, headers: Mapping[str, str] | None = None) -> dict[str, str]:
        """`headers`, and the key, which goes to no other origin."""
        is_ours = urlsplit(address)[:2] == urlsplit(self._base)[:2]
        return {**({"Authorization": f"Bearer {self._key}"} if self._key and is_ours else {}), **(headers or {})}


def question(
    prompt: str | None,
    messages: Sequence[Mapping[str, str]] | None,
    conversation_id: str | None,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """The body of the POST."""
    fields = {"prompt": prompt, "messages": messages, "conversationId": conversation_id, **more}
    return {name: value for name, value in fields.items() if value is not None}


def check(response: httpx.Response) -> None:
    """Raises RelayError unless the answer, whose body was read, is good."""
    if not response.is_success:
        raise refusal(response.status_code, response.content, response.headers.get("Retry-After"))


def failure(error: Exception) -> RelayError:
    """The same in the client's own words; httpx's own may hold an address, and that a ticket."""
    if isinstance(error, RelayError):
        return error
    is_away = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
    return RelayError("The server cannot be reached." if is_away else "The connection was lost.")
