"""All that a relay is made of, put together; and the Flask extension that an app mounts."""

import secrets
import weakref
from typing import ClassVar

from flask import Flask, has_request_context, request

from . import tracing
from .access.caller import Caller
from .access.guard import make_access
from .credentials import Credentials
from .gateway import Gateway
from .journal.engines import open_journal
from .prompt import Prompt
from .readiness import Readiness
from .settings import Settings, secret_text
from .transcript import Transcript
from .transcript.conversation import Sink
from .transcript.platform import Platform
from .transcript.websocket import Websocket
from .turns import Key, Started, Turns


class Relay:
    """One relay; `Relay(settings).init_app(app)` mounts it on a Flask app."""

    instances: ClassVar["weakref.WeakSet[Relay]"] = weakref.WeakSet()  # those of this process, for the worker's drain

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.credentials = make_credentials(settings)
        self.gateway = Gateway(settings, self.credentials, connections=2 * settings.max_turns)
        journal = open_journal(
            settings.store_url,
            worker=secrets.token_hex(8),
            retain=settings.retain_seconds,
            retain_undelivered=settings.transcript_retain_seconds,
        )
        self.access = make_access(settings, journal.secret)
        self.turns = Turns(settings, self.gateway, journal)
        self.readiness = Readiness(self.turns, self.credentials)
        self.sink = make_sink(settings, self.credentials)
        self.transcript: Transcript | None = None
        if self.sink is not None:
            self.transcript = Transcript(journal.outbox, self.turns, self.sink, max_open=settings.max_turns)
            self.turns.mirror_into(self.transcript)
        self.instances.add(self)

    @staticmethod
    def of(app: Flask) -> "Relay":
        relay = app.extensions["relay"]
        assert isinstance(relay, Relay)
        return relay

    def init_app(self, app: Flask) -> None:
        from .routes import register  # noqa: PLC0415 - the routes need this module

        app.extensions["relay"] = self
        register(app)

    def begin(self, prompt: Prompt, conversation_id: str | None, caller: Caller, key: Key | None = None) -> Started:
        """Begins a turn and its way into the transcript; returns and raises as `Turns.start`, or Forbidden.

        Called while a request is answered, the turn belongs to the trace of that request.
        """
        caller.check(conversation_id)
        return self.turns.start(prompt, conversation_id, caller.name, key, trace_of_request())

    @property
    def busy(self) -> bool:
        """Whether a turn runs, or text is still on its way into the journal or the transcript."""
        if self.turns or not self.turns.all_kept:
            return True
        return self.transcript is not None and self.transcript.busy

    def close(self) -> None:
        """Ends what is left: turns with `interrupted`, links with a close frame."""
        self.turns.interrupt()
        self.turns.idle.wait(1)
        if self.transcript is not None:
            self.transcript.close()
        self.turns.close()
        if self.sink is not None:
            self.sink.close()
        self.gateway.close()
        self.access.close()
        if self.credentials is not None:
            self.credentials.close()


def trace_of_request() -> tracing.TraceContext | None:
    if not has_request_context():
        return None
    return tracing.read(request.headers.get("traceparent"), request.headers.get("tracestate"))


def make_credentials(settings: Settings) -> Credentials | None:
    if not settings.needs_oauth:
        return None
    return Credentials(
        settings.genesys_oauth_url,
        settings.oauth_client_id,
        secret_text(settings.oauth_client_secret),
        settings.oauth_scope,
    )


def make_sink(settings: Settings, credentials: Credentials | None) -> Sink | None:
    """The way into the transcript, if there is to be one. Raises SettingsError for a proxy that cannot be used."""
    if settings.transcript == "off":
        return None
    assert credentials is not None
    return Websocket(settings, credentials) if settings.transcript == "websocket" else Platform(settings, credentials)
