"""How long a retry waits."""

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.backoff import BASE, CAP, full_jitter, retry_after

NOW = 1_800_000_000.0


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_a_wait_is_never_longer_than_its_bound(attempt, random):
    assert 0 <= full_jitter(attempt, lambda: random) <= min(CAP, BASE * 2.0 ** min(attempt - 1, 30))


@pytest.mark.parametrize(("attempt", "longest"), [(1, 0.5), (2, 1.0), (3, 2.0), (7, 30.0), (100, 30.0)])
def test_the_bound_doubles_up_to_the_cap(attempt, longest):
    assert full_jitter(attempt, lambda: 1.0) == longest


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0),
        ("2", 2.0),
        (" 120 ", 120.0),
        (formatdate(NOW + 30, usegmt=True), 30.0),
        (formatdate(NOW - 30, usegmt=True), 0.0),
        (None, None),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("٣", None),
        ("9" * 5000, 999_999_999.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(header, seconds):
    assert retry_after(header, NOW) == seconds


@given(st.text())
def test_any_header_is_a_wait_or_none(header):
    wait = retry_after(header, NOW)
    assert wait is None or wait >= 0
