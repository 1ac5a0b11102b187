"""A turn's id: no one guesses it, and the store finds those of one moment side by side."""

import re
import secrets

from server.turns import MOMENTS, make_id

NOW = 1_800_000_000.0


def test_an_id_is_sixteen_bytes_that_an_address_can_hold():
    assert re.fullmatch(r"[A-Za-z0-9_-]{22}", make_id(NOW, secrets.token_bytes))


def test_ids_of_one_moment_begin_alike_and_differ():
    ids = {make_id(NOW, secrets.token_bytes) for _ in range(1000)}
    assert len(ids) == 1000
    assert len({id_[:5] for id_ in ids}) == 1


def test_ids_of_two_moments_begin_otherwise():
    assert make_id(NOW, bytes)[:6] != make_id(NOW + 1 / MOMENTS, bytes)[:6]


def test_an_id_holds_all_that_chance_gave():
    ids = {make_id(NOW, lambda size, n=n: (1 << n).to_bytes(size)) for n in range(96)}
    assert len(ids) == 96


def test_a_moment_of_any_year_makes_an_id():
    assert {len(make_id(now, secrets.token_bytes)) for now in (0.0, NOW, 5e9, 1e12)} == {22}
