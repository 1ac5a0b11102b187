"""All that a relay is made of, put together; and the Flask extension that an app mounts."""

import secrets
import weakref
from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeVar

from flask import Blueprint, Flask, has_request_context, request

from . import surroundings, tracing
from .access.caller import Caller
from .access.guard import Hook, caller_of_app, make_access
from .answer import Answer
from .credentials import Credentials
from .errors import ConversationRequired, KeyUsedOtherwise
from .gateway import Gateway
from .journal.engines import open_journal
from .prompt import Prompt, read_question
from .readiness import Readiness
from .settings import Settings, load_for_app, secret_text
from .transcript import Transcript
from .transcript.conversation import Sink
from .transcript.platform import Platform
from .transcript.websocket import Websocket
from .turns import Key, Started, Turns

H = TypeVar("H", bound=Hook)


class Relay:
    """One relay; `Relay(app)` mounts it on a Flask app, and so does `Relay().init_app(app)`, later."""

    instances: ClassVar["weakref.WeakSet[Relay]"] = weakref.WeakSet()  # those of this process, for the worker's drain

    def __init__(
        self,
        app: Flask | None = None,
        *,
        settings: Settings | None = None,
        url_prefix: str = "",
        openai: bool = True,
        page: bool = False,
        ops: bool = False,
    ) -> None:
        """Without `settings`, those of the environment. `url_prefix` is where the routes are in the app, as /relay.

        `openai` mounts /v1, `page` the web page as well, `ops` /healthz and /metrics, which ask no one for a name.
        Raises SettingsError for a setting that cannot be right.
        """
        settings = settings or load_for_app()
        self.settings = settings
        self._url_prefix = url_prefix
        self._openai = openai
        self._page = page
        self._ops = ops
        self.credentials = make_credentials(settings)
        self.gateway = Gateway(settings, self.credentials, connections=2 * settings.max_turns)
        journal = open_journal(
            settings.store_url,
            worker=secrets.token_hex(8),
            retain=settings.retain_seconds,
            retain_undelivered=settings.transcript_retain_seconds,
        )
        self._keep_secret = journal.secret
        self.access = make_access(settings, journal.secret)
        self.turns = Turns(settings, self.gateway, journal)
        self.readiness = Readiness(self.turns, self.credentials)
        self.sink = make_sink(settings, self.credentials)
        self.transcript: Transcript | None = None
        if self.sink is not None:
            self.transcript = Transcript(journal.outbox, self.turns, self.sink, max_open=settings.max_turns)
            self.turns.mirror_into(self.transcript)
        self.blueprints: list[Blueprint] = []  # what is mounted, for an extension that leaves them alone
        self.instances.add(self)
        if app is not None:
            self.init_app(app)

    @staticmethod
    def of(app: Flask) -> "Relay":
        relay = app.extensions["relay"]
        assert isinstance(relay, Relay)
        return relay

    def init_app(self, app: Flask) -> None:
        from .routes import register  # noqa: PLC0415 - the routes need this module

        app.extensions["relay"] = self
        self.blueprints = register(
            app, self._url_prefix, with_openai=self._openai, with_page=self._page, with_ops=self._ops
        )

    def caller(self, hook: H) -> H:
        """Decorates the function that names the caller of the request at hand, from the app's own login.

        It gives a name or a number, or Caller(name, conversations) for one who may use only these, or None, which is
        refused with 401; it takes the place of ACCESS. Names are kept with `app:` before them.
        """
        self.settings = self.settings.model_copy(update={"access": "app"})
        self.access.close()
        self.access = make_access(self.settings, self._keep_secret, hook)
        return hook

    def ask(
        self,
        conversation_id: str | None,
        prompt: str | Sequence[Mapping[str, str]],
        *,
        caller: str | int | Caller | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        model: str | None = None,
    ) -> Answer:
        """Asks from the app's own code; the turn begins at once, the events are iterated over.

        `prompt` is a text, or messages such as {"role": "user", "content": "Hello"}. Without `caller` it is whoever the
        request at hand is from, and a POST of another origin's page is refused as the relay's own routes do; outside of
        a request it must be given. Raises RelayError for what is refused, as Unauthorized, Forbidden (CrossOrigin),
        BadRequest, TooManyRequests or StoreUnavailable; what fails later is an event.
        """
        surroundings.check()
        asked = read_question(
            {
                **({"prompt": prompt} if isinstance(prompt, str) else {"messages": list(prompt)}),
                "conversationId": conversation_id,
                "temperature": temperature,
                "max_tokens": max_tokens,
                "model": model,
            }
        )
        started = self.begin(asked, self.conversation_of(asked), self._whoever(caller))
        return Answer(self.turns, started.entry)

    def conversation_of(self, prompt: Prompt) -> str | None:
        """The conversation that a question belongs to. Raises ConversationRequired where the transcript needs one."""
        conversation_id = prompt.conversation_id or self.settings.default_conversation_id
        if conversation_id is None and self.transcript is not None:
            raise ConversationRequired
        return conversation_id

    def _whoever(self, caller: str | int | Caller | None) -> Caller:
        from .routes.browser import check_origin  # noqa: PLC0415 - the routes need this module

        if caller is not None:
            return caller_of_app(caller)
        if not has_request_context():
            raise TypeError("outside of a request `caller` must say who asks")
        check_origin(self.settings)
        return self.access.identify(request.headers.get("Authorization"))

    def begin(self, prompt: Prompt, conversation_id: str | None, caller: Caller, key: Key | None = None) -> Started:
        """Begins a turn and its way into the transcript; returns and raises as `Turns.start`, or Forbidden.

        Called while a request is answered, the turn belongs to the trace of that request.
        """
        caller.check(conversation_id)
        started = self.turns.start(prompt, conversation_id, caller.name, key, trace_of_request())
        # One name may come with other conversations than it had when the key came first.
        if not caller.owns(started.entry):
            raise KeyUsedOtherwise
        return started

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
    environ = request.environ
    return tracing.read(environ.get("HTTP_TRACEPARENT"), environ.get("HTTP_TRACESTATE"))


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
