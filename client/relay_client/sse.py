"""Bytes of an event stream in, its blocks out (WHATWG HTML, 9.2.6). No I/O."""

import codecs
import re
from typing import NamedTuple

MAX_BLOCK = 1024 * 1024  # characters that a block may have; the relay's own are far shorter
MAX_DIGITS = 10  # of a pause
LINE_END = re.compile(r"\r\n|\n|\r(?!\Z)")  # a CR at the very end may be half of a CR LF


class Block(NamedTuple):
    """The fields of a block; those without data count as well: `id` moves the cursor, `retry` is in milliseconds."""

    event: str = "message"
    data: str | None = None
    id: str | None = None
    retry: int | None = None


class Decoder:
    """One for each connection: what a lost one left unfinished is no part of the next."""

    def __init__(self) -> None:
        self._text = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
        self._rest = ""
        self._fields: dict[str, list[str]] = {}
        self._length = 0  # characters in the fields

    def feed(self, data: bytes) -> list[Block]:
        """The blocks that are whole now. Raises ValueError on one that does not end."""
        *lines, self._rest = LINE_END.split(self._rest + self._text.decode(data))
        blocks = [block for line in lines if (block := self._take(line)) is not None]
        if len(self._rest) + self._length > MAX_BLOCK:
            raise ValueError(f"a block of the event stream is longer than {MAX_BLOCK} characters")
        return blocks

    def _take(self, line: str) -> Block | None:
        if line:
            name, _, value = line.partition(":")
            if name in Block._fields:
                self._fields.setdefault(name, []).append(value.removeprefix(" "))
                self._length += len(line)
            return None
        fields, self._fields, self._length = self._fields, {}, 0
        retry = fields.get("retry", [""])[-1]
        return Block(
            event=fields.get("event", [""])[-1] or "message",
            data="\n".join(fields["data"]) if "data" in fields else None,
            id=fields["id"][-1] if "id" in fields else None,
            retry=int(retry) if retry.isascii() and retry.isdigit() and len(retry) < MAX_DIGITS else None,
        )
