"""gunicorn's master, where a deploy needs more of it. It reads this before anything is patched: no sockets here."""

import signal
from typing import Any

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class Reloads:
    """Has the master go on after a HUP.

    gunicorn's own waits in the middle of it until the old workers have gone, for up to graceful_timeout, and meanwhile
    hears no signal and sees no worker that dies. It waits so that they get no second TERM, which ours do not mind.
    """

    def __init__(self, arbiter: Any) -> None:
        self._arbiter = arbiter
        self._reload, self._reap, self._manage = arbiter.reload, arbiter.reap_workers, arbiter.manage_workers
        self._reloading = False
        self._last_retired = 0  # the age, as gunicorn calls a worker's number, of the last that a reload has dismissed
        arbiter.reload, arbiter.reap_workers, arbiter.manage_workers = self.reload, self.reap, self.manage

    def reload(self) -> None:
        self._last_retired = self._arbiter.worker_age
        self._reloading = True
        try:
            self._reload()
        except Reloaded:
            pass
        finally:
            self._reloading = False

    def reap(self) -> None:
        """In a reload nothing but the wait calls this, which is its last part."""
        if self._reloading:
            raise Reloaded
        self._reap()

    def manage(self) -> None:
        """Those that finish their turns are no replacement for a new worker that has died."""
        if self._last_retired and not self._reloading:
            serving = sum(worker.age > self._last_retired for worker in self._arbiter.WORKERS.values())
            for _ in range(self._arbiter.num_workers - serving):
                self._arbiter.spawn_worker()
        self._manage()


class Reloaded(Exception):
    """All of a reload is done but the wait."""


def spare_births(arbiter: Any) -> None:
    """Has a worker that is told to stop as it is born hear of it once it can.

    Until it has handlers of its own (see Worker.init_process) a signal would reach the master's, in a copy of the
    master that no one runs: it would be lost, and the master would wait for graceful_timeout. Another class than ours
    would never let it through.
    """
    spawn = arbiter.spawn_worker

    def spawn_worker() -> Any:
        if not getattr(arbiter.worker_class, "hears_stops_late", False):
            return spawn()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        try:
            return spawn()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)

    arbiter.spawn_worker = spawn_worker
