"""What is measured of one turn, for its log line and the metrics."""

from dataclasses import dataclass

from . import metrics
from .metrics import token_gap
from .metrics import tokens as all_tokens


@dataclass(slots=True)
class Measure:
    """Of a turn that began at `began`; all times are in seconds of the monotonic clock."""

    began: float
    tokens: int = 0
    followers: int = 0  # at most at once, in this worker
    first: float | None = None  # when the first text came
    last: float = 0.0  # when the last one came
    longest_gap: float = 0.0  # seconds between two of them

    def take(self, now: float, tokens: int) -> None:
        """So many tokens have come at once. On every token's way: one look at the clock, no lock, no label."""
        if self.first is None:
            self.first = now
            metrics.first_token.observe(now - self.began)
            token_gap.add_zeros(tokens - 1)
        else:
            gap = now - self.last
            self.longest_gap = max(self.longest_gap, gap)
            token_gap.observe(gap, tokens - 1)
        self.last = now
        self.tokens += tokens
        all_tokens.inc(tokens)

    def note_followers(self, count: int) -> None:
        self.followers = max(self.followers, count)

    def end(self, now: float, status: str, code: str) -> None:
        """Counts the turn."""
        metrics.turn_duration.observe(now - self.began)
        metrics.note_end(status, code)

    def fields(self, now: float) -> dict[str, float | None]:
        """For the log."""
        return {
            "tokens": self.tokens,
            "first_token_ms": None if self.first is None else milliseconds(self.first - self.began),
            "longest_gap_ms": milliseconds(self.longest_gap),
            "duration_ms": milliseconds(now - self.began),
            "followers": self.followers,
        }


def milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
