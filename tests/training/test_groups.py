"""Groups of near rows: what plain arithmetic gives, to the last one."""

from __future__ import annotations

import hashlib

import numpy as np

from training.chance import draw
from training.groups import DRAWN, ROUNDS, near_groups


def plain_groups(rows: np.ndarray, most: int, *key: int) -> list[list[int]]:
    """As one would first write it: whole numbers of Python, halves summed each by itself."""

    def halves(places: list[int], node: int) -> list[list[int]]:
        if len(places) <= most:
            return [places]
        mine = rows[places].astype(object)
        drawn = mine[[int(x) % len(mine) for x in draw(*key, node, np.arange(DRAWN))]]
        products = [
            (sum(a * b), n) for n, (a, b) in enumerate((a, b) for a in drawn for b in drawn)
        ]
        i, j = divmod(min(products)[1], DRAWN)
        direction, middle = drawn[i] - drawn[j], len(places) // 2
        for _ in range(ROUNDS):
            order = sorted(range(len(mine)), key=lambda n: -sum(mine[n] * direction))
            direction = mine[order[:middle]].sum(axis=0) - mine[order[middle:]].sum(axis=0)
        first, second = [places[n] for n in order[:middle]], [places[n] for n in order[middle:]]
        return halves(first, 2 * node) + halves(second, 2 * node + 1)

    return halves(list(range(len(rows))), 1)


def test_groups_are_those_of_plain_arithmetic_whatever_adds_them():
    random = np.random.default_rng(3)
    for count, dim, most in ((700, 64, 30), (61, 5, 4), (9, 3, 8), (4, 2, 1)):
        rows = random.integers(-127, 128, (count, dim)).astype(np.int8)
        found = near_groups(rows, most, 1, 2)
        assert [group.tolist() for group in found] == plain_groups(rows, most, 1, 2)


def test_groups_of_a_run_stay_what_they_were():
    """Those of the loop that summed gathered halves, before one product took its place."""
    rows = np.random.default_rng(7).integers(-90, 90, (6000, 96)).astype(np.int8)
    found = np.concatenate(near_groups(rows, 32, 1, 2))
    assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == "0dfd4c85cf7ef376"


def test_equal_rows_stay_together_as_far_as_groups_have_room():
    random = np.random.default_rng(3)
    kind = random.integers(0, 40, 700)
    rows = random.integers(-90, 90, (40, 64)).astype(np.int8)[kind]
    found = near_groups(rows, 30, 1, 2)
    assert sorted(np.concatenate(found).tolist()) == list(range(700))
    assert all(8 <= len(group) <= 30 for group in found)
    kinds = [len(set(kind[group].tolist())) for group in found]
    assert np.mean(kinds) < 8, "of 40 sentences a random group of 22 would hold 17"
