"""Log lines: whole, one for each record, without secrets, whatever a record holds."""

import json
import logging
import sys
import time
from collections import deque

import orjson
import pytest

from server import telemetry
from server.telemetry import HIDDEN, JsonFormatter, TextFormatter, hide, hide_for_good, redact

FORMATTERS = pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])


def record_of(message, *args, error=None, **fields):
    record = logging.LogRecord("x", logging.INFO, "f", 1, message, args, error)
    vars(record).update(fields)
    return record


def raised(error):
    try:
        raise error
    except type(error):
        return sys.exc_info()


def test_a_secret_of_the_settings_is_hidden_after_any_number_of_access_tokens():
    hide_for_good("a-client-secret-that-stays")
    for number in range(500):
        hide(f"passing-token-{number}-")
    assert redact("a-client-secret-that-stays passing-token-499-") == f"{HIDDEN} {HIDDEN}"


def test_a_secret_too_short_to_be_one_hides_nothing(monkeypatch):
    monkeypatch.setattr(telemetry, "_kept", set())
    monkeypatch.setattr(telemetry, "_tokens", deque())
    monkeypatch.setattr(telemetry, "_known", telemetry._known)  # restored with the others
    hide_for_good("short")
    assert redact("a short line") == "a short line"


def test_a_secret_is_hidden_whole_when_another_one_begins_it():
    hide("beginning")
    hide("beginning-and-end")
    assert redact("x beginning-and-end y") == f"x {HIDDEN} y"


@FORMATTERS
def test_a_secret_with_quotes_is_hidden_in_escaped_text_too(formatter):
    secret = 'it\'s "a\\secret" é/+'
    hide_for_good(secret)
    texts = [secret, repr(secret), json.dumps(secret), repr({"k": secret}), "client_secret=it%27s+%22a%5Csecret%22+"]
    for text in texts:
        line = formatter.format(record_of("see %s", text, detail=text))
        assert "secret\\" not in line.replace("\\\\", "\\")
        assert "secret%22" not in line


UNKNOWN = [
    ("Authorization: Bearer abc;def}ghi", f"Authorization: Bearer {HIDDEN}"),
    ("authorization: BEARER abc;def, next", f"authorization: BEARER {HIDDEN}, next"),
    ("Basic YWJj;x==", f"Basic {HIDDEN}"),
    ("wss://h/v2?access_token=a;b}c&x=1", f"wss://h/v2?access_token={HIDDEN}&x=1"),
    ('{"access_token": "a;b}c", "x": 1}', f'{{"access_token": "{HIDDEN}", "x": 1}}'),
    ("{'client_secret': 'a;b}c', 'x': 1}", f"{{'client_secret': '{HIDDEN}', 'x': 1}}"),
    (r'"{\"access_token\":\"abc\",\"x\":1}"', rf'"{{\"access_token\":\"{HIDDEN}\",\"x\":1}}"'),
    (r'"Bearer a\bc\"', rf'"Bearer {HIDDEN}\"'),
    ("redis://relay:hunter2@host:6379/0", f"redis://relay:{HIDDEN}@host:6379/0"),
    ("the bearer", "the bearer"),
    ("https://host:80/a and a@b", "https://host:80/a and a@b"),
]


@pytest.mark.parametrize(("text", "shown"), UNKNOWN)
def test_what_looks_like_a_secret_is_hidden_whole(text, shown):
    assert redact(text) == shown


class Unspeakable:
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


ODD = {
    "a lone surrogate": record_of("bad \ud800 text", detail="\udfff"),
    "a surrogate in a field's name": record_of("text", **{"na\ud800me": 1}),
    "a number beyond JSON": record_of("text", detail=10**400),
    "a number too long for decimal text": record_of("text", detail=10**5000),
    "no number": record_of("text", detail=float("nan"), other=float("-inf")),
    "bytes": record_of("text", detail=b"\xff"),
    "an object without text": record_of("text", detail=Unspeakable()),
    "a message without text": record_of(Unspeakable()),
    "arguments that do not fit": record_of("%d of %d", "one"),
    "an argument without text": record_of("%s", Unspeakable()),
    "an exception without text": record_of("text", error=raised(ValueError(Unspeakable()))),
    "an exception with a surrogate": record_of("text", error=raised(ValueError("\ud800"))),
    "no exception": record_of("text", error=(None, None, None)),
    "a nested value": record_of("text", detail={"a": [1, {"b": "\ud800"}]}, other={1: 2}),
}


@FORMATTERS
@pytest.mark.parametrize("record", ODD.values(), ids=ODD)
def test_no_record_makes_a_formatter_raise(formatter, record):
    line = formatter.format(record)
    line.encode()
    if isinstance(formatter, JsonFormatter):
        assert orjson.loads(line)["level"] == "INFO"


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r", "\x0b", "\x85", "\u2028"])
def test_a_newline_begins_no_line_that_looks_like_another_record(newline):
    forged = f"x{newline}2026-01-01T00:00:00.000Z ERROR   forged"
    record = record_of("%s", forged, error=raised(ValueError(forged)), detail=forged, **{f"a{newline}b": 1})
    first, *rest = TextFormatter().format(record).splitlines()
    assert first.count("forged") == 2
    assert rest[0] == "    Traceback (most recent call last):"
    assert all(line.startswith("    ") for line in rest), "the exception's lines are indented"
    assert len(JsonFormatter().format(record).split("\n")) == 1


def test_control_characters_do_not_reach_the_terminal():
    assert "\x1b" not in TextFormatter().format(record_of("\x1b[2J", detail="\x1b]0;x\x07"))


@pytest.mark.parametrize("piece", ["-eyJ", "eyJ.", "relay_", "-relay_", "eyJa.b"])
def test_text_that_only_begins_like_a_secret_takes_no_long_look(piece):
    text = piece * (200_000 // len(piece))
    began = time.process_time()
    redact(text)
    assert time.process_time() - began < 1, "the square of its length would take a minute"
