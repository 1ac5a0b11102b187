"""What must hold for each turn whatever broke: pure, and tried with faulty records in test_chaos_judge.py."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..transcripts import faults_of
from .records import ENDLESS, OTHERS_CODES, UNLIKE_OUTAGES, Event, Question, Reading, Turn

DEADLY = {"kill", "stop"}  # only these may end a turn with `interrupted`
STORE = {"store", "disk full", "redis restart"}
LAST_MOMENT = "its worker's end"  # came with the turn's own, before that was kept


def violations(turn: Turn) -> list[str]:
    """Each said with what was seen; empty when all promises were kept."""
    found = [*of_end(turn), *of_text(turn.state["text"], turn.question, "the journal")]
    for reading in turn.readings:
        found += [f"{reading.reader.manner}: {fault}" for fault in of_reading(turn, reading)]
    return found


def of_end(turn: Turn) -> Iterator[str]:
    """Whether it ended, and as it may."""
    status, code = turn.state["status"], turn.state.get("code")
    if status == "running":
        yield "runs on"
    elif status == "complete":
        if turn.state["text"] != "".join(turn.question.tokens):
            yield f"complete with the text {shortened(turn.state['text'])}"
    elif status == "cancelled":
        if not turn.question.may_be_cancelled:
            yield "cancelled, though nobody wanted it and someone read it"
    elif status == "interrupted":
        if not turn.meanwhile & DEADLY:
            yield f"interrupted, though no worker died; meanwhile: {sorted(turn.meanwhile)}"
    elif code not in codes_of(turn):
        yield f"{status} with {code}, asked for was {turn.question.fault}; meanwhile: {sorted(turn.meanwhile)}"


def codes_of(turn: Turn) -> set[str | None]:
    """By which it may fail."""
    codes = {turn.question.code}.union(*(OTHERS_CODES.get(kind, set()) for kind in turn.meanwhile))
    if "outage" in turn.meanwhile:
        codes |= UNLIKE_OUTAGES & {turn.question.fault.get("fault")}
    return codes


def of_reading(turn: Turn, reading: Reading) -> Iterator[str]:
    """Every token once and in order, consecutive ids, exactly one `done`, and the journal's text."""
    if reading.trouble:
        yield reading.trouble
    yield from of_text(reading.text, turn.question, "it")
    yield from of_ids(reading.events)
    ends = [event for event in reading.events if event.kind == "done"]
    if len(ends) > 1 or (ends and reading.events[-1].kind != "done"):
        yield f"done came {len(ends)} times, or not last"
    if not reading.is_whole or reading.trouble:
        return
    if not ends:
        yield "no done"
        return
    if may_differ(turn):
        return
    if ends[0].data["status"] != turn.state["status"]:
        yield f"was told {ends[0].data['status']}, the journal has {turn.state['status']}"
    # What a worker sent in the moment before it died is not kept; who followed there has some more.
    is_equal = turn.state["status"] != "interrupted" and reading.text == turn.state["text"]
    if not is_equal and not (turn.state["status"] == "interrupted" and reading.text.startswith(turn.state["text"])):
        yield f"has {shortened(reading.text)}, the journal {shortened(turn.state['text'])}"


def may_differ(turn: Turn) -> bool:
    """A worker that could keep nothing and was killed then takes along what its followers have seen."""
    return bool(turn.meanwhile & DEADLY and turn.meanwhile & (STORE | {LAST_MOMENT}))


def of_ids(events: list[Event]) -> Iterator[str]:
    """Consecutive from 1; they may jump once, before the closing events of a turn whose worker died.

    Who leaves may do so between the two.
    """
    last = 0
    for event in events:
        is_jump = event.kind == "error" and event.data.get("code") == "interrupted" and event.id > last
        if event.id != last + 1 and not is_jump:
            yield f"id {event.id} ({event.kind}) after {last}"
        last = event.id


def of_text(text: str, question: Question, who: str) -> Iterator[str]:
    """The answer from its beginning on: nothing twice, nothing out of order, no gap."""
    whole = "".join(question.tokens)
    # A try that met an outage has used the fault up; then the answer is an ordinary one.
    if question.fault.get("fault") == "endless" and not whole.startswith(text):
        whole = "".join(question.tokens[: question.fault["after"]])
        whole += ENDLESS * (max(0, len(text) - len(whole)) // len(ENDLESS) + 1)
    if not whole.startswith(text):
        place = next((at for at, (one, two) in enumerate(zip(text, whole, strict=False)) if one != two), len(whole))
        yield f"{who} has {shortened(text[place:])} where {shortened(whole[place:])} belongs, after {place} characters"


def of_conversation(
    conversation: Mapping[str, Any], turns: list[Turn], outages: Sequence[tuple[float, float]] = ()
) -> list[str]:
    """Whether the transcript is what the journal has of all its turns.

    A holder that died while the store was out of order, in one of the `outages` (seconds since 1970), could not leave
    word of what had arrived.
    """
    texts = [turn.state["text"] for turn in turns]
    undelivered = [turn.id for turn in turns if (turn.state.get("transcript") or {}).get("state") != "delivered"]
    found = [f"not delivered: {undelivered}"] if undelivered else []
    if any(turn.question.fault.get("fault") == "endless" for turn in turns):
        got = len(conversation["text"])
        return found + ([f"transcript has {got} characters of {len(texts[0])}"] if got < len(texts[0]) else [])
    return found + [f"transcript: {fault}" for fault in faults_of(conversation, texts, outages)]


def leaks_of(outputs: Mapping[str, str], secrets: Mapping[str, str]) -> list[str]:
    """Both by name; a secret itself is never shown."""
    return [
        f"{name} is in {place}" for place, text in outputs.items() for name, secret in secrets.items() if secret in text
    ]


def shortened(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:20]!r}...{text[-20:]!r} ({len(text)} characters)"
