"""All that a relay is made of, put together; and the Flask extension that an app mounts."""

import secrets
import weakref
from collections.abc import Callable
from functools import cache
from typing import ClassVar

from flask import Flask

from .access.caller import Caller
from .access.guard import Access, Guard, Open
from .access.keys import Keyring, read_keys
from .access.tickets import Tickets
from .credentials import Credentials
from .gateway import Gateway
from .journal import Entry, Journal
from .journal.engines import open_journal
from .prompt import Prompt
from .settings import Settings, secret_text
from .telemetry import hide_for_good
from .transcript import Transcript
from .transcript.websocket import Websocket
from .turn import Turn
from .turns import Key, Turns

SECRET_BYTES = 32


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
        self.access = make_access(settings, journal)
        self.turns = Turns(settings, self.gateway, journal)
        self.transcript: Transcript | None = None
        if settings.transcript == "websocket":
            assert self.credentials is not None
            sink = Websocket(settings, self.credentials)
            self.transcript = Transcript(journal.outbox, self.turns, sink, max_open=settings.max_turns)
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

    def ask(
        self, prompt: Prompt, conversation_id: str | None, caller: Caller, key: Key | None = None
    ) -> tuple[Entry, Turn | None]:
        """Begins a turn and its way into the transcript; returns and raises as `Turns.start`, or Forbidden."""
        caller.check(conversation_id)
        return self.turns.start(prompt, conversation_id, caller.name, key)

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
        self.gateway.close()
        self.access.close()
        if self.credentials is not None:
            self.credentials.close()


def make_credentials(settings: Settings) -> Credentials | None:
    if not settings.needs_oauth:
        return None
    return Credentials(
        settings.genesys_oauth_url,
        settings.oauth_client_id,
        secret_text(settings.oauth_client_secret),
        settings.oauth_scope,
    )


def make_access(settings: Settings, journal: Journal) -> Access:
    if settings.access == "open":
        return Open()
    keyring = Keyring(read_keys(secret_text(settings.relay_api_keys)), settings.relay_api_keys_file)
    tickets = Tickets(make_secret(settings, journal), settings.ticket_seconds)
    if settings.access == "keys":
        return Guard(keyring, None, tickets)
    # Not above: a relay without tokens needs none of the cryptography.
    from .access.issuer import Issuer  # noqa: PLC0415
    from .access.jwt import Tokens  # noqa: PLC0415

    assert settings.jwt_jwks_url and settings.jwt_issuer and settings.jwt_audience
    return Guard(keyring, Tokens(Issuer(settings.jwt_jwks_url), settings.jwt_issuer, settings.jwt_audience), tickets)


def make_secret(settings: Settings, journal: Journal) -> Callable[[], bytes]:
    """What signs tickets: SECRET_KEY, else what the store keeps for all workers. Asked for when it is needed first."""

    @cache  # not what it raises
    def secret() -> bytes:
        if settings.secret_key is not None:
            return secret_text(settings.secret_key).encode()
        kept = journal.secret(secrets.token_urlsafe(SECRET_BYTES).encode())
        hide_for_good(kept.decode())
        return kept

    return secret
