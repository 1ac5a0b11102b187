"""Server-Sent Events bytes in, events out, for our own command line. No I/O.

WHATWG HTML, 9.2.6, for streams whose lines end in LF or CR LF: ours, whatever a proxy makes of them.
"""

import json
from typing import Any, NamedTuple

MAX_EVENT = 4 * 1024 * 1024  # bytes; more without an empty line is no stream of ours


class Received(NamedTuple):
    id: int | None
    event: str  # `message` where it has no name
    data: dict[str, Any]


class StreamReader:
    """Reads one stream. `last_id` is what to come back with."""

    def __init__(self) -> None:
        self.last_id = 0
        self._rest = b""

    def restart(self) -> None:
        """Forgets half an event: another connection begins behind `last_id`."""
        self._rest = b""

    def feed(self, data: bytes) -> list[Received]:
        """The events that `data` completes. Raises ValueError for what is no stream of ours."""
        *blocks, self._rest = (self._rest + data).replace(b"\r\n", b"\n").split(b"\n\n")
        if len(self._rest) > MAX_EVENT:
            raise ValueError("an event without an end")
        return [event for event in map(self._read, blocks) if event is not None]

    def _read(self, block: bytes) -> Received | None:
        fields: dict[str, str] = {}
        for line in block.decode().split("\n"):
            name, _, value = line.partition(":")
            if name:  # else a comment
                fields[name] = value.removeprefix(" ")
        number = int(fields["id"]) if "id" in fields else None
        if number is not None:
            self.last_id = number
        if "data" not in fields:
            return None
        data = json.loads(fields["data"])
        if not isinstance(data, dict):
            raise ValueError("an event that is no JSON object")  # noqa: TRY004 - it is the stream that is wrong
        return Received(number, fields.get("event", "message"), data)
