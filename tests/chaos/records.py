"""What was asked, what each reader saw of it, and what else happened meanwhile."""

from dataclasses import dataclass, field
from typing import Any

from ..transcripts import tokens_of

WIDE_SPACE = "\N{EM SPACE}"  # between two tokens: of three bytes, so that an answer can be cut inside it
ENDLESS = "on and "  # what the sandbox's gateway says without end

# How a turn ends that meets such a fault of the gateway. All others are survived.
CODES = {
    "bad_request_400": "gateway_rejected",
    "forbidden_403": "gateway_forbidden",
    "redirect": "gateway_rejected",
    "html": "answer_malformed",
    "stall": "gateway_stalled",
    "stall_before_first": "gateway_stalled",
    "cut": "answer_cut",
    "no_finish": "answer_cut",
    "malformed": "answer_malformed",
    "error_object": "answer_failed",
    "huge_line": "answer_malformed",
    "endless": "answer_too_long",
    "flood": "turn_timed_out",
}
# What a turn without a fault of its own may fail by while these happen.
OTHERS_CODES = {
    "login": {"credentials_rejected", "credentials_unavailable"},
    "outage": {"gateway_unavailable", "answer_cut", "credentials_unavailable"},
    "expiry": {"gateway_unauthorized"},
}
# Faults that pass after some tries, and end a turn by their own code where an outage has taken the others. Those that
# look like an outage themselves are among its codes above.
UNLIKE_OUTAGES = {"rate_limited"}


@dataclass(frozen=True, slots=True)
class Reader:
    """How one client reads."""

    manner: str  # stays, returns, slow, deaf, leaves
    late: float = 0.0  # seconds after the question
    breaks: tuple[int, ...] = ()  # counts of events after which it goes away; who leaves does not come back
    away: float = 0.1  # seconds
    pause: float = 0.0  # seconds before each read
    has_ticket: bool = False  # in place of the key


@dataclass(frozen=True, slots=True)
class Question:
    conversation: str
    number: int  # in its conversation
    at: float  # seconds from the beginning of the round
    prompt: str
    count: int  # tokens of the answer
    interval_ms: int
    fault: dict[str, Any]  # an order for the sandbox; empty: none
    readers: tuple[Reader, ...]
    is_direct: bool  # the first reader asks at the seed's route
    cancel_after: float | None  # seconds

    def __str__(self) -> str:
        """Without the prompt."""
        manners = " and ".join(reader.manner for reader in self.readers)
        fault = " ".join(f"{name} {value}" for name, value in self.fault.items()) or "no fault"
        return (
            f"{self.conversation} no. {self.number}: {self.count} tokens each {self.interval_ms} ms, {fault}, {manners}"
        )

    @property
    def tokens(self) -> list[str]:
        return [token.replace(" ", WIDE_SPACE) for token in tokens_of(self.number, self.count)]

    @property
    def code(self) -> str | None:
        """By which it has to fail."""
        return CODES.get(self.fault.get("fault", ""))

    @property
    def may_be_cancelled(self) -> bool:
        return self.cancel_after is not None or all(reader.manner in ("deaf", "leaves") for reader in self.readers)


@dataclass(frozen=True, slots=True)
class Event:
    id: int
    kind: str  # token, error, done
    data: dict[str, Any]


@dataclass(slots=True)
class Reading:
    """What one reader got, over all its connections."""

    reader: Reader
    events: list[Event] = field(default_factory=list)
    trouble: str | None = None  # what must not happen to a reader

    @property
    def text(self) -> str:
        return "".join(event.data["token"] for event in self.events if event.kind == "token")

    @property
    def is_ended(self) -> bool:
        return bool(self.events) and self.events[-1].kind == "done"

    @property
    def is_whole(self) -> bool:
        """Whether it had to come to the end."""
        return self.reader.manner not in ("deaf", "leaves")


@dataclass(frozen=True, slots=True)
class Turn:
    id: str
    question: Question
    readings: tuple[Reading, ...]
    state: dict[str, Any]  # as GET shows it in the end
    meanwhile: frozenset[str]  # kinds of faults that came while it ran

    def __str__(self) -> str:
        return f"turn {self.id} ({self.question}; meanwhile {', '.join(sorted(self.meanwhile)) or 'nothing'})"
