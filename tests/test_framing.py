"""Frames, as websocket-client reads them, and RFC 6455's own rules for them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websocket import ABNF, frame_buffer

from server.transcript.framing import client_frame

OPCODES = [ABNF.OPCODE_TEXT, ABNF.OPCODE_PING, ABNF.OPCODE_PONG, ABNF.OPCODE_CLOSE]


def frames_in(data):
    """All frames that there are, unmasked by the reader."""
    rest = bytearray(data)

    def receive(size):
        taken = bytes(rest[:size])
        del rest[:size]
        return taken

    reader = frame_buffer(receive, skip_utf8_validation=True)
    frames = []
    while rest:
        frames.append(reader.recv_frame())
    return frames


def read(data):
    (frame,) = frames_in(data)
    return frame


@given(payload=st.binary(max_size=300), opcode=st.sampled_from(OPCODES[:3]))
def test_a_frame_is_read_as_it_was_meant(payload, opcode):
    frame = read(client_frame(payload, opcode))
    assert (frame.fin, frame.rsv1, frame.rsv2, frame.rsv3) == (1, 0, 0, 0)
    assert frame.opcode == opcode
    assert frame.data == payload


@pytest.mark.parametrize(("size", "head"), [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)])
def test_the_length_takes_as_few_bytes_as_it_can(size, head):
    payload = bytes(n % 251 for n in range(size))
    data = client_frame(payload, ABNF.OPCODE_TEXT)
    assert len(data) == head + len("mask") + size
    assert read(data).data == payload


def test_each_frame_is_masked_with_a_key_of_its_own():
    frames = [client_frame(b"x", ABNF.OPCODE_TEXT) for _ in range(100)]
    assert all(frame[1] & 0x80 for frame in frames)
    assert len({frame[2:6] for frame in frames}) == 100


def test_a_close_frame_carries_its_code():
    frame = read(client_frame((1001).to_bytes(2, "big"), ABNF.OPCODE_CLOSE))
    assert frame.data == b"\x03\xe9"
