"""The process's one access token: cached, fetched once for all who wait, renewed before it ends.

OAuth 2.0 client credentials (RFC 6749, 4.4).
"""

import json
import logging
import math
import os
import time
from collections.abc import Callable
from random import random
from typing import NamedTuple

import gevent
import requests
from gevent.event import AsyncResult
from urllib3.exceptions import HTTPError

from . import metrics
from .backoff import MAX_RETRY_AFTER, full_jitter, retry_after
from .errors import CredentialsError, CredentialsRejected, CredentialsUnavailable
from .telemetry import hide

log = logging.getLogger(__name__)

TIMEOUT = (5.0, 10.0)  # seconds to connect, and between two bytes of the answer
WHOLE_TIMEOUT = 20.0  # seconds for one try
TRIES = 3
AHEAD = 60.0  # seconds before its end that a token is renewed, or a tenth of its life when that is shorter
DEFAULT_LIFE = 300.0  # seconds; for an answer without a usable expires_in
MAX_LIFE = 48 * 3600.0  # seconds; the longest that Genesys Cloud gives
MAX_ANSWER = 64 * 1024  # bytes
LEAST_WAIT = 0.5  # seconds between two renewals, whatever life a token is said to have
REFUSED_AGAIN = 5.0  # seconds in which a place that refuses the new token as well does not get another one
RENEW_AGAIN = 5.0  # seconds after a renewal ahead of time that failed; the old token still works
CORRELATION = "ININ-Correlation-Id"  # Genesys support asks for it


class Token(NamedTuple):
    value: str
    ends: float  # seconds of the monotonic clock

    def __repr__(self) -> str:
        return "Token([hidden])"


class Credentials:
    """Hands out access tokens. Greenlets only: the first that needs a token makes all others wait for its call."""

    def __init__(self, url: str, client_id: str, client_secret: str, scope: str) -> None:
        self._url = url
        self._form = {
            "grant_type": "client_credentials",
            "client_id": client_id,
            "client_secret": client_secret,
            "scope": scope,
        }
        self._session = requests.Session()
        # REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE go first, as in tls.py: `requests` sees to that itself.
        self._session.verify = os.environ.get("SSL_CERT_FILE") or True
        self._token: Token | None = None
        self._renewable = -math.inf  # monotonic seconds; before that, what refuses the token refuses any
        self._fetching: AsyncResult[str] | None = None
        self._renewal: gevent.Greenlet[..., None] | None = None

    def token(self) -> str:
        """A token that is good now. Waits only while there is none.

        Raises CredentialsRejected or CredentialsUnavailable.
        """
        token = self._token
        if token is not None and time.monotonic() < token.ends:
            return token.value
        return self._fetch_once()

    @property
    def at_hand(self) -> bool:
        """Whether `token` would return at once."""
        return self._token is not None and time.monotonic() < self._token.ends

    def renew(self, refused: str) -> str:
        """A token in place of `refused`, which the platform has answered with 401. Raises as `token` does.

        Until the new one is there, all others keep the old one: a place that refuses every token, during an outage of
        the login, must not take away one that is good elsewhere. For the same reason a token that has just replaced
        a refused one is returned as it is.
        """
        token = self._token
        if token is None or token.value != refused or time.monotonic() < self._renewable:
            return self.token()
        value = self._fetch_once()
        self._renewable = time.monotonic() + REFUSED_AGAIN
        return value

    def close(self) -> None:
        if self._renewal is not None:
            self._renewal.kill(block=False)
        self._session.close()

    def _fetch_once(self) -> str:
        # A greenlet of its own makes the call: who asked first may be cancelled, and the others still get the token.
        if self._fetching is None:
            self._fetching = AsyncResult()
            gevent.spawn(self._fetch_for_all, self._fetching)
        token: str = self._fetching.get()
        return token

    def _fetch_for_all(self, waiting: "AsyncResult[str]") -> None:
        try:
            token = self._fetch()
            self._accept(token)
            waiting.set(token.value)
        except CredentialsError as error:
            log.error("no access token", extra={"code": error.code, "detail": error.detail})  # noqa: TRY400
            waiting.set_exception(error)
        except Exception as error:
            log.exception("no access token")
            waiting.set_exception(CredentialsUnavailable(detail=type(error).__name__))
        finally:
            self._fetching = None

    def _accept(self, token: Token) -> None:
        hide(token.value)
        self._token = token
        if self._renewal is None or self._renewal.dead:
            self._renewal = gevent.spawn(self._keep_fresh)

    def _keep_fresh(self) -> None:
        """Renews each token ahead of its end, so that no request waits for it."""
        while (token := self._token) is not None:
            life = token.ends - time.monotonic()
            gevent.sleep(max(life - min(AHEAD, life / 10), LEAST_WAIT))
            if self._token is not token:
                continue
            try:
                self._accept(self._fetch())
            except CredentialsError as error:
                log.warning("access token not renewed", extra={"code": error.code, "detail": error.detail})
                gevent.sleep(RENEW_AGAIN)
                if time.monotonic() >= token.ends:
                    return  # the next request fetches, and starts this again

    def _fetch(self) -> Token:
        try:
            token = self._ask_patiently()
        except CredentialsError as error:
            metrics.token_fetches["rejected" if isinstance(error, CredentialsRejected) else "unavailable"].inc()
            raise
        metrics.token_fetches["ok"].inc()
        return token

    def _ask_patiently(self) -> Token:
        for attempt in range(1, TRIES + 1):
            try:
                return self._ask()
            except CredentialsUnavailable as error:
                if attempt == TRIES or (error.retry_after or 0) > MAX_RETRY_AFTER:
                    raise
                gevent.sleep(full_jitter(attempt, random) if error.retry_after is None else error.retry_after)
        raise AssertionError

    def _ask(self) -> Token:
        return read_answer(*self.ask(), time.monotonic)

    def ask(self) -> tuple[requests.Response, bytes]:
        """One try: the answer and its body, whatever they say. Raises CredentialsUnavailable without any."""
        late = CredentialsUnavailable(detail=f"no answer within {WHOLE_TIMEOUT:.0f} s")
        try:
            with (
                gevent.Timeout(WHOLE_TIMEOUT, late),
                self._session.post(
                    self._url, data=self._form, timeout=TIMEOUT, allow_redirects=False, stream=True
                ) as response,
            ):
                body = response.raw.read(MAX_ANSWER, decode_content=True)
        except (requests.RequestException, HTTPError, OSError) as error:
            # Only the class: texts of these exceptions may quote the request.
            raise CredentialsUnavailable(detail=type(error).__name__) from None
        return response, body


def read_answer(response: requests.Response, body: bytes, clock: Callable[[], float]) -> Token:
    """The token of an answer (RFC 6749, 5.1). Raises CredentialsRejected or CredentialsUnavailable."""
    status = response.status_code
    detail = f"status={status} correlation={response.headers.get(CORRELATION, '')}"
    if status == 429 or status >= 500:
        wait = retry_after(response.headers.get("Retry-After"), time.time())
        raise CredentialsUnavailable(detail=detail, retry_after=wait)
    if status != 200:
        raise CredentialsRejected(detail=detail)
    try:
        answer = json.loads(body, parse_int=float)  # orjson takes neither NaN nor numbers of any length
        value, life = answer["access_token"], read_life(answer.get("expires_in"))
    except (ValueError, TypeError, KeyError, RecursionError):
        raise CredentialsRejected(detail=detail + " the answer holds no access token") from None
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or not value:
        raise CredentialsRejected(detail=detail + " the answer holds no usable access token")
    return Token(value, clock() + life)


def read_life(expires_in: object) -> float:
    """Seconds that a token is good for."""
    try:
        life = 0.0 if isinstance(expires_in, bool) else float(expires_in)  # type: ignore[arg-type]
    except (ValueError, TypeError, OverflowError):
        return DEFAULT_LIFE
    return min(life, MAX_LIFE) if 1 <= life < math.inf else DEFAULT_LIFE
