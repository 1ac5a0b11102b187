"""What a transcript must be, whatever broke on the way: the judge of all tests that break it.

Tokens are told apart by their text, "q2.17 " for the third question's eighteenth. The sandbox says of each message
which link brought it and when, and of each link when it answered pings.
"""

from itertools import pairwise

# Seconds between two pongs of a link after which the holder has certainly stored what the first of them confirmed: the
# second is sent only after the first has come, and its own cursor is stored meanwhile.
STORED = 1.5


def tokens_of(question, count):
    return [f"q{question}.{number} " for number in range(count)]


def parsed(text):
    """(question, number) of each token."""
    return [tuple(int(part) for part in token[1:].split(".")) for token in text.split()]


def arrivals(conversation):
    """(question, number, message) for each token in the order of arrival."""
    return [(*token, message) for message in conversation["messages"] for token in parsed(message["text"])]


def faults_of(conversation, texts, outages=()):
    """What is wrong with a conversation of the sandbox; `texts` are the journal's, in the order of the questions.

    Empty when its transcript is all of them in order, with repeats only where a link was lost and only of what no pong
    had confirmed. `outages` are the spans of time, as the sandbox says it, in which nothing could be stored.
    """
    faults = [*missing(conversation, texts), *disorder(conversation), *needless_repeats(conversation, outages)]
    return faults + overlaps(conversation)


def missing(conversation, texts):
    arrived = {(question, number) for question, number, _ in arrivals(conversation)}
    kept = {token for text in texts for token in parsed(text)}
    return [f"missing: {sorted(kept - arrived)[:5]}"] if kept - arrived else []


def disorder(conversation):
    """Each token is the one behind the last, the first of a later question, or one that comes again on a new link."""
    faults = []
    last, last_message = None, None
    for question, number, message in arrivals(conversation):
        is_next = last is None or (question, number) == (last[0], last[1] + 1) or (question > last[0] and number == 0)
        goes_back = last is not None and (question, number) <= last
        if not is_next and not (goes_back and message.get("link") != last_message.get("link")):
            faults.append(f"({question}, {number}) after {last}")
        last, last_message = (question, number), message
    return faults[:5]


def needless_repeats(conversation, outages):
    """Tokens that came again although the holder had long known that they had arrived, and could store it."""
    pongs = {int(link): times for link, times in conversation["pongs"].items()}
    known, faults = set(), []
    for question, number, message in arrivals(conversation):
        if (question, number) in known:
            faults.append(f"({question}, {number}) came again")
        later = [at for at in pongs.get(message.get("link"), []) if at >= message["at"]]
        if is_stored(later, outages):
            known.add((question, number))
    return faults[:5]


def is_stored(pongs, outages):
    """Whether one pong came so long after another, while the store was in order, that what that one said is stored."""
    for first in pongs:
        second = next((at for at in pongs if at - first >= STORED), None)
        if second is None:
            return False
        if not any(begin <= second and first <= end for begin, end in outages):
            return True
    return False


def overlaps(conversation):
    """Links that brought text at the same time.

    What a slow reader has in its own buffers it takes when it likes, and nobody can take it back: what it took after
    the link's end says nothing of when the link was used.
    """
    spans = {}
    for message in conversation["messages"]:
        if message.get("late"):
            continue
        first, _ = spans.get(message.get("link"), (message["at"], 0))
        spans[message.get("link")] = (first, message["at"])
    ordered = sorted(spans.items(), key=lambda item: item[1])
    return [f"links {a} and {b} at once" for (a, one), (b, two) in pairwise(ordered) if one[1] > two[0]]


def faults_of_posts(conversation, texts):
    """The same for messages that were posted one by one: each goes on where the last one ended, or begins where that
    one began, because its answer was lost."""
    faults = missing(conversation, texts)
    kept = [token for text in texts for token in parsed(text)]
    following = dict(pairwise(kept))
    begins = [parsed(message["text"])[0] for message in conversation["messages"]]
    ends = [parsed(message["text"])[-1] for message in conversation["messages"]]
    if begins and begins[0] != kept[0]:
        faults.append(f"{begins[0]} comes first")
    for last_begin, last_end, begin in zip(begins, ends, begins[1:], strict=False):
        if begin not in (following.get(last_end), last_begin):
            faults.append(f"{begin} after {last_begin} to {last_end}")
    return faults[:5]
