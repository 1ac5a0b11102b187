"""Faults to order: which there are, and the plan that says which call meets which. Pure data, no I/O."""

import math
import time
from dataclasses import asdict, dataclass, fields
from email.utils import formatdate
from typing import Any

GATEWAY = {
    "expired": "401 invalid_token, as after the token's life",
    "rate_limited": "429; Retry-After only with `retry_after`, as an HTTP date with `as_date`",
    "error_500": "500",
    "unavailable_503": "503, optional `retry_after`",
    "refused": "with `seconds`: nothing listens for that long; else the connection is reset without an answer",
    "stale": "a connection that was used before is reset without an answer; a new one is served",
    "bad_request_400": "400",
    "forbidden_403": "403",
    "slow_first_byte": "headers only after `seconds`",
    "stall": "nothing more after `after` tokens, the connection stays open",
    "stall_before_first": "headers, then nothing",
    "cut": "connection reset after `after` tokens",
    "cut_before_first": "headers, then connection reset",
    "malformed": "a broken JSON line after `after` tokens, then on as if nothing had been",
    "error_object": "an error object after `after` tokens, then the end (OpenRouter's fashion)",
    "no_done": "no [DONE]",
    "no_finish": "the body ends cleanly after `after` tokens, no finish_reason, no [DONE]",
    "crlf": "CRLF line ends",
    "bare": "NDJSON: no `data: `, no blank lines, no [DONE]",
    "no_space": "`data:{...}`",
    "comments": "`: OPENROUTER PROCESSING` between the lines",
    "split_utf8": "each chunk in two packets, cut inside a multi-byte character",
    "one_byte": "one byte a packet",
    "glued": "the whole answer in one write",
    "huge_line": "one line of 8 MiB after `after` tokens",
    "endless": "tokens without end, as fast as they go, after `after` tokens",
    "flood": "chunks without text, without end and as fast as they go, after `after` tokens",
    "cut_after_finish": "connection reset after the finish_reason: no usage, no [DONE]",
    "stall_after_finish": "nothing more after finish_reason and usage: no [DONE], the connection stays open",
    "early_hints": "an interim answer (103) before the real one",
    "html": "200 with a web page, as a captive portal answers",
    "redirect": "302",
}
OAUTH = {
    "error_500": "500",
    "unavailable_503": "503, optional `retry_after`",
    "slow": "the token only after `seconds`",
    "refused": "with `seconds`: nothing listens for that long; else the connection is reset without an answer",
    "not_json": "200 with a web page",
    "no_token": "200 without access_token",
    "invalid_client": "401 invalid_client",
}
TRANSCRIPT = {
    "refused_401": "handshake answered 401",
    "refused_403": "handshake answered 403",
    "refused_503": "handshake answered 503, optional `retry_after`",
    "closed_at_once": "accepted, then closed with 1001",
    "closed_after": "closed with `code` (1012) after `after` messages, which are kept",
    "slow_reader": "reads one message each `seconds`, from a small receive buffer",
    "no_pongs": "pings stay unanswered",
    "gone": "connection reset without a close frame after `after` messages",
    "mute": "reads nothing after `after` (0) messages, stays open",
    "cookie": "the handshake sets a cookie for the host; a handshake that comes with one is answered 400",
    "odd_cookie": "the handshake sets a cookie with a name that Python's parser refuses",
    "slow_handshake": "the answer to the handshake comes byte by byte and never ends",
    "huge_frame": "sends a frame of 8 MiB after `after` messages",
    "endless_message": "sends the pieces of a message without end after `after` messages",
}
PLATFORM = {
    "rate_limited": "429; Retry-After only with `retry_after`, as an HTTP date with `as_date`",
    "error_500": "500",
    "unavailable_503": "503, optional `retry_after`",
    "timeout_408": "408",
    "conflict_409": "409",
    "bad_request_400": "400",
    "too_large_413": "413",
    "forbidden_403": "403, a permission is missing",
    "expired": "401, as after the token's life",
    "no_conversation": "404",
    "ended": "the conversation has ended when the call comes, and stays so",
    "transferred": "another agent has taken over when the call comes: the old communication is disconnected",
    "alerting": "from this call on no agent has answered yet, until `answered`",
    "answered": "an agent answers before this call",
    "reply_lost": "the call is carried out, then the connection is reset without an answer",
    "reset": "the connection is reset without an answer",
    "slow": "served only after `seconds`",
    "html": "200 with a web page, as a captive portal answers",
    "redirect": "302",
    "endless": "200 with a body that never ends",
}
KNOWN = {"gateway": GATEWAY, "oauth": OAUTH, "transcript": TRANSCRIPT, "platform": PLATFORM}
CALLS = ("read", "message", "typing")  # the platform's
FROM_THE_START = {"stall_before_first", "cut_before_first", "mute"}
AFTER = 3  # tokens or messages before a fault in mid-stream, unless the order says otherwise


class UnknownFault(ValueError):
    """The order cannot be carried out; the text says what can."""


@dataclass(slots=True)
class Order:
    at: str
    fault: str
    calls: int = 1
    prompt: str = ""  # substring of the last user message; empty: any call
    conversation: str = ""  # the platform's conversation id; empty: any
    call: str = ""  # one of CALLS; empty: any
    after: int = AFTER
    retry_after: float | str | None = None  # seconds, or any text to be sent as it is
    as_date: bool = False
    seconds: float | None = None
    code: int = 1012


def parse_order(body: object) -> Order:
    """Raises UnknownFault with a sentence that lists what is known."""
    if not isinstance(body, dict):
        raise UnknownFault("An order is a JSON object")
    place, fault = body.get("at"), body.get("fault")
    if place not in KNOWN:
        raise UnknownFault(f"`at` is one of: {', '.join(KNOWN)}")
    if fault not in KNOWN[place]:
        raise UnknownFault(f"Known faults at {place}: {', '.join(KNOWN[place])}")
    if unknown := set(body) - {field.name for field in fields(Order)}:
        raise UnknownFault(f"Unknown: {', '.join(sorted(unknown))}. Known: {', '.join(f.name for f in fields(Order))}")
    if fault in FROM_THE_START:
        body = {"after": 0} | body
    order = Order(**body)
    check_numbers(order)
    return order


def check_numbers(order: Order) -> None:
    for name, least in (("calls", 1), ("after", 0), ("code", 1000)):
        value = getattr(order, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UnknownFault(f"`{name}` is a whole number from {least}")
    if order.seconds is not None and not (isinstance(order.seconds, int | float) and order.seconds >= 0):
        raise UnknownFault("`seconds` is a number from 0")
    if not isinstance(order.prompt, str) or not isinstance(order.conversation, str):
        raise UnknownFault("`prompt` and `conversation` are texts")
    if order.call not in ("", *CALLS):
        raise UnknownFault(f"`call` is one of: {', '.join(CALLS)}")


class FaultPlan:
    """Orders in the order in which they came; a call takes the first that fits."""

    def __init__(self) -> None:
        self._orders: list[Order] = []

    def add(self, order: Order) -> None:
        self._orders.append(order)

    def take(self, place: str, prompt: str = "", conversation: str = "", call: str = "") -> Order | None:
        """Uses up one call of the first order that fits."""
        for order in self._orders:
            is_meant = order.conversation in ("", conversation) and order.call in ("", call)
            if order.at == place and order.prompt in prompt and is_meant:
                order.calls -= 1
                if not order.calls:
                    self._orders.remove(order)
                return order
        return None

    def remaining(self) -> list[dict[str, Any]]:
        return [asdict(order) for order in self._orders]

    def clear(self) -> None:
        self._orders.clear()


def retry_after_header(order: Order | None) -> dict[str, str]:
    """`Retry-After` as the order wants it (RFC 9110, 10.2.3), or no header."""
    if order is None or (order.retry_after is None and not order.as_date):
        return {}
    if not order.as_date:
        return {"Retry-After": str(order.retry_after)}
    seconds = float(order.retry_after if order.retry_after is not None else 1)
    # HTTP dates know whole seconds only: rounded up, so that the wait is never shorter than ordered.
    return {"Retry-After": formatdate(math.ceil(time.time() + seconds), usegmt=True)}
