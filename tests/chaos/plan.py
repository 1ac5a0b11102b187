"""What a seed stands for: which questions are asked, by whom they are read, and what breaks when. Pure."""

import random
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from sandbox.faults import GATEWAY, OAUTH

from ..schedules import LINK_FAULTS
from .records import Question, Reader

CONVERSATIONS = 1.5  # begun a second
FAULTS = 1.0  # a second
HEAVY = ("endless", "flood", "huge_line")  # each once a round at most: they take a core for seconds
FROM_THE_START = ("stall_before_first", "cut_before_first", "refused")
MANNERS = {"stays": 4, "returns": 4, "slow": 2, "deaf": 1, "leaves": 1}
MORE_LINK_FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("no_pongs", {}),
    ("cookie", {}),
    ("odd_cookie", {}),
    ("slow_handshake", {}),
    ("huge_frame", {"after": 2}),
    ("endless_message", {"after": 2}),
]
# Kinds of faults, and how often each comes.
KINDS = {
    "link": 10,
    "login": 3,
    "expiry": 2,
    "outage": 1,
    "kill": 3,
    "hup": 2,
    "term": 3,
    "stop": 1,
    "store": 2,
    "redis restart": 2,
    "disk full": 2,
    "clock": 4,
    "proxy reload": 1,
}
REPLACING = ("kill", "hup", "term")
LAST_REPLACED = 0.6  # of the round; the last workers live long enough to show what they leak


class Fault(NamedTuple):
    at: float  # seconds from the beginning of the round
    kind: str
    details: Any = None  # seconds, or an order for the sandbox without its place


class Plan(NamedTuple):
    questions: list[Question]
    faults: list[Fault]


def make_plan(seed: int, seconds: float, without: Collection[str] = ()) -> Plan:
    """`without` are kinds of faults that do not come."""
    kinds = {kind: weight for kind, weight in KINDS.items() if kind not in without}
    dice = random.Random(seed)
    heavy = list(HEAVY)
    questions = []
    for number in range(max(1, int(seconds * CONVERSATIONS))):
        questions += conversation(dice, f"chaos-{seed}-{number}", dice.uniform(0, seconds * 0.9), heavy)
    faults = [fault(dice, dice.uniform(0, seconds), kinds) for _ in range(int(seconds * FAULTS))]
    return Plan(questions, sorted(faults, key=lambda one: one.at))


def conversation(dice: random.Random, name: str, at: float, heavy: list[str]) -> list[Question]:
    """Up to four questions, one after the other but not each only after the last answer."""
    if heavy and dice.random() < 0.05:
        return [question(dice, name, 0, at, {"fault": heavy.pop(), "after": 3})]
    questions = []
    for number in range(dice.randint(1, 4)):
        questions.append(question(dice, name, number, at, gateway_fault(dice) if dice.random() < 0.5 else {}))
        at += dice.uniform(0, 3)
    return questions


def question(dice: random.Random, name: str, number: int, at: float, order: dict[str, Any]) -> Question:
    return Question(
        conversation=name,
        number=number,
        at=at,
        prompt=f"What nobody may read {name}/{number}/{dice.getrandbits(64):016x}",
        count=dice.choice([1, 5, 40, 150]),
        interval_ms=dice.choice([0, 5, 20, 40]),
        fault=order,
        readers=tuple(reader(dice) for _ in range(dice.choice([1, 1, 2, 3]))),
        is_direct=dice.random() < 0.5,
        cancel_after=dice.uniform(0, 3) if dice.random() < 0.08 else None,
    )


def gateway_fault(dice: random.Random) -> dict[str, Any]:
    name = dice.choice([name for name in GATEWAY if name not in HEAVY])
    order: dict[str, Any] = {"fault": name}
    if name not in FROM_THE_START:
        order["after"] = dice.choice([1, 3, 10])  # from the first token on nothing is tried again
    if name in ("rate_limited", "unavailable_503", "error_500", "cut_before_first"):
        order["calls"] = dice.randint(1, 2)  # of three tries
    if name in ("rate_limited", "unavailable_503") and dice.random() < 0.5:
        order["retry_after"] = 1
    return order


def reader(dice: random.Random) -> Reader:
    manner = dice.choices(list(MANNERS), MANNERS.values())[0]
    breaks: tuple[int, ...] = ()
    if manner == "returns":
        breaks = tuple(sorted(dice.sample(range(1, 60), dice.randint(1, 4))))
    elif manner == "leaves":
        breaks = (dice.randint(1, 20),)
    return Reader(
        manner,
        late=dice.choice([0, 0, dice.uniform(0, 3)]),
        breaks=breaks,
        away=dice.uniform(0, 2),
        pause=dice.choice([0.02, 0.1, 0.3]) if manner == "slow" else 0.0,
        has_ticket=dice.random() < 0.5,
    )


def fault(dice: random.Random, at: float, kinds: Mapping[str, int]) -> Fault:
    kind = dice.choices(list(kinds), kinds.values())[0]
    details: Any = None
    if kind in REPLACING:
        at *= LAST_REPLACED
    if kind == "link":
        name, order = dice.choice([*LINK_FAULTS, *MORE_LINK_FAULTS])
        details = {"fault": name, **order}
    elif kind == "login":
        details = {"fault": dice.choice([name for name in OAUTH if name != "refused"]), "calls": dice.randint(1, 3)}
    elif kind == "clock":
        details = dice.choice([-120.0, -2.0, 0.0, 2.0, 30.0, 300.0])
    elif kind in ("outage", "store", "redis restart", "disk full"):
        details = dice.choice([0.5, 1.5, 4.0, 6.0])  # a lease lasts three
    return Fault(at, kind, details)
