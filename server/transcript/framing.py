"""A WebSocket's frames (RFC 6455, 5.2): those that a client sends, and those that it gets. No I/O."""

import os
from collections.abc import Iterator
from typing import NamedTuple

MORE, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA  # opcodes; MORE goes on with a message
CONTROL = {CLOSE, PING, PONG}
WHOLE = 0x80  # the bit FIN: a message in one frame, or its last
RESERVED = 0x70  # bits of extensions, of which we ask for none
MASKED = 0x80
KEY_BLOCK = 4096  # bytes
MAX_CONTROL = 125  # bytes that a control frame may carry (5.5)


class FrameError(Exception):
    """What came is no frame that a server may send, or too long a one."""


class Frame(NamedTuple):
    """One that came whole."""

    opcode: int
    payload: bytes
    is_last: bool  # of its message


class FrameReader:
    """Frames of a server, out of bytes as they come."""

    def __init__(self, max_size: int) -> None:
        """`max_size` is in bytes, of one frame's payload."""
        self._max_size = max_size
        self._data = b""  # that came and is no frame yet

    def feed(self, data: bytes) -> None:
        """To be followed by `next_frame` until that has none: what is held stays below a frame and a read."""
        self._data += data

    def next_frame(self) -> Frame | None:
        """The next one that is there as a whole. Raises FrameError as soon as it is sure."""
        data = self._data
        if len(data) < 2:
            return None
        first, size, begin = data[0], data[1], 2
        check_head(first, size)
        if size >= 126:
            begin += 2 if size == 126 else 8
            if len(data) < begin:
                return None
            size = int.from_bytes(data[2:begin], "big")
        if size > self._max_size:
            raise FrameError(f"the platform sent more than {self._max_size} bytes at once")
        end = begin + size
        if len(data) < end:
            return None
        self._data = data[end:]
        return Frame(first & 0x0F, data[begin:end], bool(first & WHOLE))


def check_head(first: int, second: int) -> None:
    """Raises FrameError for what a server must not send: its first two bytes tell."""
    opcode = first & 0x0F
    if first & RESERVED or second & MASKED:
        raise FrameError("the platform sent a frame with bits that it must not set")
    if opcode in CONTROL:
        if not first & WHOLE or second > MAX_CONTROL:
            raise FrameError("the platform sent a control frame in parts, or too long a one")
    elif opcode > BINARY:
        raise FrameError(f"the platform sent a frame of an unknown kind, {opcode}")


def random_keys() -> Iterator[bytes]:
    """Four bytes each, taken from the system by the block: a call for each takes three times as long, 0.4 µs."""
    while True:
        block = os.urandom(KEY_BLOCK)
        yield from (block[begin : begin + 4] for begin in range(0, KEY_BLOCK, 4))


keys = random_keys()  # nothing of it is drawn until a link is open: no two processes share a block


def client_frame(payload: bytes, opcode: int) -> bytes:
    """A whole message, masked as a client's must be, with a key that nobody can foresee (5.3)."""
    size = len(payload)
    if size < 126:
        head = bytes((WHOLE | opcode, MASKED | size))
    elif size < 1 << 16:
        head = bytes((WHOLE | opcode, MASKED | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((WHOLE | opcode, MASKED | 127)) + size.to_bytes(8, "big")
    key = next(keys)
    mask = (key * (size // 4 + 1))[:size]
    masked = int.from_bytes(payload, "little") ^ int.from_bytes(mask, "little")
    return head + key + masked.to_bytes(size, "little")
