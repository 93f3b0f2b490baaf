"""Isotropy and hubness: loops, spectra of known shape, edges."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from evaluation.geometry import (
    effective_rank,
    hubness,
    hubness_of,
    isoscore,
    isotropy,
    mean_cosine,
    occurrences,
)
from mexma.errors import InputError
from tests.evaluation.spaces import two_sides, unit


def test_mean_cosine_is_the_mean_over_all_pairs():
    vectors = two_sides(30, noise=0)[0] + np.float32(0.2)
    vectors = unit(vectors)
    expected = np.mean([a.astype(float) @ b.astype(float) for a, b in combinations(vectors, 2)])
    assert mean_cosine(vectors) == pytest.approx(expected, abs=1e-6)
    assert mean_cosine(np.array([[1, 0], [-1, 0]], np.float32)) == -1


def test_isoscore_at_its_ends_and_between():
    assert isoscore(np.full(10, 3.0)) == pytest.approx(1)
    assert isoscore(np.array([5.0, 0, 0, 0])) == pytest.approx(0)
    assert isoscore(np.zeros(4)) == 0
    half = isoscore(np.array([1.0] * 5 + [0.0] * 5))
    assert 0.4 < half < 0.5  # the paper: about the share of directions in use
    # The paper's algorithm in its own steps, for two dimensions and variances 1 and 0.5.
    v = np.array([1.0, 0.5])
    hat = np.sqrt(2) * v / np.linalg.norm(v)
    delta = np.linalg.norm(hat - np.ones(2)) / np.sqrt(2 * (2 - np.sqrt(2)))
    phi = (2 - delta**2 * (2 - np.sqrt(2))) ** 2 / 4
    assert isoscore(v) == pytest.approx(2 * phi - 1)


def test_isoscore_does_not_depend_on_turning_or_shifting():
    rng = np.random.default_rng(0)
    cloud = (rng.standard_normal((500, 6)) * [3, 2, 1, 1, 0.5, 0.1]).astype(np.float32)
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0].astype(np.float32)
    first, turned = isotropy(cloud), isotropy(cloud @ turn + 7)
    assert turned.isoscore == pytest.approx(first.isoscore, abs=1e-3)
    assert turned.effective_rank == pytest.approx(first.effective_rank, abs=1e-3)


def test_effective_rank_counts_directions():
    assert effective_rank(np.array([2.0, 2.0, 2.0, 0, 0])) == pytest.approx(3)
    assert effective_rank(np.array([4.0, 0])) == pytest.approx(1)
    assert effective_rank(np.zeros(3)) == 0
    assert effective_rank(np.array([9.0, 1.0])) == pytest.approx(
        np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    )


def test_a_cone_is_less_isotropic_than_a_ball_and_a_point_not_at_all():
    ball = unit(np.random.default_rng(0).standard_normal((300, 8)))
    cone = unit(ball * [1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.1] + [2, 0, 0, 0, 0, 0, 0, 0])
    point = np.repeat(ball[:1], 300, axis=0)
    round_, narrow, none = isotropy(ball), isotropy(cone), isotropy(point)
    assert abs(round_.mean_cosine) < 0.02 < 0.6 < narrow.mean_cosine < none.mean_cosine
    assert round_.isoscore > 0.95 > narrow.isoscore > none.isoscore == 0
    assert round_.effective_rank > 7.5 > narrow.effective_rank > none.effective_rank == 0
    assert none.mean_cosine == pytest.approx(1)


def test_isotropy_of_next_to_nothing_is_refused():
    for shape in ((0, 3), (1, 3), (5, 1)):
        with pytest.raises(InputError, match="expected at least 2 vectors of 2 components"):
            isotropy(np.ones(shape, np.float32))


@pytest.mark.parametrize("k", [1, 3, 50])
def test_occurrences_by_loops(k):
    x, y = two_sides(40, noise=1.0)
    expected = [0] * 40
    for a in x:
        for j in sorted(range(40), key=lambda j: -float(a @ y[j]))[:k]:
            expected[j] += 1
    assert occurrences(x, y, k).tolist() == expected


def test_hubness_by_hand():
    even = hubness_of(np.array([2, 2, 2, 2]))
    assert (even.skewness, even.robin_hood, even.largest) == (0, 0, 2)
    # mean 2, deviations 6, -2, -2, -2: skewness (216 - 24) / 4 / sqrt(12)^3; 6 of 8 slots move.
    hub = hubness_of(np.array([8, 0, 0, 0]))
    assert hub.skewness == pytest.approx(48 / 12**1.5)
    assert hub.robin_hood == pytest.approx(0.75)
    assert hub.largest == 8


def test_one_target_near_to_all_is_seen():
    x, y = two_sides(60, noise=0.3)
    y[7] = unit(x.mean(0, keepdims=True) + 0.01)[0]
    x = unit(x + 3 * y[7])
    plain = hubness(*two_sides(60, noise=0.3), k=3)
    hub = hubness(x, y, k=3)
    assert hub.largest == 60
    assert hub.skewness > plain.skewness + 1
    assert hub.robin_hood > plain.robin_hood


def test_tiny_pools():
    x, y = two_sides(3, noise=0.1)
    assert occurrences(x, y, 10).tolist() == [3, 3, 3]
    assert hubness(x[:1], y[:1]).skewness == 0
    with pytest.raises(InputError, match="got 0 and 3"):
        hubness(x[:0], y)
