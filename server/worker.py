"""The gunicorn worker: a gevent worker that stays until its turns are told and its transcripts sent, and waits for no
client without end.

TERM, HUP, max_requests   drain: followers who can come back are sent to another worker, turns go on to their end
INT, QUIT                 quick: what runs ends with `interrupted`, said to its followers before the process goes
"""

import gc
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import gevent
import orjson
from gunicorn import util
from gunicorn.glogging import Logger
from gunicorn.http.errors import (
    InvalidResponseHeader,
    InvalidResponseHeaderName,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
)
from gunicorn.workers.ggevent import GeventWorker

from . import surroundings
from .access.keys import read_file
from .errors import AddressTooLong, BadRequest, HeadersTooLarge
from .journal.engines import prepare_store
from .master import STOPS
from .settings import Settings, SettingsError, leave
from .telemetry import redact

if TYPE_CHECKING:
    from .relay import Relay

log = logging.getLogger(__name__)

TICK = 0.1  # seconds between two looks at what is left
LAST_WORDS = 3.0  # seconds at the end of the drain for followers to be told
WRITE_TIMEOUT = 30.0  # seconds that one write to a client may take; a plain answer, of some MB at most, is one
NOT_OURS = (InvalidResponseHeader, InvalidResponseHeaderName)  # gunicorn counts them with what clients send
YOUNG = 10_000  # objects that are made until cycles are looked for; an open stream is more than a hundred
MAX_FILES = 65_536  # descriptors; where the system sets no limit at all

# Where each greenlet was spawned is for debuggers: a copy of the stack a greenlet, two greenlets a stream.
gevent.config.track_greenlet_tree = False


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's own drain waits for HTTP handlers alone; turns without a client, and links, would die with it."""

    hears_stops_late = True  # see master.spare_births
    slot: int  # see metrics_folder.take_slot
    _stopped_at: float | None = None
    _quick = False

    @property
    def alive(self) -> bool:
        return self._stopped_at is None

    @alive.setter
    def alive(self, value: bool) -> None:
        """TERM, HUP and max_requests all set this to False, HUP each second again; the first time begins the drain."""
        if value:
            self._stopped_at = None
        elif self._stopped_at is None:
            self._stopped_at = time.monotonic()
            gevent.spawn(self._drain)

    def init_process(self) -> None:
        # gunicorn's handlers come only after patching and hub set-up; a signal in between would be the master's, and
        # lost. A worker that has not started has nothing to tell.
        for number in STOPS:
            signal.signal(number, lambda *_: os._exit(0))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)  # the master has held them back: see master.spare_births
        raise_file_limit()
        settle_config(self.cfg)
        super().init_process()

    def run(self) -> None:
        surroundings.settle()
        for relay in relays():
            relay.turns.open()
        keep_what_is_loaded()
        super().run()
        while any(relay.busy for relay in relays()) and self._patience():
            self.notify()
            gevent.sleep(TICK)
        for relay in relays():
            relay.close()

    def handle_quit(self, sig: int, frame: Any) -> None:
        """INT and QUIT. gunicorn's own would end the process in the middle of a sentence."""
        if not self._quick:
            self._quick = True
            self.alive = False
            gevent.spawn(self._quit)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """A client that does not read its answer is given up; those that follow a stream are dropped before."""
        sock.settimeout(WRITE_TIMEOUT)
        try:
            super().handle_request(listener_name, req, sock, addr)
        except TimeoutError:
            log.info("client does not read its answer, dropped")
            raise StopIteration from None  # ends the connection

    def is_already_handled(self, respiter: Any) -> bool:
        """Called with what the app returns, before it is sent: a stream that comes as it was made writes by itself."""
        from .stream import Stream  # noqa: PLC0415 - only after the worker has patched the standard library

        if isinstance(respiter, Stream):
            respiter.go_direct()
        return bool(super().is_already_handled(respiter))

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Refuses what is no HTTP, in our shape.

        gunicorn's own page and log line repeat what came, which can be anything: the rest of a body whose length was
        wrong is taken for a request.
        """
        if not isinstance(exc, ParseException) or isinstance(exc, NOT_OURS):
            super().handle_error(req, client, addr, exc)
            return
        error = refusal_of(exc)
        count_refusal(error)
        log.info(
            "request refused", extra={"code": error.code, "detail": type(exc).__name__, "client": addr and addr[0]}
        )
        with suppress(OSError):
            util.write_nonblock(client, as_response(error))

    def _drain(self) -> None:
        """Sends followers elsewhere; when the time is over, tells what is left that it ends here."""
        if self._quick:
            return
        for relay in relays():
            relay.turns.drain(last_start=time.monotonic() + self._patience() - relay.settings.gateway_timeout)
        gevent.sleep(self._patience())
        for relay in relays():
            relay.turns.interrupt()

    def _quit(self) -> None:
        with gevent.Timeout(LAST_WORDS, False):
            for relay in relays():
                relay.close()
        sys.exit(0)

    def _patience(self) -> float:
        """Seconds until what is left must be told that it ends here."""
        stopped_at = time.monotonic() if self._stopped_at is None else self._stopped_at
        left: float = stopped_at + self.cfg.graceful_timeout - LAST_WORDS - time.monotonic()
        return max(0.0, left)


class Log(Logger):  # type: ignore[misc]
    """gunicorn's own formats an access line for each request, whether anyone wants it or not."""

    def access(self, *arguments: Any) -> None:
        if self.access_log.isEnabledFor(logging.INFO):
            super().access(*arguments)


def settle_config(config: Any) -> None:
    """Makes each of gunicorn's settings an attribute: it looks up some forty a request, in Python, 0.3 µs each."""
    vars(config).update({name: setting.get() for name, setting in config.settings.items()})


def keep_what_is_loaded() -> None:
    """Takes modules and the app, which stay, out of what the garbage collector goes through, and has it look less
    often: else all stands still for 25 ms now and then. With 1,500 streams, of which many begin, the p99 of a token's
    age was 37 ms by Python's own measure (700 objects) and is 4 ms by ours.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG)


def refusal_of(error: ParseException) -> BadRequest:
    if isinstance(error, LimitRequestLine):
        return AddressTooLong()
    if isinstance(error, LimitRequestHeaders):
        return HeadersTooLarge()
    return BadRequest("This is no request in HTTP/1.1 that this server reads.")


def count_refusal(error: BadRequest) -> None:
    from .metrics import note_refusal  # noqa: PLC0415 - only after the worker has patched the standard library

    note_refusal(error.code)


def as_response(error: BadRequest) -> bytes:
    """What `routes` would answer, for a request that never gets there."""
    from .routes.browser import HEADERS  # noqa: PLC0415 - only after the worker has patched the standard library

    body = orjson.dumps({"error": error.sentence, "code": error.code}) + b"\n"
    headers = {
        "Date": util.http_date(),
        "Connection": "close",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **HEADERS,
    }
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def look_before_start(settings: Settings) -> None:
    """Warns of what is dangerous; a file of keys that cannot be used ends the start.

    No worker ends for that: one that comes later must not stop the server because the file is being edited.
    """
    path = settings.relay_api_keys_file if settings.access != "open" else None
    try:
        if path is not None:
            read_file(path)
    except (OSError, ValueError) as error:
        leave(f"RELAY_API_KEYS_FILE={path} cannot be used: {error.strerror if isinstance(error, OSError) else error}")
    for risk in settings.risks:
        log.warning(risk)


def hurry_on_second_term(arbiter: Any) -> None:
    """Makes a second TERM end what runs quickly; gunicorn itself waits out the first one's graceful_timeout."""
    seen: list[int] = []

    def on_term(number: int, frame: Any) -> None:
        arbiter.signal(signal.SIGQUIT if seen else number, frame)
        seen.append(number)

    signal.signal(signal.SIGTERM, on_term)


def check_before_reload(arbiter: Any, read: Callable[[], Settings]) -> None:
    """Makes HUP change nothing when the settings have become wrong; gunicorn itself would end the server."""

    def on_hup(number: int, frame: Any) -> None:
        try:
            prepare_store(read().store_url)
        except SettingsError as error:
            # In the message itself: an app's own log may show no more. A fresh key may stand in the sentence.
            log.error("not reloaded: %s", redact(str(error)))  # noqa: TRY400 - the sentence says it all
        else:
            sys.modules.pop("server.gunicorn_hooks", None)  # its values follow from the settings
            arbiter.signal(number, frame)

    signal.signal(signal.SIGHUP, on_hup)


def relays() -> list["Relay"]:
    from .relay import Relay  # noqa: PLC0415 - only after the worker has patched the standard library

    return list(Relay.instances)


def raise_file_limit() -> None:
    """Takes all the files that the system allows: a turn has three sockets (client, gateway, transcript)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_FILES if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
