"""Every failure that a caller can meet.

    RelayError
    ├── BadRequest                 400 bad_request
    │   ├── InvalidJson            400 invalid_json
    │   ├── ConversationRequired   400 conversation_required
    │   ├── BadCursor              400 bad_cursor
    │   ├── BodyTooSlow            408 body_too_slow
    │   ├── BodyTooLarge           413 body_too_large
    │   ├── PromptTooLong          413 prompt_too_long
    │   ├── AddressTooLong         414 address_too_long
    │   ├── UnsupportedMediaType   415 unsupported_media_type
    │   ├── HostNotAllowed         421 host_not_allowed
    │   ├── KeyUsedOtherwise       422 idempotency_key_used_otherwise
    │   └── HeadersTooLarge        431 headers_too_large
    ├── Unauthorized               401 unauthorized
    │   └── InvalidToken           401 invalid_token
    ├── Forbidden                  403 forbidden
    │   └── CrossOrigin            403 cross_origin
    ├── NotFound                   404 not_found
    ├── ModelNotFound              404 model_not_found
    ├── StreamNotFound             404 stream_not_found
    ├── MethodNotAllowed           405 method_not_allowed
    ├── AnswerCancelled            409 answer_cancelled
    ├── TooManyRequests            429 too_many_requests
    ├── TooManyTurnsOfCaller       429 too_many_turns_at_once
    ├── TooManyTurns               503 too_many_turns
    ├── ConversationBusy           503 conversation_busy
    ├── Draining                   503 draining
    ├── StoreUnavailable           503 store_unavailable
    ├── IssuerUnavailable          503 issuer_unavailable
    ├── Interrupted                503 interrupted
    ├── InternalError              500 internal_error
    ├── NeedsGevent                500 needs_gevent
    ├── TurnTimedOut               504 turn_timed_out
    ├── CredentialsError
    │   ├── CredentialsRejected    502 credentials_rejected
    │   └── CredentialsUnavailable 503 credentials_unavailable
    └── GatewayError
        ├── GatewayRejected        502 gateway_rejected
        ├── GatewayForbidden       502 gateway_forbidden
        ├── GatewayUnauthorized    502 gateway_unauthorized
        ├── RateLimited            503 rate_limited
        ├── GatewayUnavailable     503 gateway_unavailable
        ├── GatewayStalled         504 gateway_stalled
        ├── AnswerCut              502 answer_cut
        ├── AnswerMalformed        502 answer_malformed
        ├── AnswerFailed           502 answer_failed
        └── AnswerTooLong          502 answer_too_long

Each class carries `code` and `status`; `sentence` says what happened and what to do. Sentences never hold a secret or a
prompt. `detail` is for the log alone: statuses, correlation ids and names of exception classes.
"""


class RelayError(Exception):
    code = "internal_error"
    status = 500
    sentence = "Something went wrong in the relay. Try again; if it happens again, tell the operator the time."

    def __init__(self, sentence: str | None = None, *, detail: str = "", retry_after: float | None = None) -> None:
        """`retry_after` is in seconds: when it makes sense to come back."""
        super().__init__(sentence or self.sentence)
        self.sentence = sentence or self.sentence
        self.detail = detail
        self.retry_after = retry_after


class BadRequest(RelayError):
    code = "bad_request"
    status = 400
    sentence = "The request cannot be understood."


class InvalidJson(BadRequest):
    code = "invalid_json"
    sentence = "The body is not valid JSON in UTF-8."


class ConversationRequired(BadRequest):
    code = "conversation_required"
    sentence = (
        "Say which conversation this belongs to: send `conversationId`, or set DEFAULT_CONVERSATION_ID on the server."
    )


class BadCursor(BadRequest):
    code = "bad_cursor"
    sentence = (
        "`Last-Event-ID` (or `?after=`) must be the id of an event of this stream. Leave it out to read from the start."
    )


class BodyTooSlow(BadRequest):
    code = "body_too_slow"
    status = 408
    sentence = "The body did not arrive in time. Send it again."


class BodyTooLarge(BadRequest):
    code = "body_too_large"
    status = 413
    sentence = "The body is larger than this server accepts (MAX_BODY_BYTES). Send a shorter prompt."


class PromptTooLong(BadRequest):
    code = "prompt_too_long"
    status = 413
    sentence = "The prompt is too long."


class AddressTooLong(BadRequest):
    code = "address_too_long"
    status = 414
    sentence = "The address is longer than any that this server has."


class UnsupportedMediaType(BadRequest):
    code = "unsupported_media_type"
    status = 415
    sentence = "Send the body as JSON, with the header `Content-Type: application/json`."


class HostNotAllowed(BadRequest):
    code = "host_not_allowed"
    status = 421
    sentence = "This server does not go by that name. Its operator can add the name to ALLOWED_HOSTS."


class KeyUsedOtherwise(BadRequest):
    code = "idempotency_key_used_otherwise"
    status = 422
    sentence = (
        "This Idempotency-Key came with another body, or for another conversation, before. "
        "Use a new key for a new question."
    )


class HeadersTooLarge(BadRequest):
    code = "headers_too_large"
    status = 431
    sentence = (
        "The request has more headers, or longer ones, than this server takes. Send a shorter token, fewer cookies."
    )


class Unauthorized(RelayError):
    code = "unauthorized"
    status = 401
    sentence = (
        "Say who you are: send the header `Authorization: Bearer KEY`, with a key that the operator has made "
        "(`relay keys new NAME`) or a token."
    )
    challenge = "Bearer"  # for WWW-Authenticate (RFC 6750, 3)


class InvalidToken(Unauthorized):
    code = "invalid_token"
    sentence = (
        "The key or token is not known here, is not valid yet or any more, or was made for another server. "
        "Get a fresh one from whoever gave it to you."
    )
    challenge = 'Bearer error="invalid_token"'


class Forbidden(RelayError):
    code = "forbidden"
    status = 403
    sentence = (
        "This is not a conversation that you may use. Name another, or have whoever let you in allow you this one."
    )


class CrossOrigin(Forbidden):
    code = "cross_origin"
    sentence = (
        "Another site's page asks in the name of whoever is logged in here. Ask from a page of this site, or without "
        "cookies from an origin that CORS_ORIGINS names."
    )


class NotFound(RelayError):
    code = "not_found"
    status = 404
    sentence = "There is nothing at this address."


class ModelNotFound(RelayError):
    code = "model_not_found"
    status = 404
    sentence = "Only the gateway's own model is known here. Any other can be asked by its name, if the gateway has it."


class StreamNotFound(RelayError):
    code = "stream_not_found"
    status = 404
    sentence = "There is no such stream, or its time of retention is over (RETAIN_SECONDS). Ask again."


class MethodNotAllowed(RelayError):
    code = "method_not_allowed"
    status = 405
    sentence = "This address does not take that method."


class AnswerCancelled(RelayError):
    code = "answer_cancelled"
    status = 409
    sentence = "The answer was cancelled before it was finished."


class TooManyRequests(RelayError):
    code = "too_many_requests"
    status = 429
    sentence = (
        "You have asked as often as this server lets a caller (RATE_LIMIT). "
        "Ask again after the seconds that `Retry-After` names."
    )

    def __init__(self, limit: int, retry_after: float) -> None:
        """`limit` is how many turns the rate allows; `retry_after` is in seconds."""
        super().__init__(retry_after=retry_after)
        self.limit = limit


class TooManyTurnsOfCaller(RelayError):
    code = "too_many_turns_at_once"
    status = 429
    sentence = (
        "As many of your answers are being made as this server makes for a caller at once (MAX_TURNS_PER_CALLER). "
        "Wait for one to end, or cancel one."
    )


class TooManyTurns(RelayError):
    code = "too_many_turns"
    status = 503
    sentence = "The server is busy with as many answers as it can hold (MAX_TURNS). Try again in a moment."


class ConversationBusy(RelayError):
    code = "conversation_busy"
    status = 503
    sentence = (
        "An answer of this conversation still runs, and could not be ended in time. Repeat this to erase the rest."
    )


class Draining(RelayError):
    code = "draining"
    status = 503
    sentence = "This worker is stopping. Try again at once: another one takes over."


class StoreUnavailable(RelayError):
    code = "store_unavailable"
    status = 503
    sentence = "The server cannot keep answers right now (STORE_URL: full, read-only or out of reach). Try again soon."


class IssuerUnavailable(RelayError):
    code = "issuer_unavailable"
    status = 503
    sentence = "The keys that tokens are checked with cannot be fetched (JWT_JWKS_URL). Try again in a moment."


class Interrupted(RelayError):
    code = "interrupted"
    status = 503
    sentence = "The server had to stop before the answer was finished. Ask again."


class InternalError(RelayError):
    pass


class NeedsGevent(RelayError):
    code = "needs_gevent"
    status = 500
    sentence = (
        "The relay cannot work in a server that runs each request in a thread. Run the app with gunicorn's worker "
        "class server.worker.Worker."
    )


class TurnTimedOut(RelayError):
    code = "turn_timed_out"
    status = 504
    sentence = "The answer was not finished within the time limit (GATEWAY_TIMEOUT). Ask for a shorter answer."


class CredentialsError(RelayError):
    """No access token could be had."""


class CredentialsRejected(CredentialsError):
    code = "credentials_rejected"
    status = 502
    sentence = (
        "Genesys Cloud refused this server's OAuth client. "
        "Check OAUTH_CLIENT_ID, OAUTH_CLIENT_SECRET, OAUTH_SCOPE and GENESYS_OAUTH_URL."
    )


class CredentialsUnavailable(CredentialsError):
    code = "credentials_unavailable"
    status = 503
    sentence = "Genesys Cloud's login could not be reached. Try again in a moment."


class GatewayError(RelayError):
    """The gateway gave no answer, or not a whole one."""


class GatewayRejected(GatewayError):
    code = "gateway_rejected"
    status = 502
    sentence = "The gateway refused the request. Check GENESYS_GATEWAY_URL, GATEWAY_MODEL and what was asked."


class GatewayForbidden(GatewayError):
    code = "gateway_forbidden"
    status = 502
    sentence = "This server's OAuth client may not use the gateway. Give it the scope ai:llm:gateway (OAUTH_SCOPE)."


class GatewayUnauthorized(GatewayError):
    code = "gateway_unauthorized"
    status = 502
    sentence = (
        "The gateway refused this server's access token, a fresh one too. Check the OAuth client or GATEWAY_API_KEY."
    )


class RateLimited(GatewayError):
    code = "rate_limited"
    status = 503
    sentence = "The gateway is busy and asks to slow down. Try again later."


class GatewayUnavailable(GatewayError):
    code = "gateway_unavailable"
    status = 503
    sentence = "The gateway could not be reached or is out of order. Try again in a moment."


class GatewayStalled(GatewayError):
    code = "gateway_stalled"
    status = 504
    sentence = "The gateway stopped sending (GATEWAY_IDLE_TIMEOUT). Ask again."


class AnswerCut(GatewayError):
    code = "answer_cut"
    status = 502
    sentence = "The gateway broke off in the middle of the answer. Ask again."


class AnswerMalformed(GatewayError):
    code = "answer_malformed"
    status = 502
    sentence = "The gateway sent something that is not a chat stream. Ask again, or check GENESYS_GATEWAY_URL."


class AnswerFailed(GatewayError):
    code = "answer_failed"
    status = 502
    sentence = "The model reported an error and gave up on the answer. Ask again."


class AnswerTooLong(GatewayError):
    code = "answer_too_long"
    status = 502
    sentence = "The answer grew beyond what this server holds. Ask for a shorter one."
