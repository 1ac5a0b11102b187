"""From an event to the socket, by the short way and by the long one."""

import json
import socket
import time
from itertools import pairwise

import gevent
import pytest
from gevent import socket as green
from gevent import ssl

from server import inlet as inlet_module
from server.inlet import Inlet
from server.journal.tail import Tail
from server.outlet import Outlet
from server.sse import Done, Token

from .certificates import make_certificate
from .conftest import RelayServer


class ShoutingRelay(RelayServer):
    app = ("tests.shouting_app:app",)


@pytest.fixture
def pair():
    ours, theirs = green.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def read_all(sock):
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


def whole(data):
    """What chunks hold."""
    text = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        text, end, data = text + data[: int(size, 16)], data[int(size, 16) :][:2], data[int(size, 16) + 2 :]
        assert end == b"\r\n"
    return text


def test_middleware_that_changes_a_body_sees_all_of_it(sandbox, prompt, conversation):
    relay = ShoutingRelay(sandbox.url)
    try:
        sandbox.script(prompt, ["small ", "letters "], gate=True)
        answer = relay.ask(prompt, conversation)
        sandbox.receipt(prompt, 2)
        body = answer.response.raw.read().decode()
    finally:
        relay.stop()
    assert '{"TOKEN":"SMALL "}' in body
    assert '{"TOKEN":"LETTERS "}' in body
    assert body == body.upper()
    assert "EVENT: DONE" in body


def test_a_client_of_an_older_protocol_gets_no_chunks(relay, sandbox, prompt, conversation):
    sandbox.script(prompt, ["one ", "two "], interval_ms=20)
    body = json.dumps({"prompt": prompt, "conversationId": conversation}).encode()
    host, port = relay.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(
            b"POST /stream-llm HTTP/1.0\r\nHost: %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (host.encode(), len(body), body)
        )
        head, _, rest = read_all(client).partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()
    lines = rest.decode().splitlines()
    assert [line for line in lines if '"token"' in line] == ['data: {"token":"one "}', 'data: {"token":"two "}']
    assert lines[0] == "retry: 1000"
    assert all(line == "" or line.split(":")[0] in {"retry", "id", "data", "event"} for line in lines)


@pytest.mark.parametrize("is_chunked", [True, False])
def test_what_the_kernel_does_not_take_waits_and_comes_in_order(pair, is_chunked):
    ours, theirs = pair
    outlet = Outlet(ours, is_chunked=is_chunked)
    pieces = [b"%d" % number * 20_000 for number in range(100)]
    offered = [outlet.offer(pieces[0])]
    while offered[-1]:
        offered.append(outlet.offer(pieces[len(offered)]))
    assert outlet.is_behind
    reader = gevent.spawn(read_all, theirs)
    for piece in [b"", *pieces[len(offered) :]]:
        outlet.send(piece)
        assert not outlet.is_behind
    ours.close()
    data = reader.get(timeout=10)
    assert (whole(data) if is_chunked else data) == b"".join(pieces)


def test_a_client_that_is_gone_shows_only_where_it_is_waited_for(pair):
    ours, theirs = pair
    outlet = Outlet(ours, is_chunked=True)
    theirs.close()
    assert not outlet.offer(b"to no one")
    assert outlet.is_behind
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        outlet.send(b"")


def test_a_read_waits_and_lets_others_run(pair):
    ours, theirs = pair
    inlet = Inlet(ours)
    reader = gevent.spawn(inlet.read, 100)
    gevent.sleep(0)
    assert not reader.ready()
    theirs.sendall(b"some")
    assert reader.get(timeout=5) == b"some"
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
        inlet.read(100)
    theirs.sendall(b"x" * 250)
    assert [inlet.read(100) for _ in range(3)] == [b"x" * 100, b"x" * 100, b"x" * 50]
    theirs.close()
    assert inlet.read(100) == b""
    inlet.close()
    assert ours.gettimeout() is None


def test_a_fast_sender_does_not_have_the_worker_to_itself(pair):
    ours, theirs = pair
    inlet = Inlet(ours)
    theirs.sendall(b"x" * 100_000)
    turns = []
    other = gevent.spawn(lambda: [(turns.append(len(read)), gevent.sleep(0)) for _ in range(1000)])
    read = []
    while sum(map(len, read)) < 100_000:
        read.append(inlet.read(100))
    other.kill()
    inlet.close()
    assert max(b - a for a, b in pairwise(turns)) <= 8, "reads in a row"


def test_what_comes_is_taken_while_its_reader_sleeps(pair):
    ours, theirs = pair
    inlet = Inlet(ours)
    taken = []

    def take(data):
        taken.append((data, gevent.getcurrent() is gevent.get_hub()))
        return data != b"last"

    reader = gevent.spawn(inlet.drive, 100, take)
    for piece in (b"first", b"second", b"last"):
        gevent.sleep(0)
        theirs.sendall(piece)
        waited = until_taken(taken, piece)
        assert waited, "in the hub"
    reader.get(timeout=5)
    theirs.sendall(b"for the next")
    assert inlet.read(100) == b"for the next"
    inlet.close()


def until_taken(taken, piece):
    with gevent.Timeout(5):
        while not taken or taken[-1][0] != piece:
            gevent.sleep(0.001)
    return taken[-1][1]


def test_who_takes_is_told_of_the_end_and_its_failure_reaches_the_reader(pair):
    ours, theirs = pair
    inlet = Inlet(ours)
    taken = []

    def take(data):
        taken.append(data)
        if data == b"bad":
            raise ValueError("what I met")
        return bool(data)

    reader = gevent.spawn(inlet.drive, 100, take)
    gevent.sleep(0)
    theirs.sendall(b"bad")
    with pytest.raises(ValueError, match="what I met"):
        reader.get(timeout=5)
    reader = gevent.spawn(inlet.drive, 100, take)
    gevent.sleep(0)
    theirs.close()
    reader.get(timeout=5)
    assert taken == [b"bad", b""]
    inlet.close()


def test_a_reader_that_sleeps_can_be_called_off(pair):
    ours, theirs = pair
    inlet = Inlet(ours)
    taken = []
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
        inlet.drive(100, lambda data: taken.append(data) or True)
    theirs.sendall(b"later")
    assert inlet.read(100) == b"later"
    assert not taken
    inlet.close()


def test_what_a_read_left_behind_is_taken_without_a_further_event(pair):
    ours, theirs = pair
    inlet = Inlet(ours)
    theirs.sendall(b"x" * 250)
    assert len(inlet.read(100)) == 100
    taken = []
    gevent.spawn(inlet.drive, 100, lambda data: taken.append(data) or sum(map(len, taken)) < 150).get(timeout=5)
    assert b"".join(taken) == b"x" * 150
    inlet.close()


def test_what_tls_has_decrypted_already_is_taken_as_well(pair, tmp_path, monkeypatch):
    """A record that is larger than a read leaves something that makes no socket readable."""
    monkeypatch.setattr(inlet_module, "SSLSocket", ssl.SSLSocket)  # in a worker, gevent's is the only one
    ours, theirs = pair
    files = make_certificate(tmp_path, "gateway.test")
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(*files)
    client.load_verify_locations(files[0])
    accepted = gevent.spawn(server.wrap_socket, theirs, server_side=True)
    secure = client.wrap_socket(ours, server_hostname="gateway.test")
    other = accepted.get(timeout=5)
    inlet = Inlet(secure)
    taken = []
    reader = gevent.spawn(inlet.drive, 100, lambda data: taken.append(data) or sum(map(len, taken)) < 20_000)
    gevent.sleep(0)
    for _ in range(2):
        other.sendall(b"x" * 10_000)
        gevent.sleep(0.01)
    reader.get(timeout=5)
    assert b"".join(taken) == b"x" * 20_000
    other.sendall(b"y" * 150)
    gevent.spawn(inlet.drive, 100, lambda data: False).get(timeout=5)
    assert gevent.spawn(inlet.read, 100).get(timeout=5) == b"y" * 50, "what is left is not waited for"
    inlet.close()
    secure.close()
    other.close()


def test_no_one_who_reads_costs_no_event_loop(pair):
    """A watch that stays would fire without end while no one takes what has come."""
    ours, theirs = pair
    inlet = Inlet(ours)
    theirs.sendall(b"first")
    assert inlet.read(100) == b"first"
    theirs.sendall(b"second")
    gevent.sleep(0.05)
    before = time.process_time()
    gevent.sleep(0.3)
    assert time.process_time() - before < 0.15
    assert inlet.read(100) == b"second"
    inlet.close()


class Audience:
    """A follower whose client takes what it gets, as long as it keeps up."""

    def __init__(self, cursor=0):
        self.tail = Tail("turn", None)
        self.follower = self.tail.follow(cursor)
        self.sent = []
        self.taken = []
        self.keeps_up = True
        self.follower.send_now = self.send
        self.greenlet = gevent.spawn(self.run)
        gevent.sleep(0)

    def send(self, events):
        self.sent += events
        return self.keeps_up

    def run(self):
        for batch in self.follower:
            self.taken.append(batch)

    def append(self, *events):
        self.tail.append([*events])


def test_events_are_sent_where_they_come_from_while_the_client_keeps_up():
    one = Audience()
    one.append(Token(1, "a"))
    one.append(Token(2, "b"), Token(3, "c"))
    one.append(Done(4, "complete"))
    assert [event.id for event in one.sent] == [1, 2, 3, 4]
    one.greenlet.get(timeout=5)
    assert one.taken == []


def test_a_client_that_is_behind_is_sent_nothing_until_its_own_greenlet_has_run():
    one = Audience()
    one.keeps_up = False
    one.append(Token(1, "a"))
    one.append(Token(2, "b"))
    one.append(Done(3, "complete"))
    assert one.sent == [Token(1, "a")]
    one.greenlet.get(timeout=5)
    assert [event for batch in one.taken for event in batch] == [Token(2, "b"), Done(3, "complete")]


def test_a_cursor_ahead_of_the_turn_is_not_sent_what_it_has():
    one = Audience(cursor=2)
    one.append(Token(1, "a"))
    one.append(Token(2, "b"))
    gevent.sleep(0)
    assert one.sent == one.taken == []
    one.append(Token(3, "c"))
    assert one.sent == [Token(3, "c")]
    one.follower.close()
    one.greenlet.get(timeout=5)


def test_a_ping_does_not_overtake_and_is_not_lost():
    one = Audience()
    one.follower.nudge()
    one.append(Token(1, "a"))
    assert one.sent == []
    one.append(Done(2, "complete"))
    one.greenlet.get(timeout=5)
    assert [event for batch in one.taken for event in batch] == [Token(1, "a"), Done(2, "complete")]


def test_what_cannot_be_sent_breaks_the_follower_alone():
    one = Audience()
    other = one.tail.follow()

    def refuse(events):
        raise ValueError("no bytes for this")

    one.follower.send_now = refuse
    one.append(Done(1, "complete"))
    one.greenlet.get(timeout=5)
    assert one.taken == [[Done(1, "complete")]], "its own greenlet takes them, to meet what is wrong"
    assert other.take() == [Done(1, "complete")]
