"""What an app's own gunicorn.conf.py takes over for the relay that the app mounts; the relay's own does as well.

    from server.gunicorn_hooks import *

    bind = ...      # the app's own lines, below

An app that has one of these hooks of its own calls both: `def post_fork(arbiter, worker): keep_slot(arbiter, worker)`.
gunicorn's master reads this: nothing here may import sockets.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .journal.engines import prepare_or_exit
from .master import Reloads, spare_births
from .metrics_folder import clear_slot, keep_slot, make_folder, take_slot
from .settings import Settings, leave, load_for_app, load_or_exit
from .worker import check_before_reload, hurry_on_second_term, look_before_start

__all__ = [
    "access_log_format",
    "child_exit",
    "control_socket_disable",
    "graceful_timeout",
    "on_starting",
    "post_fork",
    "pre_fork",
    "preload_app",
    "when_ready",
    "worker_class",
    "worker_connections",
    "worker_tmp_dir",
]

_settings = load_or_exit(load_for_app)
prepare_or_exit(_settings.store_url)

worker_class = "server.worker.Worker"

# Connections that one worker holds. Each turn has a client, and others may look in; MAX_TURNS is what refuses politely.
worker_connections = 2 * _settings.max_turns + 100

# After TERM or HUP a worker stays until its turns have ended: longer than any turn may take (GATEWAY_TIMEOUT).
graceful_timeout = int(_settings.gateway_timeout) + 15


def on_starting(arbiter: Any) -> None:
    """Once in the master's life, not at a reload: the server goes on with the keys that it has."""
    if arbiter.cfg.preload_app:
        leave(
            "preload_app=True cannot be right: each worker loads the app itself, after it patched the standard library"
        )
    look_before_start(_settings)
    make_folder(arbiter)


# /metrics tells the numbers of all workers, whichever is asked: they share a folder.
pre_fork = take_slot
post_fork = keep_slot
child_exit = clear_slot


def take_charge(arbiter: Any, read: Callable[[], Settings]) -> None:
    """A second TERM ends what runs with `interrupted`, quickly, as INT does at once; HUP looks before it leaps.

    `read` gives the settings that a reload would find.
    """
    Reloads(arbiter)
    spare_births(arbiter)
    hurry_on_second_term(arbiter)
    check_before_reload(arbiter, read)


def when_ready(arbiter: Any) -> None:
    take_charge(arbiter, load_for_app)


# Each worker loads the app itself: the worker class patches the standard library first, which a preload would precede.
preload_app = False

# Heartbeats and metrics are written to files, often: in memory, not on a disk that may be slow.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108

# Where requests are logged: without the query, which may hold a ticket.
access_log_format = '%(h)s "%(m)s %(U)s" %(s)s %(B)s bytes %(M)s ms'

# gunicorn 25 and later open a control socket in the home folder, which no one here uses.
control_socket_disable = True
