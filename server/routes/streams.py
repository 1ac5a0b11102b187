"""The seed's route: ask, and read the answer as Server-Sent Events."""

from collections.abc import Iterator

from flask import Blueprint, Response, current_app, request

from .. import sse
from ..client import Client
from ..errors import BodyTooLarge, ConversationRequired, UnsupportedMediaType
from ..journal.tail import Follower
from ..prompt import read_prompt
from ..relay import Relay
from ..turn import Turn

routes = Blueprint("streams", __name__)


@routes.post("/stream-llm")
def stream_llm() -> Response:
    """Asks the gateway and answers with the stream of tokens; see the design's wire shapes."""
    relay = Relay.of(current_app)
    if request.mimetype != "application/json":
        raise UnsupportedMediaType
    prompt = read_prompt(read_body(relay.settings.max_body_bytes))
    conversation_id = prompt.conversation_id or relay.settings.default_conversation_id
    if conversation_id is None and relay.transcript is not None:
        raise ConversationRequired
    turn = relay.ask(prompt, conversation_id)
    return stream_response(relay, turn)


def read_body(limit: int) -> bytes:
    """The request's body. Raises BodyTooLarge beyond `limit` bytes."""
    # One byte more than allowed: Flask hands out what it has read up to its limit of a chunked body, and says nothing.
    request.max_content_length = limit + 1
    body = request.get_data(cache=False)
    if len(body) > limit:
        raise BodyTooLarge
    return body


def stream_response(relay: Relay, turn: Turn, cursor: int = 0) -> Response:
    follower = turn.follow(cursor)
    response = Response(events(relay, turn, follower, Client(request.environ)), mimetype="text/event-stream")
    response.headers["Cache-Control"] = "no-cache, no-transform"
    response.headers["X-Accel-Buffering"] = "no"
    response.headers["X-Stream-Id"] = turn.id
    response.headers["Access-Control-Expose-Headers"] = "X-Stream-Id"
    # A response that is closed before its first piece was asked for never runs the generator's `finally`.
    response.call_on_close(lambda: relay.turns.leave(turn, follower))
    return response


def events(relay: Relay, turn: Turn, follower: Follower, client: Client) -> Iterator[bytes]:
    """The body: what is ready goes out in one piece."""
    follower.on_drop = client.hang_up
    client.watch(follower.close)
    try:
        yield sse.RETRY
        for batch in follower:
            yield sse.encode(batch) if batch else sse.PING
    finally:
        client.forget()
        relay.turns.leave(turn, follower)
