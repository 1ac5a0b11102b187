"""The spine: each turn's events, in order, kept for those who follow it.

memory.py  sqlite.py  redis.py   the engines: see Journal for the contract
outbox.py                        what the transcript still has to get: see Outbox for the contract
*_outbox.py                      each engine's outbox; beside it, what it shares with its journal
tail.py                          a turn's last events in this worker, and its followers
flusher.py                       brings to the engine what the tails have
courier.py                       what this worker and the others tell each other
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from ..access.allowance import UNLIMITED, Allowance, Standing
from ..errors import Interrupted
from ..sse import Done, Event, Failure
from .outbox import Outbox

AHEAD = 10_000  # events that a turn may be ahead of what is kept; bounds what a store out of order makes us hold
LEASE = 3.0  # seconds that a worker's turns are its own without a word from it
RENEW_INTERVAL = 0.5  # seconds between two renewals of the lease
FRESH = 2 * RENEW_INTERVAL  # seconds since its own renewal in which a worker may judge others
RUNNING = "running"

# To a turn's writer: end it; someone follows it elsewhere; the transcript follows it elsewhere. To a conversation's
# holder: one of its turns has begun.
Wish = Literal["cancel", "watch", "mirror", "deliver"]


class Entry(NamedTuple):
    """What is known of a turn beside its events."""

    id: str
    conversation_id: str | None
    caller: str
    began: float  # seconds since 1970
    fingerprint: str = ""  # of the body that began it; compared when an idempotency key comes again
    status: str = RUNNING
    last_id: int = 0  # of the last event that is kept
    reach: int = AHEAD  # the highest id that can have been sent to a client
    ended: float | None = None  # seconds since 1970
    mirrored: bool = False  # whether its text goes into the conversation's transcript

    @property
    def running(self) -> bool:
        return self.status == RUNNING


class Begun(NamedTuple):
    """A turn, and what its caller has left; without that where no rate was asked for, or nothing was spent."""

    entry: Entry
    standing: Standing | None = None


class Batch(NamedTuple):
    """Events of one turn that are to be kept together; their ids are consecutive."""

    turn_id: str
    events: Sequence[Event]

    @property
    def reach(self) -> int:
        """How far the turn may run on until the next batch is kept."""
        last = self.events[-1]
        return last.id if type(last) is Done else last.id + AHEAD

    @property
    def status(self) -> str:
        last = self.events[-1]
        return last.status if type(last) is Done else RUNNING


class News(NamedTuple):
    """What other workers did."""

    events: Mapping[str, Sequence[Event]]  # of the turns that were asked for
    wishes: Sequence[tuple[str, Wish]]  # for turns of this worker, and for conversations that it holds


class Journal(Protocol):
    """Where events are kept, for one worker; all workers that share a store see the same.

    Any call may wait, and lets other greenlets run meanwhile; any call raises StoreUnavailable when the store is out of
    reach, full or read-only, having changed nothing that it would not change again when repeated.

    A turn has one writer, the worker that began it, for as long as that worker's lease holds by the store's clock. Ids
    are consecutive from 1; only the closing events of a turn whose worker died jump, to behind `reach`: a client can
    have seen more than was kept, and must not wait behind its own cursor.

    Only who has renewed its own lease within FRESH seconds, and has held it for as long as a lease lasts, may say that
    others' have ended: when the store was out of reach all had, and the living are given the time to say so, also where
    a new worker comes first. The store itself looks, when it acts: what it was asked for waits in it while it answers
    nobody.
    """

    shared_fate: bool  # whether a store that this worker cannot reach is out of every other worker's reach as well
    outbox: Outbox

    def begin(self, entry: Entry, key: str | None, allowance: Allowance = UNLIMITED) -> Begun:
        """Makes room for a turn of this worker, durable when it returns.

        With a `key` that the same caller used before, changes nothing and returns that earlier turn's entry. One that
        is mirrored goes into its conversation's outbox, and a holder elsewhere gets the wish to deliver.

        Raises TooManyRequests or TooManyTurnsOfCaller, having begun and spent nothing, for what would be more than the
        caller's `allowance`, counted over all workers and by the store's clock. What a turn spent comes back with time
        alone, not with its end or when it is forgotten.
        """

    def append(self, batches: Sequence[Batch]) -> Collection[str]:
        """Keeps events of any number of turns in one go; durable and visible to all readers when it returns.

        A batch may be repeated, alone or at the head of a longer one: what is kept already is passed over. A Done ends
        the turn and begins its time of retention. Returns the turns that another worker has ended, of which nothing was
        kept. Batches of turns that are not known any more are dropped.
        """

    def read(self, turn_id: str, after: int, limit: int) -> list[Event]:
        """Events with ids above `after`, in order, about `limit` of them; empty when there are none."""

    def find(self, turn_id: str) -> Entry | None:
        """The turn's entry; None for one that is not known, or not any more."""

    def turns_of(self, conversation_id: str, caller: str, limit: int) -> list[Entry]:
        """The newest `limit` turns that this caller began in a conversation, oldest first."""

    def news(self, cursors: Mapping[str, int], timeout: float) -> News:
        """Waits up to `timeout` seconds for events behind the cursors, by turn, and for wishes; each wish comes once.

        One greenlet at a time. Empty when nothing came.
        """

    def wake(self) -> None:
        """Makes a `news` that waits return, because there are other cursors now."""

    def ask(self, turn_ids: Collection[str], wish: Wish) -> Collection[str]:
        """Tells the writers of these turns, wherever they are. Returns those of the turns that still run."""

    def renew(self) -> bool:
        """Renews this worker's lease; False when it had ended before, or was never there."""

    def interrupt_orphans(self) -> Collection[str]:
        """Ends the turns of workers whose lease has ended, with what `closing` says. Returns them.

        Ends none while this worker may not judge others.
        """

    def purge(self) -> int:
        """Forgets turns whose time of retention is over, some hundreds at most; returns how many.

        None that runs, and none that is in the outbox.
        """

    def erase(self, conversation_id: str, caller: str) -> Collection[str]:
        """Forgets the turns that this caller began in a conversation, and that have ended: events, entries, keys.

        They leave the outbox, parked or not, and the conversation's living holder gets the wish to deliver, so that it
        learns of it. Returns the turns that still run, which stay. What is another caller's stays.
        """

    def secret(self, proposed: bytes) -> bytes:
        """The relay's own secret, printable ASCII: the first that was proposed, the same for all workers for ever."""

    def close(self) -> None:
        """Gives up the lease. The caller has ended all its turns."""


def closing(reach: int) -> tuple[Failure, Done]:
    """The last events of a turn whose worker died."""
    return Failure(reach + 1, Interrupted.sentence, Interrupted.code), Done(reach + 2, "interrupted")
