"""What holds of every answer because of browsers: which names lead here, who may read, what may be done with it.

A browser sends what a page of any origin wants, from inside whatever network it is in. So a request must have a name of
ours in `Host`: a stranger's name can be made to lead to 127.0.0.1 (DNS rebinding), and its pages would then count as
ours. Pages of the origins in CORS_ORIGINS may ask and read; there are no cookies, so that no page asks in the name of
someone who did not hand it a key. An app that mounts the relay has cookies, which a browser adds to what any page
sends: there, what changes something must come from the app's own pages. And nothing of ours is framed, guessed at or
run.
"""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, Flask, Response, current_app, request

from .. import surroundings
from ..errors import BadRequest, CrossOrigin, HostNotAllowed
from ..relay import Relay
from ..settings import Settings

# RFC 9110, 7.2, without what no one's server is called: a host, and maybe a port.
HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+?)\.?(:[0-9]{0,5})?", re.IGNORECASE)
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})  # RFC 9110, 9.2.1
MAX_AGE = 600  # seconds that a browser may go by a preflight, so long also for an origin that was taken away
PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, DELETE",
    "Access-Control-Allow-Headers": (
        "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Traceparent, Tracestate"
    ),
    "Access-Control-Max-Age": str(MAX_AGE),
}
EXPOSED = "X-Stream-Id, Location, Retry-After, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # addresses carry tickets
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    # Neither keeps out who asks by CORS: the first is for what is embedded without it, the second for windows.
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
KEYED_HEADERS = [(name.lower(), name, value) for name, value in HEADERS.items()]


def guard(scaffold: Flask | Blueprint, *, shared: bool = False) -> None:
    """Checks the requests of a blueprint, or those of an app that no blueprint takes, and completes the answers.

    `shared`: pages of the origins in CORS_ORIGINS may use these routes.
    """

    is_app = isinstance(scaffold, Flask)

    def is_another() -> bool:
        return is_app and request.blueprint is not None

    @scaffold.before_request
    def look() -> Response | None:
        if is_another():
            return None
        settings = Relay.of(current_app).settings
        surroundings.check()
        check_host(settings.hosts)
        check_origin(settings)
        # Before anything else: a preflight carries no key (Fetch standard, 4.8).
        is_preflight = request.method == "OPTIONS" and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in request.environ
        return Response(status=204, headers=PREFLIGHT) if shared and is_preflight and allowed_origin(settings) else None

    @scaffold.after_request
    def complete(response: Response) -> Response:
        if is_another():
            return response
        harden(response)
        if shared:
            share(response)
        return response


def harden(response: Response) -> None:
    """Adds the headers of every answer, but for those that it has; Werkzeug's own `setdefault` takes 10 µs for it."""
    present = {name.lower() for name, _ in response.headers}
    for key, name, value in KEYED_HEADERS:
        if key not in present:
            response.headers.add(name, value)


def check_host(names: tuple[str, ...] | None) -> None:
    """Raises BadRequest without a Host that can be one, HostNotAllowed for another's."""
    host = authority(request.environ)
    if host is None and request.environ["SERVER_PROTOCOL"] == "HTTP/1.0":
        return  # health checks; no browser leaves it away
    found = HOST.fullmatch(host or "")
    if found is None:
        raise BadRequest("The header `Host` must hold the name that this server was asked by.")  # RFC 9112, 3.2
    if names is not None and not any(is_called(found["name"].lower(), name) for name in names):
        raise HostNotAllowed


def authority(environ: Mapping[str, Any]) -> str | None:
    """Whom the request is for: an absolute address counts more than Host (RFC 9112, 3.2.2)."""
    target = str(environ.get("RAW_URI", ""))
    if "://" in target and not target.startswith("/"):
        return urlsplit(target).netloc
    return environ.get("HTTP_HOST")


def is_called(host: str, name: str) -> bool:
    return host == name.removeprefix(".") or (name.startswith(".") and host.endswith(name))


def allowed_origin(settings: Settings) -> str | None:
    """What `Access-Control-Allow-Origin` says to whoever asks; None: nothing."""
    origins = settings.cors_origins
    if not origins or "*" in origins:
        return "*" if origins else None
    origin = request.environ.get("HTTP_ORIGIN")
    return origin if origin in origins else None


def check_origin(settings: Settings) -> None:
    """Raises CrossOrigin for what would change something in the name of whoever is logged in to the app."""
    if settings.access == "app" and request.method not in SAFE and is_from_elsewhere(settings):
        raise CrossOrigin


def is_from_elsewhere(settings: Settings) -> bool:
    """Whether a page of another origin has sent this, and it may count for whoever is logged in here.

    Browsers say where a page is from in Sec-Fetch-Site (Fetch Metadata, W3C) where the connection is secure, else in
    Origin, whose scheme is not looked at: a proxy may have ended TLS. Programs say neither. What CORS lets in counts
    only without cookies, which is all that it lets browsers send.
    """
    origin = request.headers.get("Origin")
    site = request.headers.get("Sec-Fetch-Site")
    host = authority(request.environ)  # None: of HTTP/1.0, in which no origin is ours
    is_own = origin is None or (host is not None and urlsplit(origin).netloc == host.lower())
    if site is not None:
        is_own = site in ("same-origin", "none")
    return not is_own and ("Cookie" in request.headers or allowed_origin(settings) is None)


def share(response: Response) -> None:
    """Lets a page of an allowed origin read the answer, refusals as well; never with credentials, there are none."""
    settings = Relay.of(current_app).settings
    if not settings.cors_origins:
        return
    response.vary.add("Origin")  # for caches, whoever has asked
    origin = allowed_origin(settings)
    if origin is not None:
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = EXPOSED
