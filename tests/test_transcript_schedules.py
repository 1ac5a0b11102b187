"""Random faults against real processes, by fixed seeds; `python -m tests.schedules` runs as many as one likes."""

import pytest

from .schedules import Fleet, run

SEEDS = [4, 5, 102, 103]


@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_whatever_breaks_each_transcript_is_whole(store):
    fleet = Fleet(store)
    try:
        for seed in SEEDS:
            found, faults = run(fleet, seed)
            assert not found, f"seed {seed}, with {faults}"
    finally:
        fleet.close()
