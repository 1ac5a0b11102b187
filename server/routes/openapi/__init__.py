"""The API as an OpenAPI 3.1 document, for client generators and for the tests, which hold the server to it.

shapes.py    what goes in and comes out
refusals.py  what else can come out, made of the classes in errors.py
paths.py     the routes
"""

from typing import Any

from flask import Blueprint, Response, jsonify, request

from ...errors import MethodNotAllowed
from ...version import VERSION
from .paths import PATHS
from .refusals import refusals
from .shapes import SHAPES

routes = Blueprint("openapi", __name__)

DESCRIPTION = """\
Asks the LLM gateway of a Genesys Cloud organisation, and streams its answer as Server-Sent Events.

Each refusal before a stream begins is JSON: `{"error": sentence, "code": code}`. What goes wrong later is an event of
that shape. A method that a path does not have is answered with 405.

The schema of a media type `text/event-stream` is that of each of its events: OpenAPI 3.1 has no other place for it.
Ids rise by one; an event without an id is not kept, and does not come again.

A server with `ACCESS=open` asks for no key, token or ticket."""


@routes.get("/openapi.json")
def show_document() -> Response:
    """The document. No one is asked for a key: it says nothing that the source does not."""
    place = (request.script_root + request.path).removesuffix("/openapi.json")
    return jsonify(document(place))


def document(place: str = "") -> dict[str, Any]:
    """The whole document, as JSON would hold it; `place` is the path where the relay is mounted."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Genesys SSE relay",
            "version": VERSION,
            "description": DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": place or "/"}],
        "paths": PATHS,
        "components": {
            "schemas": SHAPES,
            "responses": {"method_not_allowed": refusals(MethodNotAllowed)["405"]},
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key from the operator, or a JSON Web Token of the identity provider.",
                },
                "ticket": {
                    "type": "apiKey",
                    "in": "query",
                    "name": "ticket",
                    "description": "Stands in the `url` of a stream; is good for this one, and for some minutes.",
                },
            },
        },
    }
