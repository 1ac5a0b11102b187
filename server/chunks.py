"""Gateway bytes in, deltas out. No I/O.

The wire is OpenAI's chat.completion.chunk, a JSON object a line, as `data: {...}` (Server-Sent Events, one line each)
or bare (NDJSON), ended by `data: [DONE]`. Gateways differ: see `tests/test_chunks.py` for all that is read.
"""

import json
from contextlib import suppress
from typing import Any, NamedTuple

import orjson

from .errors import AnswerCut, AnswerFailed, AnswerMalformed, RateLimited

MAX_LINE = 1024 * 1024  # bytes; a longer line is no chunk of an answer
MAX_FINISH_REASON = 64  # characters; followers and logs get it
MAX_EXTRA = 256 * 1024  # bytes of JSON; what a delta holds beside its text
MAX_USAGE = 16 * 1024  # bytes of JSON; larger is no account of tokens
MAX_FORM = 4096  # bytes of a line whose form is remembered
LESSONS = 8  # forms that are learned of one answer: some gateways put a time into each chunk
NO_LINE = b"\n"  # is in none
PLAIN = frozenset({"role", "content"})  # of a delta; all else is extra
HIGH_SURROGATES = range(0xD800, 0xDC00)


class Beside(NamedTuple):
    """What is no text: the reason why the answer ended, or what it used, or what it holds beside its text.

    `choice` is JSON: see `sse.Extra`.
    """

    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    choice: bytes = b""


Delta = str | Beside  # a piece of the answer: text, as a rule


class ChunkReader:
    """Reads one answer.

    `feed` takes the bytes as they arrive, cut anywhere; `end` tells that no more will come. `done` is set once [DONE]
    was read: what follows is none of the answer's.
    """

    def __init__(self, lessons: int = LESSONS) -> None:
        """`lessons` bounds how often it learns the form of this answer's lines: see `_learn`."""
        self.done = False
        self.finished = False
        self._rest = b""
        self._half = ""
        self._before = self._behind = NO_LINE  # what stood around the text of an earlier line
        self._lessons = lessons

    def feed(self, data: bytes) -> list[Delta]:
        """Returns the deltas that `data` completes, in order.

        Raises Broken, with AnswerMalformed for a line that is no chunk, with AnswerFailed or RateLimited for an error
        that the gateway reports in mid-stream, and with the deltas of the same `data` that stand in front of it.
        """
        if self.done:
            return []
        # As a rule; to split it into lines first takes a fifth longer.
        is_one_event = data.endswith(b"\n\n") and data.find(b"\n") == len(data) - 2 and not self._rest
        if is_one_event and (text := self._text_of(data[:-2])):
            return [text]
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = b""
        deltas: list[Delta] = []
        try:
            for line in lines:
                if line:
                    self._read(line, deltas)
                    if self.done:
                        return deltas
            if rest:
                check_length(rest)
        except (AnswerMalformed, AnswerFailed, RateLimited) as error:
            raise Broken(deltas, error) from None
        self._rest = rest
        return deltas

    def end(self) -> list[Delta]:
        """The body has ended: returns what its last line, left without a line end, completes.

        Raises Broken as `feed`, and with AnswerCut when neither [DONE] nor a finish_reason was there.
        """
        deltas = [] if self.done else self.feed(b"\n")
        if not self.done and not self.finished:
            raise Broken(deltas, AnswerCut(detail="the body ended without finish_reason and [DONE]"))
        self._give_up_half(deltas)
        return deltas

    def _read(self, line: bytes, deltas: list[Delta]) -> None:
        if text := self._text_of(line):
            deltas.append(text)
            return
        check_length(line)
        known = len(deltas)
        self._read_any(line.strip(), deltas)
        if self._lessons and len(deltas) == known + 1 and type(deltas[-1]) is str and len(line) <= MAX_FORM:
            self._learn(line, deltas[-1])

    def _text_of(self, line: bytes) -> str:
        """The text of a line that is like one before; "" for any other, or where its middle is not a plain string."""
        if not line.startswith(self._before) or not line.endswith(self._behind):
            return ""
        try:
            text = orjson.loads(line[len(self._before) : -len(self._behind)])
        except orjson.JSONDecodeError:
            return ""
        return text if type(text) is str and not self._half and len(line) <= MAX_LINE else ""

    def _learn(self, line: bytes, text: str) -> None:
        """Remembers what stands around the text, which gateways repeat in each chunk: a line that is the same but for
        another string in the same place is the same but for its text. To read that string alone takes a third of what
        the whole line takes, which was a tenth of a token's cost.
        """
        self._lessons -= 1
        before, found, behind = line.partition(orjson.dumps(text))
        if not found or not behind:
            return
        # The same string may stand in another place, in other spelling: whether it is the text shows when it changes.
        other = text + "?"
        with suppress(Broken):
            if ChunkReader(lessons=0).feed(before + orjson.dumps(other) + behind + b"\n") == [other]:
                self._before, self._behind = before, behind

    def _read_any(self, line: bytes, deltas: list[Delta]) -> None:
        if line.startswith(b"data:"):
            line = line[5:].lstrip()
        elif not line.startswith(b"{"):
            if not line or line.startswith((b":", b"event:", b"id:", b"retry:")):
                return  # SSE's other lines carry nothing of the answer
            raise AnswerMalformed(detail="a line that is neither SSE nor JSON")
        if line == b"[DONE]":
            self.done = True
            self._give_up_half(deltas)
            return
        if not line:
            return
        try:
            self._chunk(orjson.loads(line), deltas)
        except orjson.JSONDecodeError:
            self._chunk(parse_leniently(line), deltas, halves=True)

    def _chunk(self, chunk: Any, deltas: list[Delta], halves: bool = False) -> None:
        try:
            if error := chunk.get("error"):
                raise reported(error)
            choices = chunk.get("choices")
            if choices:
                choice = choices[0]
                piece = choice.get("delta") or choice.get("message") or {}
                text = piece.get("content")
                if len(piece) > 1 or not text or choice.get("logprobs"):
                    add_extra(choice, piece, deltas)
                if text:
                    if type(text) is not str:
                        raise TypeError
                    if halves or self._half:
                        text = self._join_halves(text)
                    if text:
                        deltas.append(text)
                if reason := choice.get("finish_reason"):
                    self.finished = True
                    self._give_up_half(deltas)
                    deltas.append(Beside(finish_reason=readable(reason)))
            if (usage := chunk.get("usage")) and can_be_told(usage):
                deltas.append(Beside(usage=usage))
        except (AttributeError, TypeError, KeyError, ValueError, RecursionError):
            raise AnswerMalformed(detail="JSON that is no chat.completion.chunk") from None

    def _join_halves(self, text: str) -> str:
        """Keeps half a surrogate pair at the end of a chunk for the next one, where its other half is."""
        text = self._half + text
        self._half = text[-1] if ord(text[-1]) in HIGH_SURROGATES else ""
        return mend(text[: -1 if self._half else None])

    def _give_up_half(self, deltas: list[Delta]) -> None:
        """The answer ends here: what still waits for its other half stays alone."""
        if self._half:
            deltas.append(mend(self._half))
            self._half = ""


class Broken(Exception):
    """An answer that breaks off: the deltas that came before, and why."""

    def __init__(self, deltas: list[Delta], reason: AnswerMalformed | AnswerFailed | AnswerCut | RateLimited) -> None:
        super().__init__(reason.code)
        self.deltas = deltas
        self.reason = reason


def add_extra(choice: dict[str, Any], piece: dict[str, Any], deltas: list[Delta]) -> None:
    """Adds what a choice holds beside its text and role, if anything: empty fields say nothing.

    It stands before the text of the same delta: of what a model does at once, its reasoning comes first. Raises
    AnswerMalformed for what no answer of ours could hold.
    """
    found: dict[str, Any] = {name: value for name, value in piece.items() if value and name not in PLAIN}
    if "tool_calls" in found and not choice.get("delta"):
        found["tool_calls"] = numbered(found["tool_calls"])
    extra: dict[str, Any] = {"delta": found} if found else {}
    if logprobs := choice.get("logprobs"):
        extra["logprobs"] = logprobs
    if extra:
        deltas.append(Beside(choice=dump(extra)))


def numbered(calls: Any) -> Any:
    """The tool calls of a whole message as a delta has them."""
    return [{"index": index} | call for index, call in enumerate(calls)]


def dump(extra: dict[str, Any]) -> bytes:
    """As JSON, with half surrogate pairs mended. Raises AnswerMalformed."""
    try:
        found = orjson.dumps(extra)
    except TypeError:
        try:  # the lenient parser lets pass what orjson does not: half a surrogate pair, numbers of any size
            found = orjson.dumps(orjson.loads(mend(json.dumps(extra, ensure_ascii=False))))
        except (TypeError, ValueError, RecursionError):
            raise AnswerMalformed(detail="a delta that no JSON of ours can hold") from None
    if len(found) > MAX_EXTRA:
        raise AnswerMalformed(detail=f"a delta with more than {MAX_EXTRA} bytes beside its text")
    return found


def check_length(line: bytes) -> None:
    """Raises AnswerMalformed for a line that is too long, whether its end is there or not: how it arrives is chance."""
    if len(line) > MAX_LINE:
        raise AnswerMalformed(detail=f"a line longer than {MAX_LINE} bytes")


def parse_leniently(line: bytes) -> Any:
    """JSON with half a surrogate pair, which RFC 8259 (8.2) allows, some gateways send and orjson refuses."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):  # RecursionError: nested a thousand times and more
        raise AnswerMalformed(detail="a line that is not JSON") from None


def mend(text: str) -> str:
    """Joins surrogate pairs; a half that stays alone becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def readable(reason: Any) -> str:
    """A finish_reason that can be sent on: OpenAI's are one word, others' may be anything."""
    return mend(reason)[:MAX_FINISH_REASON] if isinstance(reason, str) else "unknown"


def can_be_told(usage: Any) -> bool:
    """Whether `usage` is an object that our own JSON can hold (orjson: 64-bit numbers, some 250 levels)."""
    try:
        return isinstance(usage, dict) and len(orjson.dumps(usage)) <= MAX_USAGE
    except TypeError:
        return False


def reported(error: Any) -> AnswerFailed | RateLimited:
    """The gateway's own report. Its message may quote the prompt, so only code and type are kept."""
    code, kind = (error.get("code"), error.get("type")) if isinstance(error, dict) else (None, None)
    detail = f"error object, code={str(code)[:40]!r} type={str(kind)[:40]!r}"
    return RateLimited(detail=detail) if str(code) == "429" else AnswerFailed(detail=detail)
