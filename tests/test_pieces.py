"""Pieces of what waits behind a busy link: nothing lost, within the limits, no character cut where it can be helped."""

import subprocess
import sys

import orjson
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from server.sse import Token
from server.transcript.pieces import LOOK_BACK, MAX_CHAR_BYTES, join, json_size, split

FAMILY = "👨\u200d👩\u200d👧\u200d👦"
ENGLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"
KSHI = "क\u094dष\u093f"
ZALGO = "a" + "\u0300" * 30
MANY = 10**6  # of what does not limit

SPLITS = [
    ("", 3, MANY, [""]),
    ("abc", 3, MANY, ["abc"]),
    ("abcd", 3, MANY, ["abc", "d"]),
    ("ab\r\ncd", 3, MANY, ["ab", "\r\nc", "d"]),
    ("abe\u0301d", 3, MANY, ["ab", "e\u0301d"]),
    ("xy🇩🇪🇫🇷", 5, MANY, ["xy🇩🇪", "🇫🇷"]),
    ("🇩🇪🇫🇷🇮🇹🇪🇸", 7, MANY, ["🇩🇪🇫🇷🇮🇹", "🇪🇸"]),
    (f"ab{FAMILY}", 8, MANY, ["ab", FAMILY]),
    (f"{ENGLAND}{ENGLAND}", 13, MANY, [ENGLAND, ENGLAND]),
    (f"{KSHI}{KSHI}", 7, MANY, [KSHI, KSHI]),
    ("👍🏽👍🏽👍🏽", 5, MANY, ["👍🏽👍🏽", "👍🏽"]),
    ("각각", 1, MANY, ["각", "각"]),
    (ZALGO, 20, MANY, [ZALGO[:20], ZALGO[20:]]),
    (f"xy{ZALGO}", 20, MANY, ["xy", ZALGO[:20], ZALGO[20:]]),
    ('"""""', MANY, 6, ['"""', '""']),
    ("\0\0\0", MANY, 12, ["\0\0", "\0"]),
    ("漢漢漢", MANY, 8, ["漢漢", "漢"]),
    ("a漢漢", MANY, 6, ["a漢", "漢"]),
    ("abe\u0301d", MANY, 4, ["ab", "e\u0301d"]),
]


@pytest.mark.parametrize(("text", "max_chars", "max_bytes", "pieces"), SPLITS)
def test_a_text_is_split_between_characters(text, max_chars, max_bytes, pieces):
    assert split(text, max_chars, max_bytes) == pieces


JOINS = [
    (["abc"], 2, MANY, 1),  # alone it goes, for `split` to see to
    (["abc", "d"], 2, MANY, 1),
    (["a", "b", "c"], 3, MANY, 3),
    (["a", "b", "cd"], 3, MANY, 2),
    (["a", "b", "c"], MANY, 2, 2),
    (["\n", "\n", "\n"], MANY, 4, 2),
    (["a", "b", "e", "\u0301"], 3, MANY, 2),
    (["a", "b", "e", "\u0301"], 4, MANY, 4),
    (["ab", "e", "\u0301", "\u0301"], 4, MANY, 1),
    (["ab", "ce", "\u0301x"], 4, MANY, 1),
    (["a", "🇩", "🇪", "🇫", "🇷"], 4, MANY, 3),
    (["a", "b", *FAMILY], 5, MANY, 2),
    (["a", "\r", "\n"], 2, MANY, 1),
    (["e", "\u0301", "\u0301"], 2, MANY, 2),  # no better end
]


@pytest.mark.parametrize(("texts", "max_chars", "max_bytes", "count"), JOINS)
def test_as_many_tokens_as_fit_leave_together(texts, max_chars, max_bytes, count):
    assert join(numbered(texts), max_chars, max_bytes) == ("".join(texts[:count]), count)


@pytest.mark.parametrize("character", ["🇩", "\u0300", "\u0600", "👨\u200d", "क\u094d", "漢", "a", "👍🏽"])
def test_a_long_row_of_the_same_is_split_without_a_loss(character):
    text = character * 4 * LOOK_BACK
    pieces = split(text, 3 * LOOK_BACK, MANY)
    assert "".join(pieces) == text
    assert len(pieces) <= len(text) // LOOK_BACK
    tokens = numbered(list(text))
    assert join(tokens, 3 * LOOK_BACK, MANY)[1] > 2 * LOOK_BACK


def test_what_needs_no_cut_does_without_the_package_that_finds_characters():
    program = (
        "import sys; from server.sse import Token; from server.transcript.pieces import join, split;"
        "join([Token(1, 'ü'), Token(2, '👍')], 10, 100); split('ü' * 10, 10, 100); split('a' * 20, 10, 100);"
        "sys.exit('regex' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# Characters that join others, and such as grow in JSON.
ODD = 'ab"\\\n\r\0é漢🇩🇪👨👍🏽\u200d\u0300\u0301\u094d\u0915\u0937\u093f\u0600\u1100\u1161\u11a8\ufe0f'
TEXTS = st.text(st.sampled_from(ODD) | st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
CHARS = st.integers(1, 40)
BYTES = st.integers(MAX_CHAR_BYTES, 120)


@given(TEXTS, CHARS, BYTES)
def test_pieces_hold_all_of_the_text_within_the_limits(text, max_chars, max_bytes):
    pieces = split(text, max_chars, max_bytes)
    assert "".join(pieces) == text
    assert all(within(piece, max_chars, max_bytes) for piece in pieces)
    assert all(pieces)


@given(TEXTS, CHARS, BYTES)
def test_pieces_are_of_whole_characters_where_these_fit(text, max_chars, max_bytes):
    rest = text
    for piece in split(text, max_chars, max_bytes)[:-1]:
        clusters = regex.findall(r"\X", rest)
        whole = ""
        while within(whole + clusters[0], max_chars, max_bytes):
            whole += clusters.pop(0)
        assert piece == whole or (not whole and len(piece) < len(clusters[0]))
        rest = rest.removeprefix(piece)


@given(st.lists(st.text(st.sampled_from(ODD), min_size=1, max_size=4), min_size=1, max_size=30), CHARS, BYTES)
def test_joined_tokens_are_the_first_ones_and_end_well_where_they_can(texts, max_chars, max_bytes):
    text, count = join(numbered(texts), max_chars, max_bytes)
    assert text == "".join(texts[:count])
    assert count == 1 or within(text, max_chars, max_bytes)
    fitting = [n for n in range(1, len(texts) + 1) if n == 1 or within("".join(texts[:n]), max_chars, max_bytes)]
    if fitting[-1] == len(texts):
        assert count == len(texts)
        return
    ends = {match.end() for match in regex.finditer(r"\X", "".join(texts))}
    whole = [n for n in fitting if len("".join(texts[:n])) in ends]
    assert count == (whole or fitting)[-1]


@given(TEXTS)
def test_the_size_is_that_of_the_text_in_a_message(text):
    assert json_size(text) == len(orjson.dumps({"text": text})) - len(b'{"text":""}')


def within(text, max_chars, max_bytes):
    return len(text) <= max_chars and json_size(text) <= max_bytes


def numbered(texts):
    return [Token(number, text) for number, text in enumerate(texts, 1)]
