"""Refusals in the two shapes of Genesys Cloud: OAuth errors (RFC 6749, 5.2) and API errors."""

import secrets
from collections.abc import Mapping
from typing import Any

from aiohttp import web

CORRELATION = "ININ-Correlation-Id"


class Refusal(Exception):
    """An answer other than success, raised where the reason is found."""

    def __init__(self, status: int, body: dict[str, Any], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body
        self.headers = dict(headers or {})

    def response(self) -> web.Response:
        correlation = make_correlation()
        body = self.body | ({"contextId": correlation} if "contextId" in self.body else {})
        return web.json_response(body, status=self.status, headers={CORRELATION: correlation, **self.headers})


def make_correlation() -> str:
    return secrets.token_hex(16)


def oauth_error(status: int, error: str, description: str) -> Refusal:
    headers = {"WWW-Authenticate": f'Bearer error="{error}"'} if status == 401 else {}
    return Refusal(status, {"error": error, "error_description": description}, headers)


def api_error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Refusal:
    body = {"message": message, "code": code, "status": status, "contextId": "", "details": [], "errors": []}
    return Refusal(status, body, headers)


def bad_request(message: str) -> Refusal:
    return api_error(400, "bad.request", message)
