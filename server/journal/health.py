"""Whether the store is in order, as this worker has last seen it."""

import logging

from .. import metrics
from ..errors import StoreUnavailable

log = logging.getLogger(__name__)


class Health:
    """Says in the log once that it is not, and once that it is again."""

    def __init__(self) -> None:
        self.failing = False

    def note_failure(self, error: StoreUnavailable) -> None:
        if not self.failing:
            log.error(
                "journal out of order (STORE_URL): new questions are refused, answers go on from memory",
                extra={"detail": error.detail},
            )
            metrics.journal_failing.set(1)
        self.failing = True

    def note_success(self) -> None:
        if self.failing:
            log.warning("journal in order again")
            metrics.journal_failing.set(0)
        self.failing = False
