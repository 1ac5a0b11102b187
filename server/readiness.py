"""Whether this worker can answer questions now: the store keeps, a token can be had, it does not stop.

Asked by load balancers, each second and by many, so asking costs nothing: the store is judged by what the worker writes
there anyway, the token by the one that is at hand, and what was found holds for a moment.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import gevent
from gevent.event import AsyncResult

from .credentials import Credentials
from .errors import CredentialsError, CredentialsUnavailable
from .turns import Turns

log = logging.getLogger(__name__)

CHECK_TIMEOUT = 2.0  # seconds for each; all are made at the same time
FRESH = 1.0  # seconds that what was found holds
LOGIN_AGAIN = 5.0  # seconds until a login that failed is tried again only because someone asks whether we are ready


class Check(NamedTuple):
    """`advice` is empty where all is well; else a sentence on what to do."""

    advice: str = ""

    @property
    def shown(self) -> dict[str, str]:
        return {"state": "failing", "error": self.advice} if self.advice else {"state": "ok"}


GOOD = Check()
STOPS = Check("This worker is stopping. Send requests to another one; there is nothing to repair.")
NO_STORE = Check(
    "The store does not keep what is written (STORE_URL). See `journal out of order` in the log; free the disk, make "
    "the file writable, or start Redis."
)
MUTE_STORE = Check("The store does not answer (STORE_URL). See whether Redis or the disk hangs.")
NO_LOGIN = Check(
    "Genesys Cloud's login cannot be reached. Check GENESYS_OAUTH_URL, the network, HTTPS_PROXY, and whether the login "
    "itself is out of order."
)
BROKEN = Check("The check itself broke. See `readiness check broke` in the log, and report it.")


class Readiness:
    def __init__(self, turns: Turns, credentials: Credentials | None) -> None:
        """Without `credentials` no token is needed."""
        self._turns = turns
        self._credentials = credentials
        self._found: AsyncResult[dict[str, Check]] | None = None
        self._found_until = 0.0  # monotonic seconds
        self._login_again = 0.0  # monotonic seconds
        self._login = GOOD

    def checks(self) -> dict[str, Check]:
        """By name, at most FRESH seconds old, within CHECK_TIMEOUT. Whoever asks meanwhile waits for the same ones."""
        if self._found is None or (self._found.ready() and time.monotonic() >= self._found_until):
            self._found = AsyncResult()
            gevent.spawn(self._make, self._found)
        found: dict[str, Check] = self._found.get()
        # Known without asking anyone, so never old.
        return found | {"drain": STOPS if self._turns.draining else GOOD}

    def _make(self, result: "AsyncResult[dict[str, Check]]") -> None:
        # A greenlet of its own: the client that asked first may go, and the others still wait.
        made = {
            "store": gevent.spawn(within, CHECK_TIMEOUT, self._check_store, MUTE_STORE),
            "token": gevent.spawn(within, CHECK_TIMEOUT, self._check_token, NO_LOGIN),
        }
        gevent.joinall(list(made.values()))
        self._found_until = time.monotonic() + FRESH
        result.set({name: check.value for name, check in made.items()})

    def _check_store(self) -> Check:
        return GOOD if self._turns.wait_for_store() else NO_STORE

    def _check_token(self) -> Check:
        if self._credentials is None or self._credentials.at_hand:
            return GOOD
        if time.monotonic() >= self._login_again:
            # Before it is tried: one that hangs is given up from outside, and is no better than one that fails.
            self._login, self._login_again = NO_LOGIN, time.monotonic() + LOGIN_AGAIN
            try:
                self._credentials.token()
                self._login = GOOD
            except CredentialsError as error:
                self._login = advice(error)
        return self._login


def advice(error: CredentialsError) -> Check:
    return NO_LOGIN if isinstance(error, CredentialsUnavailable) else Check(error.sentence)


def within(seconds: float, check: Callable[[], Check], late: Check) -> Check:
    """What the check finds, or `late` when it takes longer; never raises, or whoever asks would wait without end."""
    try:
        with gevent.Timeout(seconds, False):
            return check()
    except Exception:
        log.exception("readiness check broke")
        return BROKEN
    return late


def as_json(checks: dict[str, Check]) -> dict[str, Any]:
    is_ready = not any(check.advice for check in checks.values())
    return {"ready": is_ready, "checks": {name: check.shown for name, check in checks.items()}}
