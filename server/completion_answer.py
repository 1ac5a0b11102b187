"""A turn's events as OpenAI's clients read them: chunks, or one answer; and what went wrong. No I/O.

Shapes: chat.completion.chunk, chat.completion and error of OpenAI's API reference. Its stream begins with the role,
ends with a finish_reason and `[DONE]`, and has no ids: it cannot be taken up again.
"""

from collections.abc import Sequence
from typing import Any

import orjson

from . import errors
from .errors import AnswerCancelled, InternalError, RelayError
from .sse import Done, Event, Extra, Failure, Retrying, Token

DONE = b"data: [DONE]\n\n"
REASON = "stop"  # of an answer that ended well, and whose gateway did not say why
WHOLE = frozenset({"id", "type", "index"})  # of a tool call; said once, or again and again, but never in pieces

# Codes that OpenAI's clients know by their own name.
CODES = {
    errors.Unauthorized.code: "invalid_api_key",
    errors.InvalidToken.code: "invalid_api_key",
    errors.TooManyRequests.code: "rate_limit_exceeded",
    errors.TooManyTurnsOfCaller.code: "rate_limit_exceeded",
    errors.PromptTooLong.code: "context_length_exceeded",
}
# Statuses that make these clients raise what they raise for OpenAI itself; our own wire tells whose fault it was.
STATUSES = {errors.RateLimited.code: 429, errors.GatewayRejected.code: 400}
TYPES = {429: "rate_limit_error"}
KINDS = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, RelayError) and kind is not errors.TooManyRequests
}


class Head:
    """What all parts of one answer have in common."""

    def __init__(self, turn_id: str, created: int, model: str) -> None:
        """`created` is in seconds since 1970."""
        self.fields = {"id": f"chatcmpl-{turn_id}", "created": created, "model": model}


class Chunks:
    """One answer as a stream."""

    def __init__(self, head: Head, include_usage: bool) -> None:
        self._include_usage = include_usage
        self._head = orjson.dumps({"object": "chat.completion.chunk", **head.fields})[:-1]
        # OpenAI's own: where the usage is asked for, all chunks but the last say that it is not theirs.
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        # Around a token's text: this runs for each of them.
        self._before = b'data: %b,"choices":[{"index":0,"delta":{"content":' % self._head
        self._after = b'},"logprobs":null,"finish_reason":null}]' + self._tail
        self._begun = False

    def encode(self, events: Sequence[Event | Retrying]) -> bytes:
        """The events as one piece of a response body; it may be empty."""
        pieces = [self._token(event) if type(event) is Token else self._other(event) for event in events]
        if events and not self._begun and any(pieces):
            self._begun = True
            pieces.insert(0, self._choice({"delta": {"role": "assistant", "content": ""}}))
        return b"".join(pieces)

    def _token(self, event: Token) -> bytes:
        return self._before + orjson.dumps(event.text) + self._after

    def _other(self, event: Event | Retrying) -> bytes:
        match event:
            case Extra():
                return self._choice(orjson.loads(event.choice))
            case Failure():
                return b"data: %b\n\n" % orjson.dumps(error_object(failure(event)))
            case Done():
                return self._end(event)
        return b""

    def _end(self, done: Done) -> bytes:
        """After an error nothing follows: who does not know error objects must not take the answer for whole."""
        match done.status:
            case "complete":
                return self._choice({"delta": {}}, done.finish_reason or REASON) + self._usage(done) + DONE
            case "cancelled":
                return b"data: %b\n\n" % orjson.dumps(error_object(AnswerCancelled()))
        return b""  # the Failure before it has said all

    def _usage(self, done: Done) -> bytes:
        if not self._include_usage:
            return b""
        return b'data: %b,"choices":[],"usage":%b}\n\n' % (self._head, orjson.dumps(done.usage))

    def _choice(self, choice: dict[str, Any], reason: str | None = None) -> bytes:
        found = {"index": 0, "delta": {}, "logprobs": None, **choice, "finish_reason": reason}
        return b'data: %b,"choices":[%b]%b' % (self._head, orjson.dumps(found), self._tail)


class Whole:
    """One answer in one piece, put together from its events."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._text: list[str] = []
        self._extra = Merged()
        self._failure: Failure | None = None
        self._done: Done | None = None

    def add(self, events: Sequence[Event | Retrying]) -> None:
        for event in events:
            match event:
                case Token():
                    self._text.append(event.text)
                case Extra():
                    self._extra.add(orjson.loads(event.choice))
                case Failure():
                    self._failure = event
                case Done():
                    self._done = event

    def finish(self) -> dict[str, Any]:
        """The chat.completion. Raises what the turn ended with, where that was no good end."""
        if self._failure is not None:
            raise failure(self._failure)
        if self._done is None:
            raise InternalError
        if self._done.status != "complete":
            raise AnswerCancelled
        extra = self._extra.value()
        text = "".join(self._text)
        message = {"role": "assistant", "content": text, "refusal": None, **extra.get("delta", {})}
        if not text and "delta" in extra:
            message["content"] = None  # an answer without text, as OpenAI says it
        if isinstance(calls := message.get("tool_calls"), list):
            message["tool_calls"] = [without_index(call) for call in calls]
        choice = {
            "index": 0,
            "message": message,
            "logprobs": extra.get("logprobs"),
            "finish_reason": self._done.finish_reason or REASON,
        }
        usage = {} if self._done.usage is None else {"usage": self._done.usage}
        return {"object": "chat.completion", **self._head.fields, "choices": [choice], **usage}


def without_index(call: Any) -> Any:
    """A tool call as whole answers have it: only pieces need to say of which call they are."""
    return {name: value for name, value in call.items() if name != "index"} if isinstance(call, dict) else call


class Merged:
    """JSON objects added up, as OpenAI's own clients do: texts grow, lists grow or are added up by their `index`."""

    def __init__(self) -> None:
        self._fields: dict[str, Any] = {}

    def add(self, delta: dict[str, Any]) -> None:
        for name, value in delta.items():
            if value is not None:
                self._fields[name] = value if name in WHOLE else grown(self._fields.get(name), value)

    def value(self) -> dict[str, Any]:
        return {name: value_of(found) for name, found in self._fields.items()}


class Text(list[str]):
    """Pieces of a text: to join them each time would take the square of their number."""


class Items:
    """A list whose items come in pieces."""

    def __init__(self) -> None:
        self._items: dict[object, Any] = {}

    def add(self, items: list[Any]) -> None:
        for item in items:
            index = item.get("index") if isinstance(item, dict) else None
            place = index if isinstance(index, int) else ("last", len(self._items))
            self._items[place] = grown(self._items.get(place), item)

    def value(self) -> list[Any]:
        return [value_of(item) for item in self._items.values()]


def grown(found: Any, more: Any) -> Any:
    """What was found before, with more of it; what cannot be added up is replaced."""
    match more:
        case str():
            text = found if isinstance(found, Text) else Text()
            text.append(more)
            return text
        case dict():
            merged = found if isinstance(found, Merged) else Merged()
            merged.add(more)
            return merged
        case list():
            items = found if isinstance(found, Items) else Items()
            items.add(more)
            return items
    return more


def value_of(found: Any) -> Any:
    match found:
        case Text():
            return "".join(found)
        case Merged() | Items():
            return found.value()
    return found


def failure(event: Failure) -> RelayError:
    """The error that a turn ended with."""
    return KINDS.get(event.code, InternalError)(event.error)


def status_of(error: RelayError | type[RelayError]) -> int:
    """The HTTP status that these clients are told."""
    return STATUSES.get(error.code, error.status)


def error_object(error: RelayError) -> dict[str, Any]:
    """OpenAI's: `type` is the family, `code` the kind; the codes that they do not have are ours."""
    status = status_of(error)
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    code = CODES.get(error.code, error.code)
    return {"error": {"message": error.sentence, "type": kind, "param": None, "code": code}}
