"""Ask, and read the answer as Server-Sent Events; come back to it, look at it, cancel it."""

import hashlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import gevent
from flask import Blueprint, Response, current_app, jsonify, request, url_for
from flask.blueprints import BlueprintSetupState
from werkzeug.exceptions import ClientDisconnected
from werkzeug.routing import PathConverter

from .. import sse
from ..access.caller import Caller
from ..answer import join, leave
from ..client import Client
from ..errors import (
    BadCursor,
    BadRequest,
    BodyTooLarge,
    BodyTooSlow,
    StoreUnavailable,
    UnsupportedMediaType,
)
from ..journal import Entry
from ..journal.tail import Follower
from ..prompt import Prompt, read_prompt
from ..relay import Relay
from ..sse import Done, Failure, Token
from ..stream import Stream, StreamResponse
from ..turns import Key
from .limits import tell

routes = Blueprint("streams", __name__)

BODY_TIMEOUT = 30.0  # seconds for a request's whole body
MAX_KEY = 200  # characters of an Idempotency-Key
MAX_CURSOR_DIGITS = 12
MAX_LENGTH_DIGITS = 12  # of a Content-Length that is taken as it is


class Anything(PathConverter):
    """Text that may hold slashes; one may be its first character, which Werkzeug's own `path` does not take."""

    regex = ".+?"
    part_isolating = False


class Conversation(Anything):
    """A conversation itself: what ends with `/streams` is the list of its streams, and nothing to erase."""

    regex = "(?!.*/streams$).+?"


@routes.record
def know_converters(state: BlueprintSetupState) -> None:
    """Before the routes below are added: Flask does it all in the order in which it stands here."""
    state.app.url_map.converters["anything"] = Anything
    state.app.url_map.converters["conversation"] = Conversation


@routes.post("/stream-llm")
def stream_llm() -> Response:
    """Asks the gateway and answers with the stream of tokens."""
    relay = Relay.of(current_app)
    entry = ask(relay)
    return stream_response(relay, entry, relay.turns.follow(entry, 0, can_return=False))


@routes.post("/streams")
def begin_stream() -> Response:
    """Asks the gateway and answers with the address to follow the answer at."""
    relay = Relay.of(current_app)
    entry = ask(relay)
    url = address(relay, entry)
    response = uncached(jsonify(id=entry.id, url=url))
    response.status_code = 201
    response.headers["Location"] = url
    return response


@routes.get("/streams/<stream_id>")
def follow_stream(stream_id: str) -> Response:
    """The stream from the client's cursor on, or what it holds so far as JSON."""
    relay = Relay.of(current_app)
    if request.accept_mimetypes.best_match(["text/event-stream", "application/json"]) == "application/json":
        return shown(relay, find(relay, stream_id))
    cursor = read_cursor()
    entry = find(relay, stream_id)
    if not entry.running and cursor == entry.last_id:
        return Response(status=204)  # stops EventSource
    # Who goes on with a ticket gets a fresh one; first, since a lost connection may end the rest.
    head = sse.ticket(address(relay, entry)) if "ticket" in request.args and not relay.access.is_open else b""
    return stream_response(relay, entry, relay.turns.follow(entry, cursor), head)


@routes.delete("/streams/<stream_id>")
def cancel_stream(stream_id: str) -> Response:
    """Cancels the turn, wherever it runs."""
    relay = Relay.of(current_app)
    relay.turns.cancel(find(relay, stream_id))
    return Response(status=204)


@routes.get("/conversations/<anything:conversation_id>/streams")
def list_streams(conversation_id: str) -> Response:
    """The caller's newest streams of a conversation, oldest first."""
    relay = Relay.of(current_app)
    caller = identify(relay)
    caller.check(conversation_id)
    streams = [
        {
            "id": entry.id,
            "url": address(relay, entry),
            "status": entry.status,
            "began": entry.began,
            "ended": entry.ended,
        }
        for entry in relay.turns.turns_of(conversation_id, caller.name)
    ]
    return uncached(jsonify(streams=streams))


@routes.delete("/conversations/<conversation:conversation_id>")
def erase_conversation(conversation_id: str) -> Response:
    """Cancels and forgets all that the caller began in a conversation."""
    relay = Relay.of(current_app)
    caller = identify(relay)
    caller.check(conversation_id)
    relay.turns.erase(conversation_id, caller.name)
    return Response(status=204)


def identify(relay: Relay) -> Caller:
    """Who the request is from. Raises Unauthorized or IssuerUnavailable."""
    return relay.access.identify(request.environ.get("HTTP_AUTHORIZATION"))


def find(relay: Relay, stream_id: str) -> Entry:
    """A stream that whoever asks may see; raises StreamNotFound, StoreUnavailable, or as `identify`."""
    may_see = relay.access.sight(stream_id, request.headers.get("Authorization"), request.args.get("ticket"))
    return relay.turns.find(stream_id, may_see)


def address(relay: Relay, entry: Entry) -> str:
    """Where a stream can be followed; with a fresh ticket, where one is needed. Raises StoreUnavailable."""
    ticket = relay.access.ticket(entry.id)
    return url_for("relay.streams.follow_stream", stream_id=entry.id, ticket=ticket)  # wherever the app is mounted


def ask(relay: Relay) -> Entry:
    """Begins what the request asks for; an Idempotency-Key that came before leads to what it began."""
    caller = identify(relay)
    body = read_body(relay)
    prompt, conversation_id = read_question(relay, body)
    started = relay.begin(prompt, conversation_id, caller, read_key(body))
    tell(started.standing)
    return started.entry


def read_question(relay: Relay, body: bytes) -> tuple[Prompt, str | None]:
    """What is asked, and the conversation that it belongs to."""
    prompt = read_prompt(body)
    return prompt, relay.conversation_of(prompt)


def read_body(relay: Relay) -> bytes:
    """The request's JSON body. Raises UnsupportedMediaType, BodyTooLarge or BodyTooSlow."""
    # The header as nearly everyone sends it is not taken apart.
    if request.environ.get("CONTENT_TYPE") != "application/json" and request.mimetype != "application/json":
        raise UnsupportedMediaType
    limit = relay.settings.max_body_bytes
    length = told_length(request.environ)
    if length is not None and length > limit:
        raise BodyTooLarge
    with gevent.Timeout(BODY_TIMEOUT, BodyTooSlow()):
        body = read_all(limit) if length is None else request.environ["wsgi.input"].read(length)
    if len(body) > limit:
        raise BodyTooLarge
    if length is not None and len(body) < length:
        raise ClientDisconnected
    return body


def told_length(environ: Mapping[str, Any]) -> int | None:
    """Of a body that gunicorn reads: then one read brings it whole, and Werkzeug's streams (10 µs) are not needed."""
    length = environ.get("CONTENT_LENGTH", "")
    if (
        "gunicorn.socket" not in environ
        or not length.isascii()
        or not length.isdigit()
        or len(length) > MAX_LENGTH_DIGITS
    ):
        return None
    return int(length)


def read_all(limit: int) -> bytes:
    """A body of any length; more than `limit` bytes of one that is too long."""
    # One byte more than allowed: Flask hands out what it has read up to its limit of a chunked body, and says nothing.
    request.max_content_length = limit + 1
    return request.get_data(cache=False)


def read_key(body: bytes) -> Key | None:
    value = request.environ.get("HTTP_IDEMPOTENCY_KEY")
    if value is None:
        return None
    if not 1 <= len(value) <= MAX_KEY or not value.isascii() or not value.isprintable():
        raise BadRequest(f"`Idempotency-Key` must be 1 to {MAX_KEY} printable ASCII characters.")
    return Key(value, hashlib.sha256(body).hexdigest())


def read_cursor() -> int:
    """The id of the last event that the client has; `?after=` is for clients that cannot send headers."""
    value = request.headers.get("Last-Event-ID") or request.args.get("after") or "0"
    if not value.isascii() or not value.isdigit() or len(value) > MAX_CURSOR_DIGITS:
        raise BadCursor
    return int(value)


def shown(relay: Relay, entry: Entry) -> Response:
    """The stream as JSON: its state, and the text so far."""
    events = relay.turns.events_of(entry)
    last = events[-1] if events else None
    state: dict[str, Any] = {
        "id": entry.id,
        "url": address(relay, entry),
        "conversationId": entry.conversation_id,
        "status": last.status if isinstance(last, Done) else "running",
        "text": "".join(event.text for event in events if type(event) is Token),
        "last_event_id": last.id if last else 0,
        "began": entry.began,
        "ended": entry.ended,
        "transcript": delivery_of(relay, entry),
    }
    if isinstance(last, Done):
        state |= {"finish_reason": last.finish_reason, "usage": last.usage}
    for event in events[-2:]:
        if isinstance(event, Failure):
            state |= {"error": event.error, "code": event.code}
    return uncached(jsonify(state))


def delivery_of(relay: Relay, entry: Entry) -> dict[str, Any] | None:
    """How far the text is on its way into the transcript; None for one that does not go there."""
    try:
        delivery = relay.turns.delivery(entry.id)
    except StoreUnavailable:  # the rest can be shown from memory
        return {"state": "unknown"}
    if delivery is None:
        return None
    state = {"state": delivery.state, "cursor": delivery.cursor}
    return state if delivery.reason is None else state | {"reason": delivery.reason}


def uncached(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    return response


def stream_response(relay: Relay, entry: Entry, follower: Follower, head: bytes = b"") -> Response:
    """`head` goes before the events that the follower brings."""
    client = Client(request.environ)
    join(follower, client)
    response = StreamResponse(Stream(follower, client, sse.encode, sse.opening(follower.cursor) + head))
    response.headers["X-Stream-Id"] = entry.id
    response.headers["Access-Control-Expose-Headers"] = "X-Stream-Id"
    response.call_on_close(partial(leave, relay.turns, follower, client))
    return response
