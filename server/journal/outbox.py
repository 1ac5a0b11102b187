"""Which text the transcript still has to get, and who sends it; kept with the events it belongs to.

A turn whose entry is `mirrored` goes into its conversation's outbox in the same step that begins it, behind the
conversation's earlier turns, and leaves it when a receipt says that all its text has arrived. Each conversation has at
most one holder, which sends its text: a worker, for as long as that worker's lease holds by the store's clock.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from ..errors import StoreUnavailable

WINDOW = 16  # undelivered turns of a conversation that its holder is given at once; the rest wait in the store
MAX_REASON = 300  # characters


class Parcel(NamedTuple):
    """A turn whose text the transcript does not have whole."""

    turn_id: str
    cursor: int  # id of the last event that has arrived for certain


class Receipt(NamedTuple):
    """What is known to have arrived."""

    turn_id: str
    cursor: int  # id of the last event that has arrived
    whole: bool  # whether that is all of the turn's text


State = Literal["pending", "parked", "delivered"]


class Delivery(NamedTuple):
    """How far a turn's text is on its way into the transcript."""

    turn_id: str
    conversation_id: str
    state: State
    cursor: int = 0
    reason: str | None = None  # why it is parked


class Outbox(Protocol):
    """One worker's view; as with Journal, any call may wait, may be repeated, and raises StoreUnavailable."""

    def claim(self, conversation_ids: Collection[str]) -> Mapping[str, Sequence[Parcel]]:
        """Makes this worker the holder of these conversations, but for those that another living worker holds, or may
        hold for all that this one may say of others; see `Journal`.

        Returns those that it holds now, each with its first WINDOW undelivered turns in the order in which they began;
        what was parked is pending again. Raises StoreUnavailable as well while this worker has no lease: nobody can say
        then who holds what.
        """

    def release(self, conversation_ids: Collection[str]) -> None:
        """Gives up conversations; passes over those that this worker does not hold."""

    def unheld(self, limit: int) -> Collection[str]:
        """Some conversations with pending turns, of which no living worker is the holder."""

    def confirm(self, receipts: Sequence[Receipt]) -> Collection[str]:
        """Advances cursors, never back. Whole turns leave the outbox, and their time of retention counts as ever.

        What has arrived has arrived: the lease may have ended since. Returns the turns of conversations that another
        living worker holds, of which nothing was noted. Turns that are not in the outbox are passed over.
        """

    def park(self, conversation_id: str, reason: str) -> Collection[str]:
        """Sets a conversation's undelivered turns aside and gives it up; returns them.

        They stay until `retry`, or until a later turn's begin makes someone `claim` the conversation. Empty for one
        that this worker does not hold. Raises StoreUnavailable as well while it has no lease.
        """

    def retry(self, conversation_id: str | None = None) -> Collection[str]:
        """Makes what was parked, of one conversation or of all, pending again; returns the turns."""

    def find(self, turn_id: str) -> Delivery | None:
        """None for a turn that is not mirrored, or not known any more."""

    def undelivered(self, limit: int) -> list[Delivery]:
        """Some turns that are in the outbox, the oldest first as far as the store can tell."""

    def expire(self) -> Collection[Delivery]:
        """Forgets undelivered turns whose longer time of retention is over, some hundreds at most; returns them."""


def no_lease() -> StoreUnavailable:
    return StoreUnavailable(detail="this worker's lease has ended; it renews it", retry_after=1)
