"""What goes in and comes out, as JSON Schema 2020-12."""

from typing import Any

from ... import completion_request
from ...chunks import MAX_FINISH_REASON
from ...errors import AnswerCancelled
from ...prompt import (
    MAX_CONVERSATION_ID,
    MAX_MESSAGES,
    MAX_MODEL,
    MAX_PROMPT_CHARS,
    MAX_TEMPERATURE,
    MAX_TOKENS,
    ROLES,
)
from .refusals import STREAM_CODES

Shape = dict[str, Any]

NOT_BLANK = r"[^\s\x1c-\x1f\x85]"  # as `str.strip` has it

NULL: Shape = {"type": "null"}
NUMBER: Shape = {"type": "number"}
STRING: Shape = {"type": "string"}


def ref(name: str) -> Shape:
    return {"$ref": f"#/components/schemas/{name}"}


def thing(properties: dict[str, Shape], *optional: str, closed: bool = True) -> Shape:
    """An object; what is not among the `optional` must be there, and nothing else may when it is `closed`."""
    required = [name for name in properties if name not in optional]
    shape = {"type": "object", "required": required, "properties": properties}
    return shape | {"additionalProperties": False} if closed else shape


def or_null(shape: Shape) -> Shape:
    return {"anyOf": [shape, NULL]}


def text(longest: int, what: str) -> Shape:
    """A string that is not blank."""
    return STRING | {"minLength": 1, "maxLength": longest, "pattern": NOT_BLANK, "description": what}


def one_of(names: list[str], what: str) -> Shape:
    return STRING | {"enum": names, "description": what}


def event(name: str, data: Shape, what: str) -> Shape:
    """A Server-Sent Event, as a browser tells it: `message` is one without a field `event`."""
    content = STRING | {"contentMediaType": "application/json", "contentSchema": data}
    return {"description": what, "properties": {"event": {"const": name}, "data": content}}


def choices(part: str, shape: Shape, reason: Shape) -> Shape:
    """OpenAI's list of answers; here it holds one, or none in the chunk that tells the usage."""
    choice = {"index": {"const": 0}, part: shape, "logprobs": {"type": ["object", "null"]}, "finish_reason": reason}
    return {"type": "array", "maxItems": 1, "items": thing(choice)}


ID = STRING | {"pattern": "^[A-Za-z0-9_-]{22}$"}
ADDRESS = STRING | {
    "format": "uri-reference",
    "description": "where to follow, look at and cancel the stream; with a fresh ticket, where tickets are needed",
}
FINISH_REASON = {
    "type": ["string", "null"],
    "maxLength": MAX_FINISH_REASON,
    "description": "the model's reason to end; null for an answer that did not get there",
}
USAGE = {"type": ["object", "null"], "description": "as the gateway counts"}
ENDS = ["complete", "failed", "cancelled", "interrupted"]
STATUS = one_of(["running", *ENDS], "how far the answer is")
BEGAN = NUMBER | {"description": "seconds since 1970"}
ENDED = {"type": ["number", "null"], "description": "seconds since 1970; null while it runs"}
FAILURE = {
    "error": STRING | {"description": "what happened and what to do, for people"},
    "code": one_of(STREAM_CODES, "the same for programs"),
}
PROMPT = text(MAX_PROMPT_CHARS, "the question alone; or send `messages`")
MESSAGES = {
    "type": "array",
    "minItems": 1,
    "maxItems": MAX_MESSAGES,
    "items": ref("Message"),
    "contains": {"properties": {"role": {"enum": [role for role in ROLES if role != "system"]}}},
    "description": f"the whole conversation, {MAX_PROMPT_CHARS} characters at most; one at least is not the system's",
}

CONVERSATION_ID = or_null(
    text(MAX_CONVERSATION_ID, "printable; whose transcript gets the answer. Needed, unless there is a default")
)
PARTS = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "object", "required": ["type"], "properties": {"type": STRING}},
    "description": "text, images and whatever else the gateway takes",
}
COMPLETION_MESSAGES = {
    "type": "array",
    "minItems": 1,
    "maxItems": MAX_MESSAGES,
    "items": ref("CompletionMessage"),
    "contains": {
        "properties": {
            "role": {"enum": [r for r in completion_request.ROLES if r not in completion_request.INSTRUCTING]}
        }
    },
    "description": f"the whole conversation, {MAX_PROMPT_CHARS} characters at most; one at least gives no instructions",
}
COMPLETION_HEAD = {
    "id": STRING | {"pattern": "^chatcmpl-"},
    "created": {"type": "integer", "description": "seconds since 1970"},
    "model": STRING | {"description": "as it was asked for"},
}

SHAPES: dict[str, Shape] = {
    "Question": {
        "type": "object",
        "properties": {
            "conversationId": CONVERSATION_ID,
            "prompt": or_null(PROMPT),
            "messages": or_null(MESSAGES),
            "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": MAX_TEMPERATURE},
            "max_tokens": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_TOKENS},
            "model": or_null(text(MAX_MODEL, "printable; which of the gateway's models to ask")),
        },
        "oneOf": [
            {"required": ["prompt"], "properties": {"prompt": STRING, "messages": NULL}},
            {"required": ["messages"], "properties": {"messages": {"type": "array"}, "prompt": NULL}},
        ],
        "examples": [{"conversationId": "demo", "prompt": "Where is my parcel?"}],
    },
    "Message": thing(
        {"role": one_of(list(ROLES), "who said it"), "content": text(MAX_PROMPT_CHARS, "what was said")}, closed=False
    ),
    "CompletionRequest": {
        "type": "object",
        "required": ["messages"],
        "properties": {
            "messages": COMPLETION_MESSAGES,
            "model": or_null(text(MAX_MODEL, "printable; which of the gateway's models to ask, `default` for its own")),
            "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": MAX_TEMPERATURE},
            "max_tokens": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_TOKENS},
            "stream": {"type": ["boolean", "null"]},
            "stream_options": or_null(
                {"type": "object", "properties": {"include_usage": {"type": ["boolean", "null"]}}}
            ),
            "n": {"enum": [1, None]},
            "metadata": or_null({"type": "object", "properties": {"conversation_id": CONVERSATION_ID}}),
        },
        "description": "OpenAI's; what is not named here goes on to the gateway as it came",
        "examples": [{"model": "default", "messages": [{"role": "user", "content": "Where is my parcel?"}]}],
    },
    "CompletionMessage": {
        "type": "object",
        "required": ["role"],
        "properties": {"role": one_of(list(completion_request.ROLES), "who said it")},
        "anyOf": [
            {"required": ["content"], "properties": {"content": STRING}},
            {"required": ["content"], "properties": {"content": PARTS}},
            {"properties": {"role": {"const": "assistant"}, "content": NULL}},
        ],
    },
    "Completion": thing(
        {
            "object": {"const": "chat.completion"},
            **COMPLETION_HEAD,
            "choices": choices(
                "message",
                {
                    "type": "object",
                    "required": ["role", "content", "refusal"],
                    "properties": {
                        "role": {"const": "assistant"},
                        "content": {"type": ["string", "null"]},
                        "refusal": {"type": ["string", "null"]},
                        "tool_calls": {"type": "array"},
                    },
                },
                STRING,
            ),
            "usage": USAGE,
        },
        "usage",
    ),
    "CompletionEvent": {
        "type": "object",
        "required": ["data"],
        "oneOf": [
            event("message", ref("CompletionChunk"), "a piece of the answer"),
            event("message", thing({"error": ref("CompletionError")}), "why it ends early; nothing follows"),
            {"description": "the end of a whole answer", "properties": {"data": {"const": "[DONE]"}}},
        ],
    },
    "CompletionError": thing(
        {
            "message": STRING | {"description": "what happened and what to do, for people"},
            "type": STRING,
            "param": NULL,
            "code": one_of([*STREAM_CODES, AnswerCancelled.code], "the same for programs"),
        }
    ),
    "CompletionChunk": thing(
        {
            "object": {"const": "chat.completion.chunk"},
            **COMPLETION_HEAD,
            "choices": choices("delta", {"type": "object"}, FINISH_REASON),
            "usage": USAGE,
        },
        "usage",
    ),
    "Models": thing(
        {
            "object": {"const": "list"},
            "data": {
                "type": "array",
                "items": ref("Model"),
            },
        }
    ),
    "Model": thing(
        {
            "id": STRING,
            "object": {"const": "model"},
            "created": {"type": "integer"},
            "owned_by": STRING,
        }
    ),
    "Begun": thing({"id": ID, "url": ADDRESS}),
    "Stream": thing(
        {
            "id": ID,
            "url": ADDRESS,
            "conversationId": {"type": ["string", "null"]},
            "status": STATUS,
            "text": STRING | {"description": "the answer so far"},
            "last_event_id": {"type": "integer", "minimum": 0},
            "began": BEGAN,
            "ended": ENDED,
            "transcript": or_null(ref("Delivery")),
            "finish_reason": FINISH_REASON,
            "usage": USAGE,
            **FAILURE,
        },
        "finish_reason",
        "usage",
        *FAILURE,
    ),
    "Delivery": thing(
        {
            "state": one_of(
                ["pending", "parked", "delivered", "unknown"],
                "unknown: the store is away; parked: set aside, for a reason",
            ),
            "cursor": {"type": "integer", "minimum": 0, "description": "the last event that has arrived"},
            "reason": STRING,
        },
        "cursor",
        "reason",
    ),
    "Streams": thing(
        {
            "streams": {
                "type": "array",
                "items": thing({"id": ID, "url": ADDRESS, "status": STATUS, "began": BEGAN, "ended": ENDED}),
            }
        }
    ),
    "Event": {
        "type": "object",
        "required": ["event", "data"],
        "properties": {"id": STRING | {"pattern": "^[0-9]+$", "description": "for `Last-Event-ID`"}},
        "oneOf": [
            event("message", ref("Token"), "some text of the answer"),
            event("message", ref("Failure"), "why it ends early; `done` follows"),
            event("done", ref("Done"), "the last event, always"),
            event("status", ref("Waiting"), "a new try waits; without an id"),
            event("ticket", ref("Ticket"), "where to follow from now on; without an id"),
        ],
    },
    "Token": thing({"token": STRING}),
    "Failure": thing(FAILURE),
    "Done": thing({"status": one_of(ENDS, "how it ended"), "finish_reason": FINISH_REASON, "usage": USAGE}, "usage"),
    "Waiting": thing({"state": {"const": "retrying"}, "in": NUMBER | {"description": "seconds"}, "reason": STRING}),
    "Ticket": thing({"url": ADDRESS}),
    "Health": thing(
        {
            "status": one_of(["ok", "draining"], "draining: it stops, and takes no more"),
            "worker": {"type": "integer", "description": "process id"},
            "turns": {"type": "integer", "minimum": 0, "description": "answers that run in this worker"},
            "links": {"type": "integer", "minimum": 0, "description": "conversations whose transcript it holds"},
        }
    ),
    "Check": thing(
        {
            "state": one_of(["ok", "failing"], "whether this is well"),
            "error": STRING | {"description": "what is wrong and what to do, for the operator"},
        },
        "error",
    ),
    "Readiness": thing(
        {
            "ready": {"type": "boolean"},
            "checks": thing(
                {
                    "store": ref("Check"),
                    "token": ref("Check"),
                    "drain": ref("Check"),
                }
            ),
        }
    ),
    "PageConfig": thing(
        {
            "needs_key": {"type": "boolean"},
            "conversation_id": {"type": ["string", "null"]},
            "transcript": {"type": "boolean"},
            "sandbox": {"type": ["string", "null"], "format": "uri"},
        }
    ),
}
