"""What reads bytes from outside keeps its promises for inputs that no one thought of: see fuzz.py."""

import random

import pytest

from . import fuzz


@pytest.mark.timeout(0)
@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_any_input_is_read_or_refused_as_promised(target, pytestconfig):
    seconds = pytestconfig.getoption("fuzz_seconds") / len(fuzz.TARGETS)
    assert fuzz.fuzz(target, seconds, seed=random.randrange(2**32)) > 10 * seconds


class Planted:
    """A reader with a fault."""

    examples = (b"Hello, here is nothing",)

    def check(self, chance, data):
        if b"data:" in data and b"null" in data:
            raise ValueError("found")


def test_a_broken_promise_is_found_and_its_input_made_shorter(monkeypatch):
    monkeypatch.setitem(fuzz.TARGETS, "planted", Planted)
    with pytest.raises(AssertionError, match=r"seed 1, input \d+: ValueError\('found'\)\nb'(data:null|nulldata:)'$"):
        fuzz.fuzz("planted", 60, seed=1)
