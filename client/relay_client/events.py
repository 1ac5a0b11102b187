"""What comes of an answer, one class each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import RelayError


@dataclass(frozen=True, slots=True)
class Begun:
    """The relay has taken the question: where the answer can be followed, by whoever has this address."""

    id: str
    url: str


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection stands; the first one, or another after a loss."""


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the answer's text."""

    id: int
    text: str


@dataclass(frozen=True, slots=True)
class Retrying:
    """The relay itself waits before it asks the gateway again."""

    seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection was lost, or refused for now; the next try comes after `seconds`."""

    seconds: float
    error: RelayError


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the answer ends early; `Done` follows."""

    id: int
    sentence: str
    code: str


@dataclass(frozen=True, slots=True)
class Done:
    """The last event: `status` is complete, failed, cancelled or interrupted."""

    id: int
    status: str
    finish_reason: str | None
    usage: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Other:
    """An event that a newer relay sends and this client does not know."""

    name: str
    data: Mapping[str, Any]


Event = Begun | Opened | Token | Retrying | Lost | Failure | Done | Other
