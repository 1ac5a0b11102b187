"""The gunicorn worker: a gevent worker that stays until its turns are told and its transcripts sent."""

import resource
import time

import gevent
from gunicorn.workers.ggevent import GeventWorker

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

    def init_process(self) -> None:
        raise_file_limit()
        super().init_process()

    def run(self) -> None:
        super().run()
        self._drain()

    def _drain(self) -> None:
        from .relay import Relay  # noqa: PLC0415 - only after the worker has patched the standard library

        end = (self._stopped_at or time.monotonic()) + self.cfg.graceful_timeout - LAST_WORDS
        while any(relay.busy for relay in Relay.instances) and time.monotonic() < end:
            self.notify()
            gevent.sleep(TICK)
        for relay in list(Relay.instances):
            relay.close()


def raise_file_limit() -> None:
    """Takes all the files that the system allows: a turn has three sockets (client, gateway, transcript)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
