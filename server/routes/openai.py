"""The front for OpenAI's clients: an answer is asked for, streamed and refused as they know it.

Behind it is a turn like any other: journaled, mirrored into the transcript, limited, and there at `/streams/{id}` as
well; the id is in the header `X-Request-Id`.
"""

from functools import partial
from itertools import chain

from flask import Blueprint, Response, after_this_request, current_app, jsonify, request
from flask.blueprints import BlueprintSetupState
from werkzeug.exceptions import MethodNotAllowed

from ..answer import join, leave
from ..client import Client
from ..completion_answer import Chunks, Head, Whole, failure
from ..completion_request import DEFAULT_MODEL, CompletionRequest, read_completion
from ..errors import AnswerCancelled, Interrupted, ModelNotFound, NotFound
from ..journal import Entry
from ..journal.tail import Follower
from ..prompt import read_conversation_id
from ..relay import Relay
from ..sse import Done, Failure, Retrying
from ..stream import Batch, Stream, StreamResponse
from .limits import tell
from .streams import Anything, identify, read_body, read_key, uncached

routes = Blueprint("openai", __name__)

CONVERSATION = "X-Conversation-Id"
# What OpenAI's own clients send from a browser, beside what all of ours may.
PREFLIGHT = ", ".join(
    [
        CONVERSATION,
        *("OpenAI-Beta", "OpenAI-Organization", "OpenAI-Project"),
        *(f"X-Stainless-{name}" for name in ("Arch", "Async", "Helper-Method", "Lang", "OS", "Package-Version")),
        *(f"X-Stainless-{name}" for name in ("Poll-Helper", "Retry-Count", "Runtime", "Runtime-Version", "Timeout")),
    ]
)
CLIENT_GONE = 499  # nginx's own, for logs
ELSEWHERE = "/v1/<whatever:rest>"  # in no document: nothing is there
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "TRACE")
ALLOW, EXPOSE = "Access-Control-Allow-Headers", "Access-Control-Expose-Headers"


class Whatever(Anything):
    """The same with line ends."""

    regex = "(?s:.+?)"
    part_isolating = False  # Werkzeug takes it back for each regex of its own without a slash in it


@routes.record
def know_converter(state: BlueprintSetupState) -> None:
    """Before the routes below are added: Flask does it all in the order in which it stands here."""
    state.app.url_map.converters["whatever"] = Whatever


@routes.post("/v1/chat/completions")
def complete_chat() -> Response:
    """Asks the gateway and answers with OpenAI's chunks, or with one whole answer."""
    relay = Relay.of(current_app)
    asked, entry = ask(relay)
    model = asked.model or relay.settings.gateway_model or DEFAULT_MODEL
    head = Head(entry.id, int(entry.began), model)
    client = Client(request.environ)
    # Such a client knows no cursor: it cannot come back to another worker.
    follower = relay.turns.follow(entry, 0, can_return=False)

    join(follower, client)
    try:
        if asked.stream:
            response = stream(follower, client, Chunks(head, asked.include_usage))
        else:
            response = whole(follower, Whole(head))
    except BaseException:
        leave(relay.turns, follower, client)
        raise
    response.call_on_close(partial(leave, relay.turns, follower, client))
    return response


@routes.get("/v1/models")
def list_models() -> Response:
    """The one model that is there for certain; the gateway may know others by name."""
    relay = Relay.of(current_app)
    identify(relay)
    return uncached(jsonify(object="list", data=[shown(relay.settings.gateway_model or DEFAULT_MODEL)]))


@routes.get("/v1/models/<whatever:model>")
def get_model(model: str) -> Response:
    relay = Relay.of(current_app)
    identify(relay)
    if model not in (relay.settings.gateway_model, DEFAULT_MODEL):
        raise ModelNotFound
    return uncached(jsonify(shown(model)))


def shown(model: str) -> dict[str, str | int]:
    return {"id": model, "object": "model", "created": 0, "owned_by": "gateway"}


@routes.route(ELSEWHERE, methods=METHODS)
def refuse_rest(rest: str) -> Response:
    """What these clients can ask for and is not here is refused in their shape as well, not in an app's or in ours."""
    if allowed := allowed_here():
        raise MethodNotAllowed(allowed)
    raise NotFound("Of OpenAI's API only POST /v1/chat/completions and GET /v1/models are here.")


def allowed_here() -> list[str]:
    """The methods of the address at hand that lead anywhere."""
    adapter = current_app.create_url_adapter(request)
    assert adapter is not None
    nowhere = f"{request.blueprint}.{refuse_rest.__name__}"
    return [method for method in METHODS if adapter.match(method=method)[0] != nowhere]


@routes.after_request
def allow_what_is_here(response: Response) -> Response:
    """Flask's own answer to OPTIONS counts `refuse_rest` as well."""
    if request.method == "OPTIONS" and "Allow" in response.headers:
        response.headers["Allow"] = ", ".join([*allowed_here(), "OPTIONS"])
    return response


@routes.after_request
def allow_their_headers(response: Response) -> Response:
    for name, more in ((ALLOW, PREFLIGHT), (EXPOSE, "X-Request-Id, X-Should-Retry")):
        if name in response.headers:
            response.headers[name] += f", {more}"
    return response


def ask(relay: Relay) -> tuple[CompletionRequest, Entry]:
    """Begins what the request asks for; an Idempotency-Key that came before leads to what it began."""
    caller = identify(relay)
    body = read_body(relay)
    asked = read_completion(body)
    named = read_conversation_id(request.headers.get(CONVERSATION), f"`{CONVERSATION}`")
    # Without a conversation the answer goes into no transcript: these clients cannot be expected to know of one.
    conversation_id = asked.prompt.conversation_id or named or relay.settings.default_conversation_id
    # The header is as much a part of the question as the body is.
    key = read_key(body if named is None else b"%b\0%b" % (body, named.encode()))
    started = relay.begin(asked.prompt, conversation_id, caller, key)
    tell(started.standing)
    tell_id(started.entry.id)
    return asked, started.entry


def tell_id(turn_id: str) -> None:
    """Adds the turn's id to the response, be it an error."""

    @after_this_request
    def add(response: Response) -> Response:
        response.headers["X-Request-Id"] = response.headers["X-Stream-Id"] = turn_id
        if response.status_code >= 400:
            # The gateway was asked again where that was right; asked again from here, it would be paid for twice.
            response.headers["X-Should-Retry"] = "false"
        return response


def stream(follower: Follower, client: Client, chunks: Chunks) -> Response:
    """The status waits for the first event, so that a question that fails has one; but for no longer than a ping."""
    batches = iter(follower)
    first: Batch = []
    for first in batches:
        if not first or any(type(event) is not Retrying for event in first):
            break
    refuse_without_answer(first)
    return StreamResponse(Stream(follower, client, chunks.encode, batches=chain([first], batches)))


def refuse_without_answer(batch: Batch) -> None:
    """Raises why there is none, where there is none."""
    match [event for event in batch if type(event) is not Retrying]:
        case [Failure() as failed, *_]:
            raise failure(failed)
        case [Done(status="cancelled")]:
            raise AnswerCancelled


def whole(follower: Follower, answer: Whole) -> Response:
    """The answer in one piece. Raises what it ended with."""
    ended = False
    for batch in follower:
        answer.add(batch)
        ended = bool(batch) and type(batch[-1]) is Done
    if not ended:
        if follower.closed:
            return Response(status=CLIENT_GONE)  # to no one, so no one has been refused
        raise Interrupted  # the journal has forgotten the answer
    return uncached(jsonify(answer.finish()))
