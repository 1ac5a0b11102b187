"""What waits behind a busy link, in pieces that a message holds. No I/O.

A piece ends between two grapheme clusters (Unicode, UAX #29), what a reader takes for one character: a flag or an
accented letter that is cut in two shows as something else. Byte limits are those of the text's JSON, escapes included.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING

import orjson

from ..sse import Token

if TYPE_CHECKING:
    from regex import Pattern

MAX_CHAR_BYTES = 6  # of a code point in JSON: \u0000
# Code points before a limit in which a boundary is looked for: dozens of real clusters, yet a text that is a single
# one of any length costs a millisecond a piece.
LOOK_BACK = 500
# What makes the most of the rules that look further back than one character (GB9c, GB11): a Devanagari conjunct and an
# emoji. Those for flags (GB12, GB13) see no boundary here at all.
BEFORE = ("\u0915\u094d", "\U0001f468")


def join(tokens: Sequence[Token], max_chars: int, max_bytes: int) -> tuple[str, int]:
    """The text of the first tokens, as many as fit, and how many these are: at least one, whether it fits or not.

    When more wait, it ends with the last token that ends a grapheme cluster, if there is one.
    """
    if len(tokens) == 1:
        return tokens[0].text, 1
    count = count_fitting(tokens, max_chars, max_bytes)
    if 1 < count < len(tokens):
        count = count_whole(tokens, count)
    return "".join([token.text for token in tokens[:count]]), count


def split(text: str, max_chars: int, max_bytes: int) -> list[str]:
    """The text in pieces within the limits, but at least a code point each.

    A grapheme cluster is cut only when it is longer than a piece may be, or than LOOK_BACK.
    """
    pieces = []
    begin = 0
    while not fits(text, begin, max_chars, max_bytes):
        end = begin + max(1, max_fitting(text[begin : begin + max_chars], max_bytes))
        found = boundaries(text, begin, end)
        if found and found[-1] > begin:
            end = found[-1]
        pieces.append(text[begin:end])
        begin = end
    pieces.append(text[begin:])
    return pieces


def json_size(text: str) -> int:
    return len(orjson.dumps(text)) - 2  # the quotes


def fits(text: str, begin: int, max_chars: int, max_bytes: int) -> bool:
    """Whether what stands from `begin` on does."""
    length = len(text) - begin
    return length <= max_chars and (length * MAX_CHAR_BYTES <= max_bytes or json_size(text[begin:]) <= max_bytes)


def max_fitting(text: str, max_bytes: int) -> int:
    """How many code points of the text fit."""
    if len(text) * MAX_CHAR_BYTES <= max_bytes:
        return len(text)
    return bisect_right(range(1, len(text) + 1), max_bytes, key=lambda length: json_size(text[:length]))


def count_fitting(tokens: Sequence[Token], max_chars: int, max_bytes: int) -> int:
    needs_sizes = max_chars * MAX_CHAR_BYTES > max_bytes
    chars = size = 0
    for count, (_, text) in enumerate(tokens):
        chars += len(text)
        if needs_sizes:
            size += json_size(text)
        if count and (chars > max_chars or size > max_bytes):
            return count
    return len(tokens)


def count_whole(tokens: Sequence[Token], count: int) -> int:
    """How many of the first `count` tokens end between two grapheme clusters; `count` if there is no such end."""
    text = "".join([token.text for token in tokens[:count]]) + tokens[count].text[:1]
    ends = list(accumulate(len(token.text) for token in tokens[:count]))
    limit = ends[-1]
    while found := boundaries(text, 0, limit):
        whole = bisect_right(ends, found[-1])
        if not whole:
            break
        limit = ends[whole - 1]
        if limit == found[-1]:
            return whole
    return count


def boundaries(text: str, begin: int, limit: int) -> Sequence[int]:
    """The last places up to `limit`, in order, at which no grapheme cluster is cut; `begin` is taken for one.

    Not necessarily all of them; empty when there is none within LOOK_BACK.
    """
    if is_plain(text[limit - 1 : limit + 1]):
        return (limit,)
    certain = limit
    while certain > begin and not is_certain(text[certain - 1 : certain + 1]):
        certain -= 1
        if limit - certain > LOOK_BACK:
            return ()
    # A slice, not a place to begin at: the package looks behind it, as far as a row of flags goes.
    ends = [certain + found.end() for found in cluster().finditer(text[certain : limit + 1])]
    return (certain, *(end for end in ends if end <= limit))


def is_plain(pair: str) -> bool:
    """Whether a cluster ends between the two characters for sure, and cheaply (GB3, GB999)."""
    return pair.isascii() and pair != "\r\n"


def is_certain(pair: str) -> bool:
    """Whether a cluster ends between the two characters whatever stands before them."""
    find = cluster().findall
    return all(len(find(before + pair)[-1]) == 1 for before in BEFORE)


@cache
def cluster() -> "Pattern[str]":
    # Not above: it takes 30 ms and 3 MB, and most workers never have to cut.
    import regex  # noqa: PLC0415

    return regex.compile(r"\X")
