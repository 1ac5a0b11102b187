"""The routes: what each takes and answers. `refusals.py` has what they refuse."""

from collections.abc import Sequence
from typing import Any

from ...errors import (
    BadCursor,
    BadRequest,
    ConversationBusy,
    CrossOrigin,
    Forbidden,
    ModelNotFound,
    NotFound,
    StoreUnavailable,
)
from ...prompt import MAX_CONVERSATION_ID
from ..streams import MAX_CURSOR_DIGITS, MAX_KEY
from .refusals import ASKING, COMPLETING, EVERYWHERE, FINDING, GETTING_IN, RATE, Refusal, refusal, refusals
from .shapes import ID, STRING, Shape, ref

JSON = "application/json"
HEADER: Shape = {"required": True, "schema": STRING}
BEARER: list[Shape] = [{"bearer": []}]
BEARER_OR_TICKET: list[Shape] = [{"bearer": []}, {"ticket": []}]
NOBODY: list[Shape] = []  # no one is asked who they are

SSE = {"text/event-stream": {"schema": ref("Event")}}
SSE_HEADERS = {
    "X-Stream-Id": HEADER | {"description": "the stream's id; log lines have it as well"},
    "Cache-Control": HEADER,
    "X-Accel-Buffering": HEADER | {"description": "`no`: nginx passes each event on at once"},
}
QUESTION = {"required": True, "content": {JSON: {"schema": ref("Question")}}}
# What a response of `begin` leads to; its id is the parameter of the others.
LINKS = {
    name: {"operationId": name, "parameters": {"stream_id": "$response.body#/id"}} for name in ("follow", "cancel")
}
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": STRING | {"minLength": 1, "maxLength": MAX_KEY, "pattern": "^[!-~]([ -~]*[!-~])?$"},
    "description": "Of your choice: the same key again, with the same body, leads to the stream that it began before.",
}
CURSOR = {"type": "integer", "minimum": 0, "maximum": 10**MAX_CURSOR_DIGITS - 1}
CURSORS = [
    {
        "name": "Last-Event-ID",
        "in": "header",
        "schema": CURSOR,
        "description": "The last event that you have. The stream goes on behind it.",
    },
    {"name": "after", "in": "query", "schema": CURSOR, "description": "The same, for who cannot send headers."},
]
CONVERSATION = {
    "name": "X-Conversation-Id",
    "in": "header",
    "schema": STRING | {"minLength": 1, "maxLength": MAX_CONVERSATION_ID, "pattern": "^[!-~]([ -~]*[!-~])?$"},
    "description": "The same as `metadata.conversation_id`, which goes first.",
}
REQUEST_ID = {"X-Request-Id": HEADER | {"description": "the stream's id: the answer is at `/streams/{id}` as well"}}
STREAM_ID = {"name": "stream_id", "in": "path", "required": True, "schema": ID}
CONVERSATION_ID = {
    "name": "conversation_id",
    "in": "path",
    "required": True,
    "schema": STRING | {"minLength": 1},
    "description": "as it was asked with; a slash may be in it, as `%2F` too",
}


def content(kind: str, shape: Shape = STRING) -> Shape:
    return {"content": {kind: {"schema": shape}}}


def operation(
    name: str,
    does: str,
    security: list[Shape],
    responses: Shape,
    refused: Sequence[Refusal] = (),
    as_openai: bool = False,
    **more: Any,
) -> Shape:
    """`refused`: what this one refuses, beside what every one does; `as_openai`: in the shape of their errors."""
    return {
        "operationId": name,
        "summary": does,
        "security": security,
        **more,
        "responses": responses | refusals(*EVERYWHERE, *refused, as_openai=as_openai),
    }


def file(name: str, does: str, *kinds: str, refused: Sequence[Refusal] = ()) -> Shape:
    """A file of the page; served as HTTP servers do (RFC 9110, 13 and 14)."""
    contents = {"content": {kind: {"schema": STRING} for kind in kinds}}
    responses = {
        "200": {"description": "The file.", **contents},
        "206": {"description": "The part that `Range` names.", **contents},
        "304": {"description": "You have it."},
        "416": refusal(416, [BadRequest]),
    }
    return operation(name, does, NOBODY, responses, refused)


PATHS: dict[str, Shape] = {
    "/stream-llm": {
        "post": operation(
            "ask",
            "Asks, and answers with the stream of tokens",
            BEARER,
            {"200": {"description": "The answer.", "headers": SSE_HEADERS | RATE, "content": SSE}},
            ASKING,
            parameters=[IDEMPOTENCY_KEY],
            requestBody=QUESTION,
        )
    },
    "/streams": {
        "post": operation(
            "begin",
            "Asks, and answers with the address to follow the answer at",
            BEARER,
            {
                "201": {
                    "description": "The stream has begun, or had begun before with this Idempotency-Key.",
                    "headers": {"Location": HEADER} | RATE,
                    "links": LINKS,
                    **content(JSON, ref("Begun")),
                }
            },
            ASKING,
            parameters=[IDEMPOTENCY_KEY],
            requestBody=QUESTION,
        )
    },
    "/streams/{stream_id}": {
        "parameters": [STREAM_ID],
        "get": operation(
            "follow",
            "Follows from the cursor on; or, with `Accept: application/json`, tells what there is so far",
            BEARER_OR_TICKET,
            {
                "200": {
                    "description": "The events behind the cursor, then live; or the state and the text.",
                    "content": SSE | {JSON: {"schema": ref("Stream")}},
                },
                "204": {"description": "It has ended, and nothing is behind the cursor. Stops an `EventSource`."},
            },
            (*FINDING, BadCursor),
            parameters=CURSORS,
        ),
        "delete": operation(
            "cancel",
            "Cancels, wherever the answer runs",
            BEARER_OR_TICKET,
            {"204": {"description": "It will end soon, or has ended."}},
            (*FINDING, CrossOrigin),
        ),
    },
    "/conversations/{conversation_id}/streams": {
        "parameters": [CONVERSATION_ID],
        "get": operation(
            "list",
            "Lists the newest of your streams of a conversation, oldest first",
            BEARER,
            {"200": {"description": "At most 100 streams.", **content(JSON, ref("Streams"))}},
            (*GETTING_IN, Forbidden, NotFound, StoreUnavailable),
        ),
    },
    "/conversations/{conversation_id}": {
        "parameters": [CONVERSATION_ID],
        "delete": operation(
            "erase",
            "Cancels and forgets all that you began in a conversation",
            BEARER,
            {"204": {"description": "Nothing of it is left here."}},
            (*GETTING_IN, Forbidden, CrossOrigin, NotFound, StoreUnavailable, ConversationBusy),
        ),
    },
    "/v1/chat/completions": {
        "post": operation(
            "complete_chat",
            "Asks, and answers as OpenAI does: with chunks, or with one whole answer",
            BEARER,
            {
                "200": {
                    "description": "The answer; a stream whose question failed ends with an `error` object instead.",
                    "headers": REQUEST_ID | RATE,
                    "content": {
                        JSON: {"schema": ref("Completion")},
                        "text/event-stream": {"schema": ref("CompletionEvent")},
                    },
                }
            },
            COMPLETING,
            as_openai=True,
            parameters=[IDEMPOTENCY_KEY, CONVERSATION],
            requestBody={"required": True, "content": {JSON: {"schema": ref("CompletionRequest")}}},
        )
    },
    "/v1/models": {
        "get": operation(
            "list_models",
            "The model that is asked where the question names none, as OpenAI lists models",
            BEARER,
            {"200": {"description": "One model.", **content(JSON, ref("Models"))}},
            GETTING_IN,
            as_openai=True,
        )
    },
    "/v1/models/{model}": {
        "parameters": [{"name": "model", "in": "path", "required": True, "schema": STRING | {"pattern": "^[!-~]+$"}}],
        "get": operation(
            "get_model",
            "The same model by its name; `default` as well",
            BEARER,
            {"200": {"description": "It.", **content(JSON, ref("Model"))}},
            (*GETTING_IN, NotFound, ModelNotFound),
            as_openai=True,
        ),
    },
    "/healthz": {
        "get": operation(
            "health",
            "Tells whether this worker takes requests",
            NOBODY,
            {
                "200": {"description": "It does.", **content(JSON, ref("Health"))},
                "503": {"description": "It stops.", **content(JSON, ref("Health"))},
            },
        )
    },
    "/readyz": {
        "get": operation(
            "readiness",
            "Tells whether this worker can answer questions: the store keeps, a token can be had, it does not stop",
            NOBODY,
            {
                "200": {"description": "It can.", **content(JSON, ref("Readiness"))},
                "503": {"description": "It cannot, and why.", **content(JSON, ref("Readiness"))},
            },
        )
    },
    "/metrics": {
        "get": operation(
            "metrics",
            "The metrics of all workers, for Prometheus",
            NOBODY,
            {
                "200": {
                    "description": "In the format that `Accept` asks for.",
                    "content": {kind: {"schema": STRING} for kind in ("text/plain", "application/openmetrics-text")},
                }
            },
        )
    },
    "/openapi.json": {
        "get": operation(
            "openapi", "This document", NOBODY, {"200": {"description": "It.", **content(JSON, {"type": "object"})}}
        )
    },
    "/": {"get": file("page", "The web page", "text/html")},
    "/page/{name}": {
        "parameters": [{"name": "name", "in": "path", "required": True, "schema": STRING | {"minLength": 1}}],
        "get": file(
            "page_file",
            "A file that the page loads",
            "text/javascript",
            "text/css",
            "image/svg+xml",
            refused=[NotFound],
        ),
    },
    "/page/config.json": {
        "get": operation(
            "page_config",
            "What the page must know of this server",
            NOBODY,
            {"200": {"description": "It.", **content(JSON, ref("PageConfig"))}},
        )
    },
}
