"""One conversation that this worker holds: a sink carries its line, again after each loss, until nothing is left."""

import logging
import time
from collections.abc import Callable
from random import random
from typing import Protocol

import gevent
from gevent.event import Event as Flag

from .. import metrics
from ..backoff import full_jitter
from ..bell import Bell
from ..errors import CredentialsError
from .line import Line

log = logging.getLogger(__name__)

HEAD_START = 0.005  # seconds that the first connection leaves to the question: it would delay a quick first token
IDLE = 60.0  # seconds without text after which it is given up, and its link closed
STORE_WAIT = 0.5  # seconds until a store that could not be read is asked again
LEAVE_TIMEOUT = 2.0  # seconds to hear of what was sent when another worker is to take over


class SinkLost(Exception):
    """The way into the transcript broke. The text, for the log, holds no address: a token may be in it."""

    def __init__(self, reason: str, cause: metrics.RetryCause = "lost", retry_after: float = 0.0) -> None:
        """`retry_after` is in seconds."""
        super().__init__(reason)
        self.cause = cause
        self.retry_after = retry_after


class Refused(Exception):
    """The platform will not take this conversation's text, however often it is asked. The text says why."""


class Sink(Protocol):
    """A way into the transcript."""

    hurries: bool  # whether each receipt is stored at once, or four times a second: kill -9 repeats what is not stored

    def carry(self, conversation: "Conversation") -> None:
        """Sends what comes, until it has rested for long or the conversation wants to leave.

        Raises SinkLost or Refused, or is killed; nothing that it has sent may arrive after that.
        """

    def close(self) -> None:
        """Lets go of what all conversations share."""


class Conversation:
    """A greenlet; what others want of it they say by its methods."""

    def __init__(
        self, line: Line, sink: Sink, may_send: Callable[[], bool], pause: Callable[[Flag, float], object] = Flag.wait
    ) -> None:
        """`may_send` tells whether this worker is the conversation's holder for certain; `pause` waits for a flag, or
        so many seconds."""
        self.id = line.conversation_id
        self.line = line
        self.bell: Bell = line.bell
        self.may_send = may_send
        self.wake_at = 0.0  # monotonic seconds; the sink's, rung once they have come
        self.active_at = time.monotonic()  # when it last had something to do
        self.failing_since: float | None = None  # monotonic seconds
        self.over = False  # it takes in nothing more
        self.leaving = False  # it goes once it knows what of the sent has arrived
        self.resting = False  # it may be closed: nothing waits
        self.has_more = False  # the store may have more turns than it gave at once
        self.refusal = ""  # why its text cannot be delivered
        self.on_break: Callable[[], None] | None = None  # the sink's, to break off what is under way
        self._sink = sink
        self._pause = pause
        self._leave_by = 0.0
        self._failures = 0
        self._hurry = Flag()
        self._greenlet: gevent.Greenlet[[], None] = gevent.Greenlet(self._run)

    def start(self, on_end: Callable[["Conversation"], None]) -> None:
        def end(_: object) -> None:
            self.over = True
            self.line.close()
            on_end(self)

        self._greenlet.link(end)  # one that is killed before it runs has no `finally`
        self._greenlet.start()

    def lag(self, now: float) -> float:
        """Seconds that the oldest unconfirmed text has waited."""
        since = self.failing_since if self.line else None
        return now - min(self.line.unconfirmed_since or now, since or now)

    @property
    def idle_at(self) -> float:
        """When it has idled for long enough, in monotonic seconds."""
        return self.active_at + IDLE

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits, and nothing has for long, or may be waited for."""
        return not self.line and (self.resting or time.monotonic() >= self.idle_at)

    def rest(self) -> None:
        """Ends it unless something comes before that."""
        self.resting = True
        self.bell.ring()

    def leave(self) -> None:
        """Ends it as soon as it knows what has arrived: another worker is to go on."""
        if not self.leaving:
            self.leaving = True
            self._leave_by = time.monotonic() + LEAVE_TIMEOUT
            self._hurry.set()
            self.bell.ring()
        elif time.monotonic() > self._leave_by:
            self.lose()

    def lose(self) -> None:
        """Ends it at once: another worker may have it. What lies in buffers must not arrive after that one's."""
        if self.over:
            return  # it is ending: a second kill would cut that short
        self.over = True
        if self.on_break is not None:
            self.on_break()
        self._greenlet.kill(block=False)

    def stop(self) -> None:
        """Ends it, with the sink's farewell."""
        self.over = True
        self._greenlet.kill()

    def note_success(self) -> None:
        self._failures = 0
        self.failing_since = None

    def _run(self) -> None:
        gevent.sleep(HEAD_START)
        while self.line and not self.leaving and not self.refusal:
            try:
                self._sink.carry(self)
            except Refused as refusal:
                self.refusal = str(refusal)
            except Exception as error:  # noqa: BLE001 - the text that waits must outlive whatever breaks its way
                self._wait_after(error)

    def _wait_after(self, error: Exception) -> None:
        if not self.line:
            log.debug("transcript link lost while idle", extra={"conversation": self.id, "detail": describe(error)})
            return
        self._failures += 1
        self.failing_since = self.failing_since or time.monotonic()
        wait = full_jitter(self._failures, random)
        if isinstance(error, SinkLost):
            wait = max(wait, error.retry_after)
        metrics.transcript_retries[cause_of(error)].inc()
        fields = {"conversation": self.id, "detail": describe(error), "wait": round(wait, 2)}
        log.warning("transcript link lost, trying again", extra=fields | {"attempt": self._failures})
        self._pause(self._hurry, wait)


def cause_of(error: Exception) -> metrics.RetryCause:
    match error:
        case SinkLost():
            return error.cause
        case CredentialsError():
            return "credentials"
    return "unexpected"


def describe(error: Exception) -> str:
    """For the log. Only the class of what is unexpected: its text may hold the address, and the token with it."""
    match error:
        case SinkLost():
            return str(error)
        case CredentialsError():
            return f"{error.code} {error.detail}".rstrip()
    return type(error).__name__
