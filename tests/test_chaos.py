"""A minute of random faults against all that runs in production; `make chaos` runs as long as one likes."""

import random

import pytest

from .chaos.__main__ import told
from .chaos.round import run

SECONDS = 60.0  # in which faults come


@pytest.mark.timeout(600)  # then all must come to rest, which an idle link does after a minute
def test_whatever_breaks_every_promise_is_kept():
    seed = random.randrange(1_000_000)
    report = run(seed, SECONDS)
    assert not report.violations, told(report, SECONDS)
    assert report.turns["complete"] > 0
    assert report.faults.total() > 0
