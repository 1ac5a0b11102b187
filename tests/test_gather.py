"""Which text makes the next message."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.transcript.gather import Piece, gather, size, split

LIMIT = 2000
WORDS = st.sampled_from(["Hello", " you", ".", "!", " ", "\n", "3", ".14", " e", ".g", "。", "」", "👋", "x" * 9])
TEXTS = st.one_of(WORDS, st.text(st.characters(codec="utf-8"), max_size=8))
ANSWERS = st.lists(TEXTS.filter(bool), max_size=40).map(lambda texts: list(enumerate(texts, start=5)))


def text_of(tokens):
    return "".join(text for _, text in tokens)


def gathered(*texts, is_over=False, limit=LIMIT):
    piece = gather(list(enumerate(texts, start=1)), is_over, limit)
    return piece and piece.text


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["Hello", ".", " How"], "Hello."),
        (["Hello. ", "How"], "Hello. "),
        (["One. Two", "! Three", "? ", "Four"], "One. Two! Three? "),
        (["Wait", "…", " what"], "Wait…"),
        (["Well", "...", " yes"], "Well..."),
        (["He said “yes", ".”", " Then"], "He said “yes.”"),
        (["(It is.", ")", " Then"], "(It is.)"),
        (["**Done.", "**", " Next"], "**Done.**"),
        (["Really?", "!", " No"], "Really?!"),
        (["- one", "\n", "- two"], "- one\n"),
        (["# Title", "\n\n", "Text"], "# Title\n\n"),
        (["東京です。", "次"], "東京です。"),
        (["「はい。", "」", "次"], "「はい。」"),
        (["It is 3.14. ", "Next"], "It is 3.14. "),
        (["See you in the U.S.A", ". ", "Bye. ", "x"], "See you in the U.S.A. Bye. "),
    ],
)
def test_a_message_ends_with_a_sentence(texts, expected):
    assert gathered(*texts) == expected


@pytest.mark.parametrize(
    "texts",
    [
        [],
        ["Hello"],
        ["Hello", "."],
        ["It is 3.", "14"],
        ["It is 3", ".", "14 m"],
        ["Fruit, e.g", ". ", "apples"],
        ["Obst, z.", "B. ", "Äpfel"],
        ["Dr. ", "Who"],
        ["J. ", "Smith"],
        ["1. ", "First"],
        ["example.", "com"],
        ["Hi! How", " are"],
        ["He said “yes.", "”"],
        ["「はい。", "」"],
        ["\n", "\n", "Text"],
        ["  "],
    ],
)
def test_text_waits_for_the_end_of_its_sentence(texts):
    assert gathered(*texts) is None


def test_a_sentence_that_ends_within_a_token_waits_for_a_tokens_end():
    assert gathered("One. ", "Two. Th", "ree") == "One. "


def test_when_nothing_more_comes_all_is_taken():
    assert gathered("One. ", "Two", is_over=True) == "One. Two"
    assert gathered(is_over=True) is None


def test_the_last_id_is_that_of_the_last_token_taken():
    assert gather([(7, "One."), (9, " "), (12, "Two")], False, LIMIT) == Piece("One. ", 9)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["One. ", "two three ", "fo", "ur"], "One. "),
        (["one ", "two ", "thr", "ee four"], "one two "),
        (["one", " two", " threefour"], "one two"),
        (["abc", "def", "ghi", "jkl"], "abcdefghi"),
        (["x" * 30, "y"], "x" * 30),
    ],
)
def test_what_is_too_long_is_cut_at_the_best_place(texts, expected):
    assert gathered(*texts, limit=11) == expected
    assert gathered(*texts, is_over=True, limit=11) == expected


def test_an_emoji_counts_as_two():
    assert size("a👋") == 3
    assert gathered("👋👋", "👋", "👋", limit=6) == "👋👋👋"


def test_white_space_alone_is_blank():
    assert Piece(" \n", 1).is_blank and not Piece(" .", 1).is_blank


@given(ANSWERS, st.integers(1, 30))
def test_nothing_is_lost_and_nothing_said_twice(tokens, limit):
    left, sent = tokens, []
    while piece := gather(left, True, limit):
        sent.append(piece)
        left = [(id_, text) for id_, text in left if id_ > piece.last_id]
    assert not left
    assert "".join(piece.text for piece in sent) == text_of(tokens)
    assert all(size(piece.text) <= limit or (piece.last_id, piece.text) in tokens for piece in sent)


@given(ANSWERS, st.integers(1, 30))
def test_token_by_token_the_same_text_comes_out(tokens, limit):
    left, sent = [], ""
    for position, token in enumerate(tokens, start=1):
        left = [*left, token]
        while piece := gather(left, position == len(tokens), limit):
            sent += piece.text
            left = [(id_, text) for id_, text in left if id_ > piece.last_id]
        assert size(text_of(left)) <= limit, "what waits is never more than one message"
    assert sent == text_of(tokens)


@given(ANSWERS)
def test_more_text_never_takes_back_what_may_leave(tokens):
    """Whoever waits a little gets the same message or a longer one, never a shorter one."""
    lengths = [len(piece.text) for n in range(len(tokens)) if (piece := gather(tokens[:n], False, 10_000))]
    assert lengths == sorted(lengths)


@given(TEXTS | st.text(st.characters(codec="utf-8")), st.integers(2, 30))
def test_a_long_text_is_split_without_loss(text, limit):
    parts = list(split(text, limit))
    assert "".join(parts) == text
    assert all(size(part) <= limit for part in parts)


def test_a_long_text_is_split_at_sentences_then_words():
    assert list(split("One two. Three four", 12)) == ["One two. ", "Three four"]
    assert list(split("one two three", 9)) == ["one two ", "three"]
    assert list(split("abcdef", 4)) == ["abcd", "ef"]
