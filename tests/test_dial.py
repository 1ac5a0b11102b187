"""The way to a host: what a name stands for is looked up now and then, and again once nobody answers there."""

import socket

import gevent
import gevent.socket
import pytest

from server.dial import ADDRESS_LIFE, Way


@pytest.fixture
def host():
    """A place that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def names(monkeypatch):
    """The names that were looked up, in order; what is no number is answered as a resolver would."""
    found = []
    real = gevent.socket.getaddrinfo

    def look_up(host, port, **options):
        found.append(host)
        return [
            answer
            for address in addresses[host].pop(0)
            for answer in real(address, port, flags=socket.AI_NUMERICHOST, **options)
        ]

    addresses = {}
    monkeypatch.setattr(gevent.socket, "getaddrinfo", look_up)
    return found, addresses


def test_a_name_is_looked_up_once_for_all_who_dial_within_its_life(host, names):
    found, addresses = names
    addresses["gateway.test"] = [["127.0.0.1"], ["127.0.0.1"]]
    clock = [100.0]
    way = Way(f"http://gateway.test:{host.getsockname()[1]}", tunnel=False, clock=lambda: clock[0])
    for _ in range(3):
        way.dial().close()
    assert len(found) == 1
    clock[0] += ADDRESS_LIFE
    way.dial().close()
    assert len(found) == 2


def test_the_next_address_is_tried_where_one_does_not_answer(host, names):
    found, addresses = names
    addresses["gateway.test"] = [["127.0.0.2", "127.0.0.1"]]
    way = Way(f"http://gateway.test:{host.getsockname()[1]}", tunnel=False)
    for _ in range(2):
        with way.dial() as sock:
            assert sock.getpeername() == host.getsockname()
    assert len(found) == 1


def test_the_next_address_is_tried_where_this_machine_has_none_of_that_kind(host, monkeypatch):
    port = host.getsockname()[1]
    answers = [
        (socket.AF_X25, socket.SOCK_STREAM, 0, "", ("00", port)),
        (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port)),
    ]
    monkeypatch.setattr(gevent.socket, "getaddrinfo", lambda *names, **options: answers)
    Way(f"http://gateway.test:{port}", tunnel=False).dial().close()


def test_those_who_dial_at_once_look_up_once(host, monkeypatch):
    found = []

    def look_up(name, port, **options):
        found.append(name)
        gevent.sleep(0.01)
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))]

    monkeypatch.setattr(gevent.socket, "getaddrinfo", look_up)
    way = Way(f"http://gateway.test:{host.getsockname()[1]}", tunnel=False)
    for dialling in [gevent.spawn(way.dial) for _ in range(10)]:
        dialling.get(timeout=5).close()
    assert len(found) == 1


def test_a_name_that_leads_nowhere_is_looked_up_again(host, names):
    _, addresses = names
    addresses["gateway.test"] = [["127.0.0.2"], ["127.0.0.1"]]
    way = Way(f"http://gateway.test:{host.getsockname()[1]}", tunnel=False)
    with pytest.raises(ConnectionRefusedError):
        way.dial()
    way.dial().close()
