"""Streams a Genesys Cloud LLM gateway's answers as Server-Sent Events, and mirrors them into the transcript.

Nothing is imported up here: gunicorn.conf.py reads `server.settings` in the master process, before the worker has
patched the standard library, and `requests` must not be imported before that. What an app needs is looked up when it
asks for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

    from .access.caller import Caller
    from .errors import RelayError
    from .relay import Relay
    from .settings import Settings
    from .sse import Done, Extra, Failure, Token
else:
    PLACES = {"Relay": ".relay", "Caller": ".access.caller", "RelayError": ".errors"}
    PLACES |= dict.fromkeys(("Done", "Extra", "Failure", "Token"), ".sse")

    def __getattr__(name: str) -> type:
        if name not in PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(PLACES[name], __name__), name)


__all__ = ["Caller", "Done", "Extra", "Failure", "Relay", "RelayError", "Token", "create_app"]

WORKER_BOOT_ERROR = 3  # the exit status that makes gunicorn stop, and not start the worker again and again


def create_app(settings: "Settings | None" = None) -> "Flask":
    """The relay as an app of its own; without `settings`, those of the environment.

    A setting that cannot be right ends the process with one line.
    """
    from flask import Flask  # noqa: PLC0415 - see above

    from .relay import Relay  # noqa: PLC0415
    from .routes import complete  # noqa: PLC0415
    from .settings import SettingsError, leave, load_or_exit  # noqa: PLC0415

    app = Flask(__name__, static_folder=None)
    try:
        relay = Relay(app, settings=settings or load_or_exit(), page=True, ops=True)
    except SettingsError as error:
        leave(str(error), WORKER_BOOT_ERROR)
    if relay.settings.access == "app":
        leave(
            "ACCESS=app cannot be right: no app is here that could name callers; set keys, jwt or open",
            WORKER_BOOT_ERROR,
        )
    complete(app, shared=True)
    return app
