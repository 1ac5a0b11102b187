"""HTTP in and out; nothing else."""

import logging
import math
from collections.abc import Callable
from functools import partial

from flask import Blueprint, Flask, Response, jsonify
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import HTTPException, default_exceptions

from .. import metrics
from ..completion_answer import error_object, status_of
from ..errors import (
    BadRequest,
    BodyTooLarge,
    InternalError,
    MethodNotAllowed,
    NotFound,
    RelayError,
    TooManyRequests,
    Unauthorized,
    UnsupportedMediaType,
)
from . import browser, openai, openapi, ops, page, streams
from .limits import headers

log = logging.getLogger(__name__)

MAX_WORDS = 200  # characters of the reason that an app gives for a refusal of its own

Refuse = Callable[[RelayError], Response]

BY_STATUS: dict[int, type[RelayError]] = {
    404: NotFound,
    405: MethodNotAllowed,
    413: BodyTooLarge,
    415: UnsupportedMediaType,
}


def register(
    app: Flask, url_prefix: str = "", *, with_openai: bool = True, with_page: bool = True, with_ops: bool = True
) -> list[Blueprint]:
    """Mounts the routes, and the refusals that go with them, on `app`; its own routes keep theirs.

    All are in one blueprint, `relay`, whose name is the only one that the app cannot have for its own. Returns it, and
    those in it, which requests belong to.
    """
    mounted = Blueprint("relay", __name__)
    wanted = ((openai, with_openai), (ops, with_ops), (page, with_page))
    inner = [module.routes for module in (streams, openapi, *(module for module, is_on in wanted if is_on))]
    for routes in inner:
        mounted.register_blueprint(routes)
    app.register_blueprint(mounted, url_prefix=url_prefix or None)
    return [mounted, *inner]


def complete(scaffold: Flask | Blueprint, *, shared: bool = False, refuse: Refuse | None = None) -> None:
    """Adds what all routes have in common: what is checked first, how they refuse.

    `shared` as for `browser.guard`; `refuse` makes the answers to errors, where they have a shape of their own.
    """
    refuse = refuse or refuse_plainly
    browser.guard(scaffold, shared=shared)
    scaffold.register_error_handler(RelayError, refuse)
    scaffold.register_error_handler(HTTPException, partial(refuse_http, refuse))
    scaffold.register_error_handler(ParseException, partial(refuse_malformed, refuse))
    scaffold.register_error_handler(Exception, partial(refuse_unexpected, refuse))


def refuse_plainly(error: RelayError) -> Response:
    """`{"error": sentence, "code": code}`, as every refusal before a stream begins."""
    metrics.note_refusal(error.code)
    response = jsonify(error=error.sentence, code=error.code)
    response.status_code = error.status
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after))
    if isinstance(error, TooManyRequests):
        response.headers.update(headers(error.limit, 0, error.retry_after or 0.0))
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = error.challenge
    response.headers["Cache-Control"] = "no-store"
    return response


def refuse_as_openai(error: RelayError) -> Response:
    """The same in the shape that OpenAI's clients read."""
    response = refuse_plainly(error)
    response.status_code = status_of(error)
    response.set_data(jsonify(error_object(error)).get_data())
    return response


def refuse_http(refuse: Refuse, error: HTTPException) -> Response:
    """What Flask refuses, or the app itself by `abort`, in our shape."""
    status = error.code or 500
    kind = BY_STATUS.get(status, BadRequest if status < 500 else InternalError)
    response = refuse(kind(own_words(error)))
    response.status_code = status
    if status == 405:
        response.headers["Allow"] = dict(error.get_headers()).get("Allow", "")
    return response


def own_words(error: HTTPException) -> str | None:
    """What the app gave to `abort`; None: what Werkzeug says of every such error."""
    words, usual = error.description, default_exceptions.get(error.code or 500, HTTPException).description
    if words == usual or not isinstance(words, str) or not words.isprintable():
        return None
    return words[:MAX_WORDS] or None


def refuse_malformed(refuse: Refuse, error: ParseException) -> Response:
    """A body that gunicorn reads, and finds to be none, only when a route asks for it."""
    return refuse(BadRequest("The body is not in chunks that this server reads."))


def refuse_unexpected(refuse: Refuse, error: Exception) -> Response:
    log.error("request broke", exc_info=error)
    return refuse(InternalError())


complete(streams.routes, shared=True)
complete(openai.routes, shared=True, refuse=refuse_as_openai)
complete(openapi.routes, shared=True)
complete(ops.routes)
complete(page.routes)
