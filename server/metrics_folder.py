"""The folder through which the workers' metrics come together: each writes files there, and any reads those of all.

These are gunicorn's hooks. They run in its master, where prometheus_client is not imported: it brings sockets, which a
worker must patch first.
"""

import atexit
import fcntl
import os
import shutil
import tempfile
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # where prometheus_client looks for the folder
PREFIX = "relay-metrics-"  # then the master's process id
YOUNG = 10.0  # seconds since the last change in which a folder is left alone: it may be about to be locked

_lock = -1  # the descriptor that holds the folder, for the life of the process
_slot: int | None = None  # of this process, once it is a worker


def make_folder(arbiter: Any) -> None:
    """Once in the master's life: a reload keeps the folder, and the counts in it."""
    global _lock  # noqa: PLW0603 - one a process
    remove_abandoned(Path(arbiter.cfg.worker_tmp_dir or tempfile.gettempdir()))
    folder = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=arbiter.cfg.worker_tmp_dir)
    _lock = lock(folder)
    os.chown(folder, arbiter.cfg.uid, arbiter.cfg.gid)
    os.environ[VARIABLE] = folder
    atexit.register(remove_folder, folder, os.getpid())


def remove_folder(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # workers inherit what is to be done at the exit
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(place: Path) -> None:
    """Removes the folders of masters that were killed: the living, and their workers, hold a lock."""
    for folder in place.glob(f"{PREFIX}[0-9]*-*"):
        with suppress(OSError):  # it is in use, another user's, or gone
            if time.time() - folder.stat().st_ctime < YOUNG:
                continue
            descriptor = lock(folder)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


def lock(folder: Path | str) -> int:
    """A descriptor that holds it. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def take_slot(arbiter: Any, worker: Any) -> None:
    """Gives a new worker the lowest number that no living one has.

    Files are named for it, and go on where the last worker of that number stopped. Named for process ids they would be
    more with every worker that comes and goes, and each would be read on every scrape.
    """
    taken = {other.slot for other in arbiter.WORKERS.values()}
    worker.slot = next(slot for slot in count() if slot not in taken)


def keep_slot(arbiter: Any, worker: Any) -> None:
    global _slot  # noqa: PLW0603 - one a process
    _slot = worker.slot


def clear_slot(arbiter: Any, worker: Any) -> None:
    """Removes what only a living worker has, as prometheus_client's `mark_process_dead` does."""
    for path in Path(os.environ[VARIABLE]).glob(f"gauge_live*_{worker.slot}.db"):
        path.unlink(missing_ok=True)


def own_slot() -> int | None:
    """This worker's number; None outside of gunicorn, or under another configuration of it."""
    return _slot
