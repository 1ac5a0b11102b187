"""Frames: ours as websocket-client reads them, a server's as we do, and RFC 6455's own rules for them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websocket import ABNF, frame_buffer

from server.transcript.framing import Frame, FrameError, FrameReader, client_frame

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


LIMIT = 70_000  # bytes


def server_frame(payload, opcode, is_last=True):
    """As a server sends it: not masked."""
    size = len(payload)
    if size < 126:
        length = bytes([size])
    elif size < 1 << 16:
        length = bytes([126]) + size.to_bytes(2, "big")
    else:
        length = bytes([127]) + size.to_bytes(8, "big")
    return bytes([(0x80 if is_last else 0) | opcode]) + length + payload


def read_frames(pieces):
    reader = FrameReader(LIMIT)
    frames = []
    for piece in pieces:
        reader.feed(piece)
        while (frame := reader.next_frame()) is not None:
            frames.append(frame)
    return frames


FRAMES = st.one_of(
    st.builds(Frame, st.sampled_from([0, 1, 2]), st.binary(max_size=300), st.booleans()),
    st.builds(Frame, st.sampled_from([8, 9, 10]), st.binary(max_size=125), st.just(True)),
    st.builds(Frame, st.just(1), st.integers(65_000, LIMIT).map(bytes), st.just(True)),
)


@given(frames=st.lists(FRAMES, max_size=5), data=st.data())
def test_a_servers_frames_are_read_however_they_are_cut(frames, data):
    sent = b"".join(server_frame(frame.payload, frame.opcode, frame.is_last) for frame in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=8)))
    pieces = [sent[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    assert read_frames(pieces) == frames


def test_a_frame_is_read_byte_by_byte():
    frames = [Frame(1, b"x" * 200, True), Frame(10, b"17", True)]
    sent = b"".join(server_frame(frame.payload, frame.opcode) for frame in frames)
    assert read_frames([bytes([byte]) for byte in sent]) == frames


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"\xc1\x00", "bits"),
        (b"\x81\x80", "bits"),
        (b"\x83\x00", "unknown kind, 3"),
        (b"\x8b\x00", "unknown kind, 11"),
        (b"\x09\x00", "in parts"),
        (b"\x8a\x7e\x00\x7e", "too long"),
        (b"\x81\x7f" + (LIMIT + 1).to_bytes(8, "big"), "more than 70000 bytes"),
        (b"\x81\x7f" + b"\xff" * 8, "more than 70000 bytes"),
    ],
)
def test_what_no_server_may_send_is_refused_at_its_head(head, words):
    with pytest.raises(FrameError, match=words):
        read_frames([server_frame(b"before", 1) + head])
