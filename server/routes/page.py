"""The web page: files from `page/`, and what its script must know."""

from pathlib import Path
from urllib.parse import urlsplit

from flask import Blueprint, Response, current_app, jsonify, send_from_directory

from ..errors import NotFound
from ..relay import Relay

PAGE = Path(__file__).parent.parent / "page"
FILES = frozenset(path.name for path in PAGE.iterdir() if path.suffix in {".js", ".css", ".svg"})

routes = Blueprint("page", __name__)


@routes.get("/")
def index() -> Response:
    response = send_from_directory(PAGE, "index.html")
    response.headers["Content-Security-Policy"] = policy(Relay.of(current_app).settings.sandbox_url)
    return response


@routes.get("/page/<name>")
def file(name: str) -> Response:
    if name not in FILES:
        raise NotFound
    return send_from_directory(PAGE, name)


@routes.get("/page/config.json")
def config() -> Response:
    relay = Relay.of(current_app)
    settings = relay.settings
    return jsonify(
        needs_key=settings.access in ("keys", "jwt"),
        # An id leads to a conversation: not for everyone.
        conversation_id=settings.default_conversation_id if relay.access.is_open else None,
        transcript=settings.transcript != "off",
        sandbox=settings.sandbox_url,
    )


@routes.after_request
def keep_fresh(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-cache"
    return response


def policy(sandbox: str | None) -> str:
    """Content-Security-Policy: everything from here, nothing else, but for the sandbox's transcript."""
    parts = urlsplit(sandbox or "")
    origin = f" {parts.scheme}://{parts.netloc}" if sandbox else ""
    return "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            f"connect-src 'self'{origin}",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )
