"""One greenlet a process measures the process itself, and brings to the metrics what has been added up meanwhile."""

import os
import time
from contextlib import suppress
from pathlib import Path

import gevent

from . import metrics

INTERVAL = 0.25  # seconds; kill -9 loses what was counted in the last one
STATM = Path("/proc/self/statm")
PAGE = os.sysconf("SC_PAGE_SIZE")  # bytes

_greenlet: "gevent.Greenlet[[], None] | None" = None


def start() -> None:
    """To be called in each worker once it has been forked; may be repeated."""
    global _greenlet  # noqa: PLW0603 - one a process
    if _greenlet is None:
        metrics.tell_build()
        metrics.workers.set(1)
        _greenlet = gevent.spawn(beat)


def beat() -> None:
    """For ever: how late the hub lets it wake is what everything else in this worker waits as well."""
    used = 0.0  # CPU seconds counted
    while True:
        now = time.process_time()
        metrics.cpu_seconds.inc(now - used)
        used = now
        with suppress(OSError):  # a system without /proc
            metrics.memory.set(int(STATM.read_text().split()[1]) * PAGE)
        metrics.flush()
        due = time.monotonic() + INTERVAL
        gevent.sleep(INTERVAL)
        metrics.loop_delay.observe(max(0.0, time.monotonic() - due))
