"""The body of the gateway's answer, in chunks: read as it was sent, and only what ends it is its end."""

import gevent
import gevent.socket
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.connections import Answer

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
# What looks like the frame of a chunk, or is one, inside of another.
TRICKY = [
    EVENT,
    b"data: 4\r\n4",
    b"4\r\n4",
    b"4\r\n4\r\n4",
    b"1\r\na\r\n",
    b"0\r\n\r\n",
    b"da\r\n",
    b"\r\n",
    b"a" * 300,
]
CONTENTS = st.lists(st.sampled_from(TRICKY) | st.binary(min_size=1, max_size=40), max_size=8)


def chunk(content, size=b"%x"):
    return size % len(content) + b"\r\n" + content + b"\r\n"


class Reading:
    """An answer whose body is being driven in a greenlet, and the gateway's end of its connection."""

    def __init__(self):
        ours, self.gateway = gevent.socket.socketpair()
        self._answer = Answer(ours, lambda sock: sock.close())
        self.read = []
        self.greenlet = gevent.spawn(self._read)

    def _read(self):
        try:
            self._answer.ask(b"POST / HTTP/1.1\r\n\r\n")
            while not self._answer.ended:
                self._answer.drive(lambda data: not self.read.append(data))
            while data := self._answer.read_some():  # the head's packet may have brought all
                self.read.append(data)
        finally:
            self._answer.release()

    def send(self, data):
        """Each piece comes by itself, as a rule."""
        self.gateway.sendall(data)
        gevent.sleep(0)
        gevent.sleep(0)

    def finish(self):
        try:
            self.greenlet.get(timeout=10)
        finally:
            self.gateway.close()


@given(contents=CONTENTS, data=st.data())
def test_a_body_is_read_as_it_was_sent_however_it_is_cut(contents, data):
    sizes = [data.draw(st.sampled_from([b"%x", b"%X", b"0%x", b"%x;name=value"])) for _ in contents]
    sent = b"".join(chunk(*pair) for pair in zip(contents, sizes, strict=True)) + b"0\r\n\r\n"
    ends = [0]
    for content, size in zip(contents, sizes, strict=True):
        ends.append(ends[-1] + len(chunk(content, size)))
    # At the ends of chunks, and anywhere.
    cuts = sorted(data.draw(st.lists(st.sampled_from(ends) | st.integers(0, len(sent)), max_size=12)))
    reading = Reading()
    reading.send(HEAD)
    for begin, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        if begin < end:
            reading.send(sent[begin:end])
    reading.finish()
    assert b"".join(reading.read) == b"".join(contents)


def test_an_end_between_two_chunks_is_no_end_of_the_answer():
    reading = Reading()
    reading.send(HEAD + chunk(EVENT))
    for _ in range(3):
        reading.send(chunk(EVENT))
    reading.gateway.close()
    with pytest.raises(ConnectionResetError):
        reading.finish()
    assert b"".join(reading.read) == EVENT * 4


def test_what_is_no_chunk_is_still_refused():
    reading = Reading()
    reading.send(HEAD + chunk(EVENT))
    for _ in range(3):
        reading.send(chunk(EVENT))
    reading.send(b"zz\r\n")
    with pytest.raises(Exception, match="chunk size"):
        reading.finish()
