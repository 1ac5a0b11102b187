"""The loops of a worker's turns."""

import gevent

from server.turns import run_for_ever


def test_a_loop_that_breaks_is_run_again_until_all_is_closed(monkeypatch, caplog):
    """What is killed at the end may break as well: Redis' client makes another error of it."""
    monkeypatch.setattr("server.turns.LOOP_PAUSE", 0.0)
    runs = []

    def loop():
        runs.append(len(runs))
        raise ValueError

    with gevent.Timeout(5):
        run_for_ever(loop, lambda: len(runs) == 3)
    assert len(runs) == 3
    assert [record.message for record in caplog.records] == ["a loop broke, running it again"] * 2
