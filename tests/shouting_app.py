"""The relay behind middleware that changes what it answers."""

from server import create_app


class Shouting:
    def __init__(self, app):
        self.app = app

    def __call__(self, environ, start_response):
        body = self.app(environ, start_response)
        try:
            for piece in body:
                yield piece.upper()
        finally:
            if hasattr(body, "close"):
                body.close()


app = Shouting(create_app())
