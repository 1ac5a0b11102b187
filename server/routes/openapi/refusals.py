"""What a route answers in place of what was asked for, by status: made of the classes in errors.py."""

from collections.abc import Iterable
from typing import Any

from ... import errors
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
STREAM_CODES = sorted(kind.code for kind in IN_STREAM)

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


def refusals(*kinds: Refusal) -> dict[str, Any]:
    """The responses that these errors make, by status; those of one status are one response."""
    by_status: dict[int, list[Refusal]] = {}
    for kind in sorted(kinds, key=lambda kind: (kind.status, kind.code)):
        by_status.setdefault(kind.status, []).append(kind)
    return {str(status): refusal(status, same) for status, same in by_status.items()}


def refusal(status: int, kinds: Iterable[Refusal]) -> dict[str, Any]:
    codes = {kind.code: kind.sentence for kind in kinds}
    response = {
        "description": "\n".join(f"- `{code}`: {sentence}" for code, sentence in codes.items()),
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["error", "code"],
                    "properties": {
                        "error": {"type": "string", "description": "what happened and what to do, for people"},
                        "code": {"enum": list(codes), "description": "the same for programs"},
                    },
                    "additionalProperties": False,
                }
            }
        },
    }
    return response | ({"headers": HEADERS[status]} if status in HEADERS else {})
