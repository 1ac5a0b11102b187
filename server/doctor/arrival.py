"""How a stream arrived, and whether something on the way held it back. No I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from ..sse_reader import Received
from .finding import Outcome, bad, doubtful, good

TOGETHER = 0.005  # seconds; what comes within them came in one piece
ONE_BY_ONE = 4  # pieces with tokens in them that no buffer makes of so short an answer
HELD_BACK = 0.25  # seconds above the way to and fro; the opening is sent before the gateway is asked
BUFFERING_FIX = (
    "In nginx set `proxy_http_version 1.1` and `proxy_buffering off`, and take `gzip` for text/event-stream and "
    "`proxy_ignore_headers X-Accel-Buffering` away; elsewhere switch buffering and compression of responses off."
)


class Arrival(NamedTuple):
    at: float  # monotonic seconds
    events: Sequence[Received]


@dataclass(slots=True)
class Reception:
    """One stream, as it arrived."""

    asked_at: float  # monotonic seconds
    headers: Mapping[str, str] = field(default_factory=dict)
    arrivals: list[Arrival] = field(default_factory=list)

    @property
    def events(self) -> list[Received]:
        return [event for arrival in self.arrivals for event in arrival.events]

    @property
    def token_times(self) -> list[float]:
        return [arrival.at for arrival in self.arrivals for event in arrival.events if "token" in event.data]


def judge(reception: Reception, way: float) -> Outcome:
    """Whether a stream arrived whole, and each event when it was sent. `way` is in seconds, to and fro."""
    return spoilt(reception) or paced(reception, way)


def spoilt(reception: Reception) -> Outcome | None:
    """What shows without a look at the clock."""
    for header in ("Content-Length", "Content-Encoding"):
        if header in reception.headers:
            return bad(f"what stands between rewrites the stream ({header} was added)", BUFFERING_FIX)
    events = reception.events
    failure = next((event.data for event in events if "error" in event.data), None)
    if failure is not None:
        return bad(f"the answer failed: {failure['error']} [{failure.get('code')}]", "See what the checks above say.")
    if not events or events[-1].event != "done":
        return bad("the stream ended without `done`", "What stands between cuts responses: raise its read timeout.")
    if not reception.token_times:
        return doubtful("the answer had no text", "Ask again; a model that thinks first needs more tokens.")
    return None


def paced(reception: Reception, way: float) -> Outcome:
    """The server sends the opening before the gateway is asked. Who gathers a response lets it wait for what follows:
    it comes late, and with the answer. A gateway that answers all at once looks no different but for an opening that
    was early."""
    times = reception.token_times
    late = reception.arrivals[0].at - reception.asked_at - way
    lead = times[0] - reception.arrivals[0].at
    pieces = 1 + sum(after - before > TOGETHER for before, after in pairwise(times))
    found = (
        f"{len(times)} tokens in {pieces} {'piece' if pieces == 1 else 'pieces'} over {times[-1] - times[0]:.2f} s; "
        f"the opening {max(0.0, late) * 1000:.0f} ms late, {lead * 1000:.0f} ms before the first of them"
    )
    if pieces >= ONE_BY_ONE:
        return good(found)
    if lead <= TOGETHER and late > HELD_BACK:
        return bad(f"buffered: {found}", BUFFERING_FIX)
    if lead > TOGETHER:
        return good(f"{found}: it is the gateway that answers at once")
    return doubtful(f"too fast to tell: {found}", "Ask with `relay ask --url` for a long answer, and watch it come.")
