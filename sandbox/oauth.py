"""Access tokens: POST /oauth/token (RFC 6749, 4.4) and the checks at the other places."""

import asyncio
import base64
import binascii
import hmac
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from .calls import Calls
from .connection import reset, while_present
from .errors import Refusal, api_error, oauth_error
from .faults import FaultPlan, Order, retry_after_header
from .settings import Settings

SCOPES = ("ai:llm:gateway", "conversation:write", "websocket:subscribe")


@dataclass(slots=True)
class Token:
    scopes: frozenset[str]
    ends: float  # seconds of the monotonic clock


class Tokens:
    """Every token this sandbox has issued."""

    def __init__(self, life: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.life = life
        self._clock = clock
        self._tokens: dict[str, Token] = {}

    def issue(self, scopes: frozenset[str]) -> str:
        value = secrets.token_urlsafe(32)
        self._tokens[value] = Token(scopes, self._clock() + self.life)
        return value

    def issued(self) -> list[str]:
        return list(self._tokens)

    def expire_all(self) -> int:
        """Ends the life of every token; answers how many were alive."""
        now = self._clock()
        alive = [token for token in self._tokens.values() if token.ends > now]
        for token in alive:
            token.ends = now
        return len(alive)

    def require(self, value: str, *scopes: str) -> None:
        """Raises Refusal: 401 for an unknown or expired token, 403 when a scope is lacking."""
        token = self._tokens.get(value)
        if token is None:
            raise oauth_error(401, "invalid_token", "The access token is missing or not known")
        if token.ends <= self._clock():
            raise oauth_error(401, "invalid_token", "The access token has expired")
        lacking = [scope for scope in scopes if scope not in token.scopes]
        if lacking:
            raise oauth_error(403, "insufficient_scope", f"The access token lacks the scope {' '.join(lacking)}")


def bearer(request: web.Request) -> str:
    """The token of `Authorization: Bearer`, or an empty string."""
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""


class OAuth:
    def __init__(self, settings: Settings, tokens: Tokens, faults: FaultPlan, calls: Calls) -> None:
        self._settings = settings
        self._tokens = tokens
        self._faults = faults
        self._calls = calls

    async def token(self, request: web.Request) -> web.StreamResponse:
        order: Order | None = None
        try:
            scopes = await self._read(request)
            order = self._faults.take("oauth")
            response = await self._answer(request, scopes, order)
        except Refusal as refusal:
            response = refusal.response()
        except ConnectionResetError:
            response = web.Response()
            self._calls.oauth(None, order)
        else:
            self._calls.oauth(response.status, order)
            return response
        if request.transport is not None:
            self._calls.oauth(response.status, order)
        return response

    async def _read(self, request: web.Request) -> frozenset[str]:
        form = {name: str(value) for name, value in (await request.post()).items()}
        if "grant_type" not in form:
            raise oauth_error(400, "invalid_request", "The parameter grant_type is missing")
        if form["grant_type"] != "client_credentials":
            raise oauth_error(400, "unsupported_grant_type", "Only client_credentials is served here")
        client_id, secret = basic_credentials(request) or (form.get("client_id"), form.get("client_secret"))
        if not client_id or not secret:
            raise oauth_error(400, "invalid_request", "The parameters client_id and client_secret are missing")
        known = hmac.compare_digest(client_id.encode(), self._settings.client_id.encode())
        if not known or not hmac.compare_digest(secret.encode(), self._settings.client_secret.encode()):
            raise oauth_error(401, "invalid_client", "The client id or its secret is wrong")
        scopes = frozenset(form.get("scope", "").split()) or frozenset(SCOPES)
        if unknown := scopes - set(SCOPES):
            raise oauth_error(400, "invalid_scope", f"Unknown scope: {' '.join(sorted(unknown))}")
        return scopes

    async def _answer(self, request: web.Request, scopes: frozenset[str], order: Order | None) -> web.Response:
        match order.fault if order else "":
            case "error_500":
                raise api_error(500, "internal.server.error", "The request could not be completed")
            case "unavailable_503":
                raise api_error(503, "service.unavailable", "The service is unavailable", retry_after_header(order))
            case "invalid_client":
                raise oauth_error(401, "invalid_client", "The client id or its secret is wrong")
            case "refused":
                reset(request)
                raise ConnectionResetError
            case "not_json":
                return web.Response(text="<html><body>Welcome</body></html>", content_type="text/html")
            case "no_token":
                return web.json_response({"token_type": "bearer", "expires_in": math.ceil(self._tokens.life)})
            case "slow":
                await while_present(request, asyncio.sleep(order.seconds if order and order.seconds else 1.0))
        answer = {
            "access_token": self._tokens.issue(scopes),
            "token_type": "bearer",
            "expires_in": math.ceil(self._tokens.life),
            "scope": " ".join(scope for scope in SCOPES if scope in scopes),
        }
        return web.json_response(answer, headers={"Cache-Control": "no-store"})


def basic_credentials(request: web.Request) -> tuple[str, str] | None:
    """Client id and secret of HTTP Basic, None when the request carries none that can be read."""
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        client_id, _, secret = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return client_id, secret
