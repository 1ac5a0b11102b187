"""The gunicorn worker: a gevent worker that stays until its turns are told and its transcripts sent."""

import resource
import time
from typing import TYPE_CHECKING

import gevent
from gunicorn.workers.ggevent import GeventWorker

if TYPE_CHECKING:
    from .relay import Relay

TICK = 0.1  # seconds between two looks at what is left
LAST_WORDS = 3.0  # seconds at the end of the drain for followers to be told


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's own drain waits for HTTP handlers alone; turns without a client, and links, would die with it."""

    _stopped_at: float | None = None

    @property
    def alive(self) -> bool:
        return self._stopped_at is None

    @alive.setter
    def alive(self, value: bool) -> None:
        """TERM, HUP and max_requests all set this to False; from then on the drain's time runs."""
        if value:
            self._stopped_at = None
        elif self._stopped_at is None:
            self._stopped_at = time.monotonic()
            gevent.spawn_later(self._patience(), self._interrupt)

    def init_process(self) -> None:
        raise_file_limit()
        super().init_process()

    def run(self) -> None:
        super().run()
        while any(relay.busy for relay in relays()) and self._patience():
            self.notify()
            gevent.sleep(TICK)
        for relay in relays():
            relay.close()

    def _patience(self) -> float:
        """Seconds until what is left must be told that it ends here."""
        stopped_at = time.monotonic() if self._stopped_at is None else self._stopped_at
        left: float = stopped_at + self.cfg.graceful_timeout - LAST_WORDS - time.monotonic()
        return max(0.0, left)

    def _interrupt(self) -> None:
        for relay in relays():
            relay.turns.interrupt()


def relays() -> list["Relay"]:
    from .relay import Relay  # noqa: PLC0415 - only after the worker has patched the standard library

    return list(Relay.instances)


def raise_file_limit() -> None:
    """Takes all the files that the system allows: a turn has three sockets (client, gateway, transcript)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
