"""What a route answers in place of what was asked for, by status: made of the classes in errors.py."""

from collections.abc import Iterable
from typing import Any

from ... import errors
from ...completion_answer import error_object, status_of
from ...errors import RelayError

Refusal = type[RelayError]

EVERYWHERE: tuple[Refusal, ...] = (
    errors.InternalError,
    errors.NeedsGevent,
    errors.HostNotAllowed,
    errors.AddressTooLong,
    errors.HeadersTooLarge,
)
GETTING_IN: tuple[Refusal, ...] = (errors.Unauthorized, errors.InvalidToken, errors.IssuerUnavailable)
ASKING: tuple[Refusal, ...] = (
    *GETTING_IN,
    errors.BadRequest,
    errors.InvalidJson,
    errors.ConversationRequired,
    errors.BodyTooSlow,
    errors.BodyTooLarge,
    errors.PromptTooLong,
    errors.UnsupportedMediaType,
    errors.KeyUsedOtherwise,
    errors.Forbidden,
    errors.CrossOrigin,
    errors.TooManyRequests,
    errors.TooManyTurnsOfCaller,
    errors.TooManyTurns,
    errors.Draining,
    errors.StoreUnavailable,
)
ASKING_AS_OPENAI: tuple[Refusal, ...] = tuple(kind for kind in ASKING if kind is not errors.ConversationRequired)
FINDING: tuple[Refusal, ...] = (*GETTING_IN, errors.NotFound, errors.StreamNotFound, errors.StoreUnavailable)

# What only a stream tells, once it has begun: as an event, and in the stream's JSON.
IN_STREAM: tuple[Refusal, ...] = (
    errors.InternalError,
    errors.Interrupted,
    errors.TurnTimedOut,
    errors.CredentialsRejected,
    errors.CredentialsUnavailable,
    errors.GatewayRejected,
    errors.GatewayForbidden,
    errors.GatewayUnauthorized,
    errors.RateLimited,
    errors.GatewayUnavailable,
    errors.GatewayStalled,
    errors.AnswerCut,
    errors.AnswerMalformed,
    errors.AnswerFailed,
    errors.AnswerTooLong,
)
# The same as the answer to a question whose answer does not come as a stream of ours.
COMPLETING: tuple[Refusal, ...] = (*ASKING_AS_OPENAI, *IN_STREAM, errors.AnswerCancelled)
STREAM_CODES = sorted(kind.code for kind in IN_STREAM)

SENTENCE = {"type": "string", "description": "what happened and what to do, for people"}
RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 0}}}
RATE = {
    f"RateLimit-{name}": {"description": f"{meaning}; absent without RATE_LIMIT", "schema": {"type": "integer"}}
    for name, meaning in {
        "Limit": "turns in its window",
        "Remaining": "how many of them are left",
        "Reset": "seconds until there is one more",
    }.items()
}
HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}},
    429: RETRY_AFTER | RATE,
    503: RETRY_AFTER,
}


def refusals(*kinds: Refusal, as_openai: bool = False) -> dict[str, Any]:
    """The responses that these errors make, by status; those of one status are one response."""
    by_status: dict[int, list[Refusal]] = {}
    statuses = {kind: status_of(kind) if as_openai else kind.status for kind in kinds}
    for kind, status in sorted(statuses.items(), key=lambda item: (item[1], item[0].code)):
        by_status.setdefault(status, []).append(kind)
    make = refusal_as_openai if as_openai else refusal
    return {str(status): make(status, same) for status, same in by_status.items()}


def refusal(status: int, kinds: Iterable[Refusal]) -> dict[str, Any]:
    codes = {kind.code: kind.sentence for kind in kinds}
    properties = {"error": SENTENCE, "code": {"enum": list(codes), "description": "the same for programs"}}
    return response(status, codes.items(), closed(properties))


def refusal_as_openai(status: int, kinds: Iterable[Refusal]) -> dict[str, Any]:
    """Under the names that OpenAI's clients know; one name may stand for several of ours."""
    told = [(error_object(kind(0, 0) if kind is errors.TooManyRequests else kind())["error"], kind) for kind in kinds]
    properties = {
        "message": SENTENCE,
        "type": {"enum": sorted({error["type"] for error, _ in told}), "description": "the family, for programs"},
        "param": {"type": "null"},
        "code": {"enum": sorted({error["code"] for error, _ in told}), "description": "the kind, for programs"},
    }
    codes = [(error["code"], kind.sentence) for error, kind in told]
    return response(status, codes, closed({"error": closed(properties)}))


def closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(properties),
        "properties": properties,
        "additionalProperties": False,
    }


def response(status: int, codes: Iterable[tuple[str, str]], schema: dict[str, Any]) -> dict[str, Any]:
    found = {
        "description": "\n".join(f"- `{code}`: {sentence}" for code, sentence in codes),
        "content": {"application/json": {"schema": schema}},
    }
    return found | ({"headers": HEADERS[status]} if status in HEADERS else {})
