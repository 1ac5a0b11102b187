"""The server that the app runs in: what a relay cannot do there is said once in the log, or refused.

The relay's greenlets live in the event loop of one thread. gunicorn's gevent workers run everything in that loop; other
servers run it only while a request of the same thread waits for it, or have threads that cannot reach it.

server.worker.Worker              nothing is missing
gevent, without that class        answers stream, and a deploy ends what its patience does not cover
one request at a time (sync)      the relay stands still between two requests
a thread for each request         refused: nothing would keep an answer alive whose first thread has ended
"""

import logging
import threading

from gevent import monkey

from .errors import NeedsGevent

log = logging.getLogger(__name__)

ADVICE = "Run the app with gunicorn's `worker_class`, or -k, server.worker.Worker"
ONLY_GEVENT = (
    "This worker does not know of the relay: a deploy cuts answers at graceful_timeout, ends at once those that no one "
    "reads just now, sends no follower to another worker, and leaves text for the transcript to the workers that come "
    "after; a client that does not read a plain answer is kept. " + ADVICE
)
ONE_AT_A_TIME = (
    "This server takes one request at a time, and the relay stands still in between: an answer comes while its own "
    "request is held open, everyone else waits meanwhile, what is begun and followed later may end with `interrupted`, "
    "and the transcript lags. For a look, no more. " + ADVICE
)


_settled = False  # one server a process
_said = False


def settle() -> None:
    """The worker class is ours: nothing is missing."""
    global _settled  # noqa: PLW0603 - see above
    _settled = True


def check() -> None:
    """For each request, and each question from the app itself. Raises NeedsGevent."""
    if _settled:
        return
    if monkey.is_module_patched("socket"):
        say_once(ONLY_GEVENT)
    elif threading.current_thread() is threading.main_thread():
        say_once(ONE_AT_A_TIME)
    else:
        say_once(NeedsGevent.sentence)
        raise NeedsGevent


def say_once(warning: str) -> None:
    global _said  # noqa: PLW0603 - see above
    if not _said:
        log.warning(warning)
    _said = True
