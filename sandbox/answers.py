"""What the simulated model says: scripts that a developer has ordered, else helpful contact-centre answers."""

import asyncio
import re
from dataclasses import dataclass, field
from typing import Any

MAX_COUNT = 100_000  # of `count to N`
COUNT = re.compile(r"\bcount to (\d{1,6})\b", re.IGNORECASE)
TOKEN = re.compile(r"\s*\S{1,6}")  # about what a real model's tokens look like; joined they give the text

BUILT_IN = [
    (
        ("hour", "open", "closed", "weekend"),
        "We are here for you Monday to Friday from 8:00 to 20:00 and Saturday from 9:00 to 16:00. On public holidays "
        "our self-service stays available around the clock. Would you like me to have someone call you back?",
    ),
    (
        ("order", "parcel", "delivery", "package", "shipping"),
        "I have found your order. It left our warehouse yesterday and is on its way with the carrier; delivery is "
        "planned for tomorrow between 10:00 and 14:00. You can follow the parcel with the link in your "
        "confirmation e-mail. Should it not arrive, tell me and I will open an inquiry right away.",
    ),
    (
        ("invoice", "refund", "bill", "charge", "payment", "money"),
        "I am sorry about the wrong amount. I see a charge of 49,90 € that was booked twice. I have asked our "
        "accounting team to return one of them: the refund reaches your account within 3 to 5 working days, and you "
        "will get a corrected invoice by e-mail.",
    ),
    (
        ("password", "login", "log in", "sign in", "locked"),
        "Let us get you back in. Open the sign-in page, choose “Forgot password” and enter your e-mail address. You "
        "will receive a link that is valid for 30 minutes. If no mail arrives, look into the spam folder first; "
        "after that I can unlock the account for you by hand.",
    ),
    (
        ("cancel", "terminate", "end my contract", "leave"),
        "I can prepare that for you. Your contract can be cancelled with one month's notice to the end of a month. "
        "Before I do: there is a smaller plan at half the price, and a pause of up to three months. Which of these "
        "would you prefer?",
    ),
    (
        ("agent", "human", "person", "someone", "representative"),
        "Of course. I will connect you with a colleague and pass on what we have talked about, so that you need not "
        "repeat it. The wait is about two minutes at the moment. 👋",
    ),
    (
        ("address", "move", "moving", "relocat"),
        "Congratulations on the new home! Tell me the new street, postcode and town, and the day from which they "
        "apply. I will change the address for your contract, your invoices and any open delivery – André from our "
        "team checks it and confirms by e-mail.",
    ),
    (
        ("internet", "outage", "slow", "broken", "not working", "error", "router", "problem"),
        "I have checked your line and see a disturbance in your area since 9:40. Our technicians are working on it "
        "and expect it to be solved by 13:00. Please leave the router switched on: it reconnects by itself. If the "
        "connection is not back by then, restart the router once and write to me again.",
    ),
]
DEFAULT = (
    "Thank you for your question. I can help you with orders, invoices, your contract, your access and technical "
    "problems. Could you tell me a little more about what happened, and since when? Then I will find the quickest "
    "way to solve it – or connect you with a colleague."
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: tokens that joined give the text, and how they are sent. An object among them is a delta as it is."""

    tokens: tuple[str | dict[str, Any], ...]
    interval: float  # seconds between tokens
    finish_reason: str = "stop"
    raw: tuple[str, ...] | None = None  # lines to send as they are, in place of chunks
    gate: str | None = None  # the prompt whose receipts open the way for each further token


@dataclass(slots=True)
class Receipts:
    """How many tokens a client says it has: the gate of a gated script."""

    count: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def raise_to(self, count: int) -> None:
        if count > self.count:
            self.count = count
            self.changed.set()
            self.changed = asyncio.Event()

    async def wait_for(self, count: int) -> None:
        while self.count < count:
            await self.changed.wait()


class Answers:
    """Chooses the answer to a prompt: the newest script that fits, else a built-in one."""

    def __init__(self, pace: float) -> None:
        self._pace = pace
        self._scripts: list[tuple[str, Answer]] = []
        self._receipts: dict[str, Receipts] = {}

    def add_script(self, prompt: str, answer: Answer) -> None:
        self._scripts.insert(0, (prompt, answer))

    def receipts(self, prompt: str) -> Receipts:
        return self._receipts.setdefault(prompt, Receipts())

    def clear(self) -> None:
        self._scripts.clear()
        self._receipts.clear()

    @property
    def pace(self) -> float:
        return self._pace

    def to(self, prompt: str) -> Answer:
        for part, answer in self._scripts:
            if part in prompt:
                return answer
        if found := COUNT.search(prompt):
            numbers = range(1, min(int(found[1]), MAX_COUNT) + 1)
            return Answer(tuple(f"{number} " for number in numbers), self._pace)
        return Answer(tokens_of(built_in(prompt)), self._pace)

    def is_scripted(self, prompt: str) -> bool:
        return any(part in prompt for part, _ in self._scripts)


def built_in(prompt: str) -> str:
    words = prompt.lower()
    return next((text for keys, text in BUILT_IN if any(key in words for key in keys)), DEFAULT)


def tokens_of(text: str) -> tuple[str, ...]:
    return tuple(TOKEN.findall(text))
