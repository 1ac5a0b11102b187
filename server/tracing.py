"""Which trace a turn belongs to: W3C Trace Context in and out. No I/O; chance is passed in.

https://www.w3.org/TR/trace-context-2/; the sections named below are its.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

# 3.2.2. What a later version adds comes behind a dash, and is not ours to read.
TRACEPARENT = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})"
)
LENGTH = 55  # characters of version 00
MAX_TRACEPARENT = 512  # characters of a later version
SAMPLED = 1
KNOWN_FLAGS = 3  # sampled, and that the trace's id is random (3.2.2.5)
# 3.3.1.3: a key, of one vendor or of one of its tenants; a value of printable ASCII that ends with no space.
MEMBER = re.compile(
    r"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
MAX_MEMBERS = 32  # 3.3.1.1
MAX_STATE = 512  # characters, which is what 3.3.1.5 asks all to pass on

Hex = Callable[[int], str]  # so many random bytes as lower-case hex, such as secrets.token_hex


class TraceContext(NamedTuple):
    """Where something stands in a trace: `span_id` is the one under which it happens."""

    trace_id: str  # 32 hex digits
    span_id: str  # 16 hex digits
    flags: int = SAMPLED
    state: str = ""  # what vendors have added, as it came

    @property
    def headers(self) -> dict[str, str]:
        """To be sent with what is asked of others."""
        parent = {"traceparent": f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"}
        return parent | {"tracestate": self.state} if self.state else parent


def read(traceparent: str | None, tracestate: str | None) -> TraceContext | None:
    """What came with a request; None where that is no trace (3.2.2, 4.3)."""
    if traceparent is None:
        return None
    found = TRACEPARENT.match(traceparent)
    if found is None or not is_of_version(found["version"], traceparent):
        return None
    trace_id, span_id = found["trace"], found["span"]
    if not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceContext(trace_id, span_id, int(found["flags"], 16) & KNOWN_FLAGS, read_state(tracestate))


def is_of_version(version: str, traceparent: str) -> bool:
    if version == "00":
        return len(traceparent) == LENGTH
    rest = traceparent[LENGTH:]
    return version != "ff" and len(traceparent) <= MAX_TRACEPARENT and rest[:1] in ("", "-")


def read_state(tracestate: str | None) -> str:
    """What is passed on of a tracestate: all of it, or nothing of one that is malformed (4.3)."""
    members = [member.strip(" \t") for member in (tracestate or "").split(",")]
    members = [member for member in members if member]
    keys = {member.partition("=")[0] for member in members}
    state = ",".join(members)
    fits = len(members) <= MAX_MEMBERS and len(state) <= MAX_STATE and len(keys) == len(members)
    return state if fits and all(map(MEMBER.fullmatch, members)) else ""


def under(parent: TraceContext | None, random_hex: Hex) -> TraceContext:
    """A new span: of its parent's trace, or of a new one.

    A new trace counts as sampled: we log it, and the gateway's own tracing must not be switched off by us.
    """
    if parent is None:
        return TraceContext(other_than_zero(16, random_hex), other_than_zero(8, random_hex), KNOWN_FLAGS)
    return parent._replace(span_id=other_than_zero(8, random_hex))


def other_than_zero(size: int, random_hex: Hex) -> str:
    while not int(value := random_hex(size), 16):
        pass
    return value
