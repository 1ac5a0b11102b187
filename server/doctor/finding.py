"""What a check is, and what it can find. No I/O."""

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

CHECK_TIMEOUT = 30.0  # seconds for one check, whatever it waits for


class State(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


class Outcome(NamedTuple):
    """What a look has shown: sentences for people."""

    state: State
    found: str
    fix: str = ""  # what to do; empty where there is nothing to do


class Finding(NamedTuple):
    """An outcome with the name of its check; its texts hold no secret, and nothing that commands a terminal."""

    check: str
    state: State
    found: str
    fix: str


class Check(NamedTuple):
    name: str
    look: Callable[[], Outcome]  # may wait, and may raise: both are bounded by whoever runs it
    needs: tuple[str, ...] = ()  # names of the checks that it stands on


def good(found: str) -> Outcome:
    return Outcome(State.OK, found)


def doubtful(found: str, fix: str) -> Outcome:
    return Outcome(State.WARNING, found, fix)


def bad(found: str, fix: str) -> Outcome:
    return Outcome(State.FAILED, found, fix)


def skipped(why: str) -> Outcome:
    return Outcome(State.SKIPPED, f"not looked at: {why}")
