"""HTTP in and out; nothing else."""

import logging
import math

from flask import Blueprint, Flask, Response, jsonify
from werkzeug.exceptions import HTTPException

from ..errors import (
    BadRequest,
    BodyTooLarge,
    InternalError,
    MethodNotAllowed,
    NotFound,
    RelayError,
    Unauthorized,
    UnsupportedMediaType,
)
from . import openapi, ops, page, streams

log = logging.getLogger(__name__)

BY_STATUS: dict[int, type[RelayError]] = {
    404: NotFound,
    405: MethodNotAllowed,
    413: BodyTooLarge,
    415: UnsupportedMediaType,
}


def register(app: Flask) -> None:
    """Mounts the routes, and the refusals that go with them, on `app`; its own routes keep theirs."""
    for module in (streams, openapi, ops, page):
        register_refusals(module.routes)
        app.register_blueprint(module.routes)


def register_refusals(scaffold: Flask | Blueprint) -> None:
    scaffold.register_error_handler(RelayError, refuse)
    scaffold.register_error_handler(HTTPException, refuse_http)
    scaffold.register_error_handler(Exception, refuse_unexpected)


def refuse(error: RelayError) -> Response:
    """`{"error": sentence, "code": code}`, as every refusal before a stream begins."""
    response = jsonify(error=error.sentence, code=error.code)
    response.status_code = error.status
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after))
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = error.challenge
    response.headers["Cache-Control"] = "no-store"
    return response


def refuse_http(error: HTTPException) -> Response:
    """What Flask itself refuses, in our shape."""
    status = error.code or 500
    kind = BY_STATUS.get(status, BadRequest if status < 500 else InternalError)
    response = refuse(kind())
    response.status_code = status
    if status == 405:
        response.headers["Allow"] = dict(error.get_headers()).get("Allow", "")
    return response


def refuse_unexpected(error: Exception) -> Response:
    log.error("request broke", exc_info=error)
    return refuse(InternalError())
