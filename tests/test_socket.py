"""The transcript's socket: what is sent without waiting, and the rest of it."""

import socket as plain
from contextlib import suppress

import gevent
import gevent.socket
import pytest

from server.transcript import socket
from server.transcript.framing import CLOSE, PING, PONG, TEXT
from server.transcript.socket import LinkLost, Socket

from .test_framing import frames_in, server_frame

PAYLOAD = b"x" * 10_000


@pytest.fixture
def link(monkeypatch):
    """An open one, the far end of its connection, and whether its holder may send."""
    ours, theirs = gevent.socket.socketpair()
    ours.setsockopt(plain.SOL_SOCKET, plain.SO_SNDBUF, 4096)
    monkeypatch.setattr(socket, "open_link", lambda url, token: (ours, b""))
    may = [True]
    yield Socket("wss://nowhere", "token", lambda: may[0]), theirs, may
    ours.close()
    theirs.close()


def fill(link):
    """Until the kernel takes no more; the number of frames that are on their way, the last of them in part."""
    for count in range(1, 1000):
        if not link.send_now(PAYLOAD):
            return count
    raise AssertionError("it takes all")


def test_what_the_kernel_does_not_take_follows_before_anything_else(link):
    link, theirs, _ = link
    count = fill(link)
    with pytest.raises(BlockingIOError):
        link.send_now(b"overtakes")
    received = bytearray()
    reader = gevent.spawn(lambda: [received.extend(data) for data in iter(lambda: theirs.recv(65536), b"")])
    link.flush()
    link.send(b"last", TEXT)
    link.close(1000)
    theirs.shutdown(plain.SHUT_RDWR)
    reader.join(5)
    frames = frames_in(received)
    assert [frame.data for frame in frames[: count + 1]] == [PAYLOAD] * count + [b"last"]


def test_half_a_frame_is_not_followed_by_a_farewell(link):
    link, theirs, _ = link
    count = fill(link)
    link.close(1000)
    received = bytearray()
    with suppress(ConnectionResetError):
        while data := theirs.recv(65536):
            received += data
    assert len(received) < count * len(PAYLOAD)


def test_who_may_not_send_sends_nothing(link):
    link, theirs, may = link
    may[0] = False
    with pytest.raises(LinkLost):
        link.send_now(b"too late")
    link.flush()
    theirs.settimeout(0.0)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)


def test_a_link_that_is_gone_has_taken_nothing(link):
    link, theirs, _ = link
    theirs.close()
    with pytest.raises(OSError, match=r"pipe|reset"):
        link.send_now(b"to no one")
    link.flush()


def test_pongs_are_given_while_the_reader_sleeps_until_no_more_is_wanted(link):
    link, theirs, _ = link
    pongs = []

    def take(payload):
        pongs.append((payload, gevent.getcurrent() is gevent.get_hub()))
        return payload != b"3"

    reader = gevent.spawn(link.read, take)
    gevent.sleep(0)
    theirs.sendall(server_frame(b"1", PONG) + server_frame(b"a text", TEXT) + server_frame(b"2", PONG)[:2])
    theirs.sendall(b"2" + server_frame(b"3", PONG) + server_frame(b"4", PONG))
    reader.get(timeout=5)
    link.read(lambda payload: pongs.append((payload, False)))
    assert pongs == [(b"1", True), (b"2", True), (b"3", True), (b"4", False)]


def test_a_ping_is_answered_before_what_follows_it_is_read(link):
    link, theirs, _ = link
    theirs.sendall(server_frame(b"are you there", PING) + server_frame(b"1", PONG))
    link.read(lambda _: False)
    (frame,) = frames_in(theirs.recv(100))
    assert (frame.opcode, frame.data) == (PONG, b"are you there")


def test_a_pong_that_cannot_be_taken_breaks_the_reader_and_not_the_hub(link):
    link, theirs, _ = link
    reader = gevent.spawn(link.read, lambda payload: 1 // len(payload))
    gevent.sleep(0)
    theirs.sendall(server_frame(b"", PONG))
    with pytest.raises(ZeroDivisionError):
        reader.get(timeout=5)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (server_frame((1012).to_bytes(2, "big"), CLOSE), "closed by the platform: 1012 service restart"),
        (b"", "closed by the platform without a word"),
        (b"\x83\x00", "unknown kind"),
    ],
)
def test_the_end_of_a_link_is_told(link, sent, words):
    link, theirs, _ = link
    theirs.sendall(sent)
    theirs.shutdown(plain.SHUT_WR)
    with pytest.raises(LinkLost, match=words):
        link.read(lambda _: True)
