"""The LLM gateway: asks, retries while no token has come, and passes the answer's deltas on as they arrive.

Plain blocking code. There is no timer a read: whoever drives an answer watches `silent_since` and the turn's deadline,
and throws GatewayStalled or TurnTimedOut into the greenlet that reads.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from random import random
from typing import Any, Protocol, TypeVar

import gevent
import orjson
from geventhttpclient.response import HTTPParseError

from . import metrics
from .backoff import MAX_RETRY_AFTER, full_jitter, retry_after
from .chunks import Broken, ChunkReader, Delta
from .connections import Answer, Connections
from .credentials import CORRELATION, Credentials
from .errors import (
    AnswerCut,
    AnswerMalformed,
    GatewayError,
    GatewayForbidden,
    GatewayRejected,
    GatewayUnauthorized,
    GatewayUnavailable,
    RateLimited,
    RelayError,
    TurnTimedOut,
)
from .prompt import Message, Prompt
from .settings import Settings
from .spans import Span
from .sse import Retrying

E = TypeVar("E", bound=GatewayError)

log = logging.getLogger(__name__)

LINGER = 1.0  # seconds to wait for the end of a body after [DONE]
FINISH_WAIT = 2.0  # seconds after finish_reason for usage and [DONE], which need not come
RETRYABLE = (RateLimited, GatewayUnavailable, AnswerCut)  # and only before the first text


class Taker(Protocol):
    """Gets an answer's deltas in order, all that have arrived at once."""

    def take(self, deltas: Sequence[Delta | Retrying]) -> None:
        """A Retrying comes before each wait for another try. May wait."""

    def take_now(self, deltas: Sequence[Delta], now: float) -> bool:
        """The same, called where it must not wait (in the hub, as a rule): False where it would have to, and has taken
        nothing.

        `now` is in seconds of the monotonic clock.
        """


class Gateway:
    """One organisation's gateway. `connections` bounds those that are kept open without an answer under way."""

    def __init__(self, settings: Settings, credentials: Credentials | None, connections: int) -> None:
        """`credentials` may be None where GATEWAY_API_KEY is set. Raises SettingsError for an unusable proxy."""
        self._settings = settings
        self._credentials = credentials
        self._connections = Connections(settings.genesys_gateway_url, keep=connections)

    def open_chat(self, prompt: Prompt, turn_id: str, deadline: float, span: Span) -> "Chat":
        """A question, not asked before its answer is read. `deadline` is in seconds of the monotonic clock."""
        return Chat(self, prompt, turn_id, deadline, span)

    def close(self) -> None:
        self._connections.close()

    def access_token(self) -> str:
        """The bearer to send."""
        if self._settings.gateway_api_key is not None:
            return self._settings.gateway_api_key.get_secret_value()
        assert self._credentials is not None
        return self._credentials.token()

    def other_token(self, refused: str) -> str | None:
        """A bearer in place of one that was refused; None where there is but one."""
        if self._settings.gateway_api_key is not None or self._credentials is None:
            return None
        return self._credentials.renew(refused)

    @property
    def tries(self) -> int:
        return self._settings.gateway_max_retries

    def body(self, prompt: Prompt) -> bytes:
        """The request's JSON, in OpenAI's chat completion shape."""
        messages = prompt.messages
        if self._settings.gateway_system_prompt:
            messages = (Message("system", self._settings.gateway_system_prompt), *messages)
        fields: dict[str, Any] = {**prompt.more, "messages": messages, "stream": True}
        if prompt.temperature is not None:
            fields["temperature"] = prompt.temperature
        elif not prompt.as_asked or "gateway_temperature" in self._settings.model_fields_set:
            fields["temperature"] = self._settings.gateway_temperature
        if prompt.max_tokens is not None:
            fields["max_tokens"] = prompt.max_tokens
        if model := prompt.model or self._settings.gateway_model:
            fields["model"] = model
        return orjson.dumps(fields)

    def post(self, body: bytes, token: str, trace: Mapping[str, str]) -> Answer:
        """Sends one request, with the headers of its trace, and returns the answer once its head is there.

        Raises GatewayUnavailable.
        """
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
            "Accept": "application/x-ndjson",
            **trace,
        }
        try:
            return self._connections.post(headers, body)
        except (OSError, HTTPParseError, ValueError) as error:
            # Only the class: texts may quote the request. ValueError: a token that no header can hold.
            raise GatewayUnavailable(detail=type(error).__name__) from None


class Chat:
    """One question and its answer."""

    def __init__(self, gateway: Gateway, prompt: Prompt, turn_id: str, deadline: float, span: Span) -> None:
        self.silent_since: float | None = None  # monotonic seconds, while the gateway's next byte is awaited
        self.retries = 0
        self.correlation: str | None = None  # of the last answer
        self._span = span
        self._gateway = gateway
        self._body = gateway.body(prompt)
        self._turn_id = turn_id
        self._deadline = deadline
        self._started = False
        self._done = False
        self._finish_by: float | None = None  # set by the finish_reason
        self._response: Answer | None = None

    def read(self, taker: Taker) -> None:
        """Asks, and returns once `taker` has the whole answer; may be done once.

        Tries again (429, 5xx, no connection, cut off) only as long as no text has come.
        Raises GatewayError or CredentialsError.
        """
        for attempt in range(1, self._gateway.tries + 1):
            try:
                self._try(attempt, taker)
                return
            except RETRYABLE as error:
                self._drop_response()
                if self._started:
                    raise
                wait = full_jitter(attempt, random) if error.retry_after is None else error.retry_after
                patience = min(MAX_RETRY_AFTER, self._deadline - time.monotonic())
                if attempt == self._gateway.tries or wait > patience:
                    raise without_answer(error) from None
                self._note_retry(attempt, wait, error)
                taker.take([Retrying(wait, error.code)])
                gevent.sleep(wait)

    def close(self) -> None:
        """Gives the connection back where it can be used again, else closes it; may wait for LINGER."""
        response = self._response
        if response is not None and self._done:
            # What follows [DONE] must be read, or the connection cannot be used again.
            with gevent.Timeout(LINGER, False), suppress(AnswerCut):
                while read_some(response):
                    pass
        self._drop_response()

    def _drop_response(self) -> None:
        if self._response is not None:
            self._response.release()
            self._response = None

    def _try(self, attempt: int, taker: Taker) -> None:
        span = self._span.child("chat", {"gen_ai.operation.name": "chat", "relay.attempt": attempt})
        failed = None
        try:
            self._response = response = self._ask(span)
            self._pass_on(response, taker)
        except RelayError as error:
            failed = error.code
            raise
        finally:
            span.end(failed)

    def _pass_on(self, response: Answer, taker: Taker) -> None:
        refuse_other_content(response)
        reader = ChunkReader()
        try:
            while not reader.done:
                if not reader.finished and not response.ended:
                    self._drive(response, reader, taker)
                elif data := self._read_after_finish(response):
                    self._take(reader.feed(data), taker)
                else:
                    self._take(reader.end(), taker)
                    return
        except Broken as broken:
            self._take(broken.deltas, taker)
            raise with_correlation(broken.reason, response) from None
        self._done = True

    def _drive(self, response: Answer, reader: ChunkReader, taker: Taker) -> None:
        """Passes on in the hub what arrives, until something must be waited for, or the answer is whole.

        Raises Broken, AnswerCut or TurnTimedOut.
        """
        late: list[Delta] = []

        def take_now(data: bytes) -> bool:
            nonlocal late
            self.silent_since = now = time.monotonic()
            deltas = reader.feed(data)
            if self._started and (not deltas or taker.take_now(deltas, now)):
                return not reader.finished and not reader.done
            late = deltas
            return False

        self.silent_since = time.monotonic()
        if self.silent_since > self._deadline:
            raise TurnTimedOut
        try:
            response.drive(take_now)
        except (OSError, HTTPParseError) as error:
            raise cut(error, response) from None
        finally:
            self.silent_since = None
        self._take(late, taker)

    def _take(self, deltas: Sequence[Delta], taker: Taker) -> None:
        if deltas:
            self._started = self._started or any(isinstance(delta, str) or delta.choice for delta in deltas)
            taker.take(deltas)

    def _ask(self, span: Span) -> Answer:
        """The answer's head, with a second token where the first is refused. Raises what the status means."""
        token = self._gateway.access_token()
        response = self._send(token, span)
        if response.status_code == 401:
            response.release()
            log.info("gateway refused the access token", extra=self._names | correlation(response))
            if other := self._gateway.other_token(token):
                self.retries += 1
                metrics.gateway_retries[GatewayUnauthorized.code].inc()
                span.note("retry", {"cause": GatewayUnauthorized.code})
                response = self._send(other, span)
        if response.status_code != 200:
            error = refusal(response)
            response.release()
            raise error
        return response

    def _send(self, token: str, span: Span) -> Answer:
        self.silent_since = time.monotonic()
        try:
            response = self._gateway.post(self._body, token, span.context.headers)
        finally:
            self.silent_since = None
        self.correlation = correlation(response).get("correlation")
        span.set({"http.response.status_code": response.status_code, "genesys.correlation_id": self.correlation})
        return response

    def _read_after_finish(self, response: Answer) -> bytes:
        """What has arrived once the answer is whole: a connection that breaks or goes silent now has ended it."""
        now = time.monotonic()
        if self._finish_by is None:
            self._finish_by = now + FINISH_WAIT
        if now < self._finish_by:
            with gevent.Timeout(self._finish_by - now, False), suppress(AnswerCut):
                return read_some(response)
        return b""

    def _note_retry(self, attempt: int, wait: float, error: GatewayError) -> None:
        self.retries += 1
        metrics.gateway_retries[error.code].inc()
        self._span.note("retry", {"cause": error.code, "wait": wait})
        fields = {"code": error.code, "attempt": attempt, "wait": round(wait, 2), "detail": error.detail}
        log.warning("gateway failed, trying again", extra=self._names | fields)

    @property
    def _names(self) -> dict[str, str]:
        """For log lines."""
        return {"turn": self._turn_id, "trace": self._span.context.trace_id}


def read_some(response: Answer) -> bytes:
    """What has arrived of the body; b"" at its end. Raises AnswerCut."""
    try:
        return response.read_some()
    except (OSError, HTTPParseError) as error:
        raise cut(error, response) from None


def cut(error: Exception, response: Answer) -> AnswerCut:
    return with_correlation(AnswerCut(detail=type(error).__name__), response)


def refusal(response: Answer) -> GatewayError:
    """What a status other than 200 means."""
    status = response.status_code
    detail = f"status={status}"
    wait = retry_after(header(response, "Retry-After"), time.time())
    error: GatewayError
    if status == 429:
        error = RateLimited(detail=detail, retry_after=wait)
    elif status >= 500:
        error = GatewayUnavailable(detail=detail, retry_after=wait)
    elif status == 401:
        error = GatewayUnauthorized(detail=detail)
    elif status == 403:
        error = GatewayForbidden(detail=detail)
    else:
        error = GatewayRejected(detail=detail)
    return with_correlation(error, response)


def refuse_other_content(response: Answer) -> None:
    """Raises AnswerMalformed for a web page, which is what captive portals and proxies answer."""
    if header(response, "Content-Type").startswith("text/html"):
        raise with_correlation(AnswerMalformed(detail="status=200 with a web page"), response)


def without_answer(error: GatewayError) -> GatewayError:
    """The error to end with when there is no further try: says when to come back, where the gateway has said it."""
    if isinstance(error, AnswerCut):
        return GatewayUnavailable(detail=error.detail)
    if error.retry_after is None:
        return error
    sentence = f"{error.sentence} The gateway asks to come back in {error.retry_after:.0f} seconds."
    return type(error)(sentence, detail=error.detail, retry_after=error.retry_after)


def with_correlation(error: E, response: Answer) -> E:
    error.detail = " ".join(filter(None, [error.detail, *(f"{k}={v}" for k, v in correlation(response).items())]))
    return error


def correlation(response: Answer) -> dict[str, str]:
    value = header(response, CORRELATION)
    return {"correlation": value[:80]} if value else {}


def header(response: Answer, name: str) -> str:
    value = response.get(name, "")
    return value if isinstance(value, str) else ""
