"""API keys and tickets without a server: how they are made, read and told apart."""

import os
import re

import pytest

from server.access.caller import Caller, covers
from server.access.keys import PREFIX, Keyring, hash_of, make_key, read_keys
from server.access.tickets import Tickets
from server.telemetry import HIDDEN, redact


class Clock:
    def __init__(self, now=1_800_000_000.0):
        self.now = now

    def __call__(self):
        return self.now


def test_a_key_is_known_by_what_the_server_keeps_of_it_and_does_not_stand_there():
    fresh = make_key("shop")
    assert Keyring(read_keys(fresh.entry)).name_of(fresh.key) == "shop"
    assert fresh.key not in fresh.entry
    assert fresh.key.startswith(PREFIX)
    assert make_key("shop").key != fresh.key


def test_a_hash_is_no_key():
    fresh = make_key("shop")
    keyring = Keyring(read_keys(fresh.entry))
    for wrong in (fresh.entry, hash_of(fresh.key), fresh.key[:-1], fresh.key + " ", fresh.key.upper(), "", "é" * 9):
        assert keyring.name_of(wrong) is None


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a,b", "#a", "x" * 65, "zoë", "a\n"])
def test_a_name_that_could_not_stand_in_the_settings_is_refused(name):
    with pytest.raises(ValueError, match="a name is"):
        make_key(name)


def test_keys_are_separated_by_commas_or_white_space_with_comments_behind():
    a, b, c = (make_key(name) for name in "abc")
    text = f"# all of them\n{a.entry},{b.entry}\n\n  {c.entry.upper().replace('C:', 'c:')}  # the last\n"
    assert sorted(read_keys(text).values()) == ["a", "b", "c"]


def test_one_name_can_have_an_old_and_a_new_key():
    old, new = make_key("shop"), make_key("shop")
    keyring = Keyring(read_keys(f"{old.entry} {new.entry}"))
    assert keyring.name_of(old.key) == keyring.name_of(new.key) == "shop"


def test_what_is_no_entry_is_named_by_its_number_alone():
    good, stray = make_key("a"), make_key("b")
    with pytest.raises(ValueError, match="entry 2 is not NAME:HASH") as error:
        read_keys(f"{good.entry}\nb:{stray.key}")
    assert stray.key not in str(error.value)


def test_one_key_cannot_have_two_names():
    fresh = make_key("a")
    with pytest.raises(ValueError, match="entry 2 gives another name"):
        read_keys(f"{fresh.entry},b{fresh.entry[1:]}")


class Watched:
    """A keyring over a file, and the clock by which it looks there."""

    def __init__(self, path, *entries):
        self.path = path
        self.clock = Clock()
        self.write(*entries)
        self.keyring = Keyring({}, path, self.clock)

    def write(self, *entries):
        self.path.write_text("\n".join(entries))

    def name_of(self, key, after=1.0):
        self.clock.now += after
        return self.keyring.name_of(key)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys"


def test_a_changed_file_counts_a_second_later(path):
    old, new = make_key("old"), make_key("new")
    watched = Watched(path, old.entry)
    assert watched.name_of(old.key) == "old"
    watched.write(new.entry)
    assert watched.name_of(new.key, after=0.5) is None, "it is not looked at more than once a second"
    assert watched.name_of(new.key, after=0.5) == "new"
    assert watched.name_of(old.key) is None


def test_a_file_that_is_replaced_by_another_of_the_same_size_and_time_counts(path):
    old, new = make_key("old"), make_key("new")
    watched = Watched(path, old.entry)
    assert watched.name_of(old.key)
    state = path.stat()
    other = path.with_suffix(".new")
    other.write_text(new.entry)
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    other.rename(path)
    assert watched.name_of(new.key) == "new"


def test_an_emptied_file_takes_all_its_keys_back(path):
    fresh = make_key("a")
    watched = Watched(path, fresh.entry)
    assert watched.name_of(fresh.key)
    watched.write("# none for now")
    assert watched.name_of(fresh.key) is None


def test_a_file_that_cannot_be_used_keeps_the_old_keys_and_is_complained_of_once(path, caplog):
    fresh, later = make_key("a"), make_key("b")
    watched = Watched(path, fresh.entry)
    assert watched.name_of(fresh.key)
    for break_it in (path.unlink, lambda: watched.write("nonsense"), lambda: path.write_bytes(b"\xff\xfe")):
        break_it()
        assert watched.name_of(fresh.key) == "a"
        assert watched.name_of(fresh.key) == "a"
    complaints = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(complaints) == 1
    watched.write(later.entry)
    assert watched.name_of(later.key) == "b"
    assert watched.name_of(fresh.key) is None


def test_keys_of_the_settings_count_beside_those_of_the_file(path):
    fixed, filed = make_key("fixed"), make_key("filed")
    path.write_text(filed.entry)
    keyring = Keyring(read_keys(fixed.entry), path)
    assert keyring.name_of(fixed.key) == "fixed"
    assert keyring.name_of(filed.key) == "filed"


def tickets(seconds=900, secret=b"s" * 32):
    clock = Clock()
    return Tickets(lambda: secret, seconds, clock), clock


def test_a_ticket_is_good_for_its_stream_until_its_time_is_over():
    office, clock = tickets(seconds=900)
    ticket = office.make("stream-a")
    assert office.fits(ticket, "stream-a")
    assert not office.fits(ticket, "stream-b")
    clock.now += 899
    assert office.fits(ticket, "stream-a")
    clock.now += 1
    assert not office.fits(ticket, "stream-a")


def test_no_character_of_a_ticket_can_be_changed():
    office, _ = tickets()
    ticket = office.make("stream-a")
    assert re.fullmatch(r"\d+\.[\w-]{43}", ticket)
    for place in range(len(ticket)):
        for other in "0A9z_-.":
            changed = ticket[:place] + other + ticket[place + 1 :]
            assert changed == ticket or not office.fits(changed, "stream-a")


def test_the_border_between_stream_and_time_cannot_be_moved():
    office, _ = tickets()
    ticket = office.make("stream-1")
    expiry, signature = ticket.split(".")
    assert not office.fits(f"1{expiry}.{signature}", "stream-")
    assert not office.fits(f".{expiry}.{signature}", "stream-1")


@pytest.mark.parametrize("nonsense", ["", ".", "..", "1", "é.ü", "9" * 5000 + ".x", "\ud800", "1800000900."])
def test_nonsense_is_no_ticket(nonsense):
    office, _ = tickets()
    assert not office.fits(nonsense, "stream-a")


def test_a_ticket_of_another_secret_is_none():
    assert not tickets(secret=b"t" * 32)[0].fits(tickets()[0].make("stream-a"), "stream-a")


@pytest.mark.parametrize(
    ("pattern", "conversation", "fits"),
    [
        ("c-1", "c-1", True),
        ("c-1", "c-12", False),
        ("c-*", "c-12", True),
        ("c-*", "d-c-1", False),
        ("*", "anything", True),
        ("*", None, False),
        ("c*1", "c-1", False),
    ],
)
def test_a_star_at_the_end_stands_for_any_rest(pattern, conversation, fits):
    assert covers(pattern, conversation) is fits


def test_a_caller_without_a_list_may_use_all_conversations_and_one_with_an_empty_list_none():
    assert Caller("a").may_use(None)
    assert Caller("a").may_use("c")
    assert not Caller("a", ()).may_use("c")
    assert not Caller("a", ("*",)).may_use(None)


SECRETS = [
    "GET /streams/abc?ticket={}&after=3",
    "Authorization: Bearer {}",
    "Authorization: {}",
    '"Authorization": "Bearer {}"',
    "{{'authorization': 'Token {}'}}",
    "SECRET_KEY={}",
    "RELAY_API_KEYS={}",
]


@pytest.mark.parametrize("text", SECRETS)
def test_what_a_caller_presents_never_reaches_a_log_line(text):
    redacted = redact(text.format("1800.abc_def-xyz"))
    assert "abc_def" not in redacted
    assert HIDDEN in redacted


def test_keys_and_tokens_are_known_by_their_looks():
    fresh = make_key("a")
    token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln-bmF0_dXJl"
    assert redact(f"no {fresh.key} and no {token} here") == f"no {HIDDEN} and no {HIDDEN} here"
