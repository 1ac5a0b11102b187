"""Which of the text that has gathered makes the next message: whole sentences, as many as fit. No I/O.

A message ends where a token ends, because only whole tokens can be confirmed. Nothing is added, and nothing left out.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

ENDS = ".!?…"
WIDE_ENDS = "。！？｡"  # no space follows these
CLOSERS = "\"'”’»›)]}*_`~」』）】》"  # quotes, brackets, and Markdown's emphasis
ABBREVIATIONS = {
    *(
        "dr",
        "mr",
        "mrs",
        "ms",
        "prof",
        "sr",
        "jr",
        "st",
        "vs",
        "cf",
        "al",
        "approx",
        "dept",
        "inc",
        "ltd",
        "tel",
        "ext",
    ),
    *("nr", "abs", "bzw", "ca", "ggf", "inkl", "exkl", "str", "usw", "vgl", "evtl", "zzgl", "mme", "mlle", "sra"),
}
LONGEST_ABBREVIATION = 12  # characters


class Piece(NamedTuple):
    """What to send, and the id of the last token in it."""

    text: str
    last_id: int

    @property
    def is_blank(self) -> bool:
        """Nothing to see: the platform refuses it, so that it counts as delivered without being sent."""
        return not self.text.strip()


def gather(tokens: Sequence[tuple[int, str]], is_over: bool, limit: int) -> Piece | None:
    """The longest message that may leave now, None while a sentence is still being written.

    `tokens` are the ids and texts that are not sent yet; `is_over` says that no more will come. At most `limit`
    characters, but for a first token that is longer than that alone: see `split`.
    """
    fitting = length = 0
    for _, text in tokens:
        length += size(text)
        if length > limit:
            break
        fitting += 1
    is_full = fitting < len(tokens)
    count = fitting if is_over and not is_full else count_of(tokens[: fitting + 1], fitting, is_full)
    if not count:
        return None
    return Piece("".join(text for _, text in tokens[:count]), tokens[count - 1][0])


def split(text: str, limit: int) -> Iterator[str]:
    """`text` in parts of at most `limit` characters (two at least), cut at the best places there are."""
    begin = 0
    while size(window := text[begin : begin + limit + 1]) > limit:
        at = min(limit, len(window))
        while (excess := size(window[:at]) - limit) > 0:
            at -= (excess + 1) // 2
        at = cut(window, range(at, 0, -1)) or at
        yield window[:at]
        begin += at
    yield text[begin:]


def size(text: str) -> int:
    """Characters as the platform counts them: UTF-16 units, of which an emoji has two."""
    return len(text.encode("utf-16-le")) // 2


def count_of(tokens: Sequence[tuple[int, str]], fitting: int, is_full: bool) -> int:
    """How many of the first `fitting` tokens to send; what follows them, if known, says whether a sentence ends."""
    at = 0
    counts = {}
    for count, (_, text) in enumerate(tokens[:fitting], start=1):
        at += len(text)
        counts[at] = count
    text = "".join(text for _, text in tokens)
    places = sorted(counts, reverse=True)
    if not is_full:
        return counts.get(last_sentence_end(text, places), 0)
    return counts.get(cut(text, places), max(fitting, 1))


def cut(text: str, places: Sequence[int]) -> int:
    """The best of the places to cut, of which the last one comes first: a sentence's end, else white space, else 0."""
    return last_sentence_end(text, places) or next((at for at in places if is_word_end(text, at)), 0)


def last_sentence_end(text: str, places: Sequence[int]) -> int:
    return next((at for at in places if is_sentence_end(text, at)), 0)


def is_word_end(text: str, at: int) -> bool:
    is_spaced = text[at - 1].isspace() or text[at : at + 1].isspace()
    return is_spaced and not text[:at].isspace()


def is_sentence_end(text: str, at: int) -> bool:
    """Whether a sentence ends before `at`. What comes next decides: `3.` may become `3.14`, and `!` a `!"`."""
    if text[at - 1].isalnum():
        return False  # a short way out: most tokens end so
    end = at
    while end and text[end - 1].isspace():
        end -= 1
    if "\n" in text[end:at]:
        return end > 0
    following = text[end : end + 1]
    closed = end
    while closed and text[closed - 1] in CLOSERS:
        closed -= 1
    last = text[closed - 1 : closed]
    if not last or not following:
        return False
    if last in WIDE_ENDS:
        return following not in CLOSERS and following not in WIDE_ENDS
    return last in ENDS and following.isspace() and not (last == "." and is_abbreviated(text, closed - 1))


def is_abbreviated(text: str, dot: int) -> bool:
    """Whether the full stop at `dot` belongs to an abbreviation, an initial or an ordinal: `e.g.`, `J.`, `1.`"""
    begin = dot
    while begin and dot - begin < LONGEST_ABBREVIATION and (text[begin - 1].isalnum() or text[begin - 1] == "."):
        begin -= 1
    word = text[begin:dot]
    return word.isdigit() or word.lower() in ABBREVIATIONS or (word[-1:].isalpha() and len(word.split(".")[-1]) == 1)
