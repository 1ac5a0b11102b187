"""How long to wait before trying again. No I/O; randomness and time are passed in."""

from collections.abc import Callable
from email.utils import parsedate_to_datetime

BASE = 0.5  # seconds; the most that the first wait takes
CAP = 30.0  # seconds; the most that any wait takes
MAX_RETRY_AFTER = 60.0  # seconds; who asks for more is not waited for


def full_jitter(attempt: int, random: Callable[[], float], base: float = BASE, cap: float = CAP) -> float:
    """Seconds to wait after the `attempt`-th failure, counted from 1.

    Evenly spread from 0 to an exponentially growing bound, so that those who failed together do not come back together.
    `random` gives numbers from 0 to 1.
    """
    return random() * min(cap, base * 2.0 ** min(attempt - 1, 30))


def retry_after(header: str | None, now: float) -> float | None:
    """Seconds that a `Retry-After` header asks for (RFC 9110, 10.2.3: seconds or an HTTP date).

    None without a usable one. `now` is in seconds since 1970.
    """
    value = (header or "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None
