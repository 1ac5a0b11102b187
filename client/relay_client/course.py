"""The course of one answer: where it is followed, how far it has come, when the next try is. No I/O."""

import json
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from random import random
from time import time
from typing import Any
from uuid import uuid4

from .errors import RelayError
from .events import Begun, Done, Event, Failure, Lost, Other, Retrying, Token
from .sse import Block

TRIES = 10  # in a row that may bring nothing
FIRST_BOUND = 0.5  # seconds of jitter; doubled with each try
LAST_BOUND = 30.0  # seconds of jitter, and of what `retry:` may ask for
RECONNECT = 1.0  # seconds, as long as no `retry:` has come


class Course:
    """Told by a shell what came; says what to send, what to hand out and how long to wait."""

    def __init__(
        self,
        question: Mapping[str, Any] | None = None,
        *,
        place: str | None = None,
        after: int = 0,
        idempotency_key: str | None = None,
        tries: int = TRIES,
        jitter: Callable[[], float] = random,
    ) -> None:
        """Either `question`, or `place`: where an answer is followed behind the event `after`.

        `jitter` gives numbers from 0 to 1.
        """
        self.question = question
        self.place = place
        self.after = after
        self.is_over = False
        self._key = idempotency_key or uuid4().hex  # the same in each try: a POST whose answer was lost asks once
        self._tries = tries
        self._jitter = jitter
        self._tried = 1
        self._reconnect = RECONNECT

    @property
    def asking(self) -> dict[str, str]:
        """Headers of the POST."""
        return {"Idempotency-Key": self._key}

    @property
    def following(self) -> dict[str, str]:
        """Headers of the GET."""
        return {"Accept": "text/event-stream", "Last-Event-ID": str(self.after)}

    def begin(self, answer: Any) -> Begun:
        """Takes what the POST was answered with. Raises RelayError when that is no relay's answer."""
        match answer:
            case {"id": str(id_), "url": str(url)}:
                self.place = url
                return Begun(id_, url)
        raise RelayError("What answers there is no relay.", "not_a_relay", 200)

    def take(self, block: Block) -> Event | None:
        """What a block is to the caller; None for what is the course's own, and for what came before."""
        if block.retry is not None:
            self._reconnect = min(LAST_BOUND, block.retry / 1000)
        id_ = int(block.id) if block.id and block.id.isascii() and block.id.isdigit() else None
        is_old = id_ is not None and id_ <= self.after
        if id_ is not None and not is_old:
            self.after, self._tried = id_, 1
        if not block.data or is_old:
            return None
        return self._read(block.event, json.loads(block.data))

    def _read(self, name: str, data: Any) -> Event | None:
        match name, data:
            case "message", {"token": str(text)}:
                return Token(self.after, text)
            case "message", {"error": str(sentence), "code": str(code)}:
                return Failure(self.after, sentence, code)
            case "status", {"in": float() | int() as seconds, "reason": str(reason)}:
                return Retrying(seconds, reason)
            case "done", {"status": str(status)}:
                self.is_over = True
                return Done(self.after, status, data.get("finish_reason"), data.get("usage"))
            case "ticket", {"url": str(url)}:
                self.place = url
                return None
        return Other(name, data if isinstance(data, dict) else {"data": data})

    def lose(self, error: RelayError) -> Lost:
        """How long to wait before the next try; raises `error` when there is none.

        At least what Retry-After or `retry:` says, and full jitter on top, so that those who were cut off together do
        not come back together.
        """
        if not error.passes or self._tried >= self._tries:
            raise error
        least = error.retry_after or self._reconnect
        bound = min(LAST_BOUND, FIRST_BOUND * 2.0 ** (self._tried - 1))
        self._tried += 1
        return Lost(least + self._jitter() * bound, error)


def refusal(status: int, body: bytes, retry_after: str | None) -> RelayError:
    """An HTTP answer that is none of the good ones."""
    try:
        said = json.loads(body)
    except ValueError:
        said = None  # a proxy's own page
    sentence, code = f"The server answered with status {status}.", "refused"
    match said:
        case {"error": str(sentence), "code": str(code)}:
            pass
    return RelayError(sentence, code, status, seconds_of(retry_after))


def seconds_of(header: str | None) -> float | None:
    """What a `Retry-After` asks for (RFC 9110, 10.2.3: seconds or an HTTP date); None without a usable one."""
    value = (header or "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except (ValueError, TypeError, OverflowError):
        return None
