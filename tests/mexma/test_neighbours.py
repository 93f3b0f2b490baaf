"""Exact neighbours and the margin, against the obvious computation."""

from __future__ import annotations

import numpy as np
import pytest

from mexma.neighbours import margin, nearest


@pytest.mark.parametrize("tile", [1, 3, 7, 100])
@pytest.mark.parametrize("k", [1, 4, 50])
def test_tiles_do_not_change_the_answer(tile, k):
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((11, 5)).astype(np.float32)
    targets = rng.integers(-1, 2, (23, 5)).astype(np.float32)  # many ties
    scores, indices = nearest(queries, targets, k, tile=tile)
    full = queries @ targets.T
    expected = np.argsort(-full, axis=1, kind="stable")[:, : min(k, 23)]
    np.testing.assert_allclose(scores, np.take_along_axis(full, expected, 1), atol=1e-5)
    np.testing.assert_allclose(scores, np.take_along_axis(full, indices, 1), atol=1e-5)
    assert all(len(set(row)) == len(row) for row in indices.tolist())


def test_ties_go_to_the_lower_index():
    queries = np.array([[1.0, 0.0]], np.float32)
    targets = np.array([[1, 0], [0, 1], [1, 0], [1, 0]], np.float32)
    for tile in (1, 2, 4):
        assert nearest(queries, targets, 3, tile=tile)[1].tolist() == [[0, 2, 3]]


def test_margin_follows_its_equation():
    cosine = np.array([[0.8, 0.6]], np.float32)
    result = margin(cosine, np.array([[0.5]], np.float32), np.array([[0.7, 0.3]], np.float32))
    np.testing.assert_allclose(result, [[0.8 / 0.6, 0.6 / 0.4]], rtol=1e-6)


def test_margin_keeps_the_order_of_cosines_where_nothing_is_near():
    cosine = np.array([[0.3, 0.1, -0.1, -0.2]], np.float32)
    for mean in (0.02, 0.0, -0.1):
        around = np.full((1, 1), mean, np.float32), np.full((1, 4), mean, np.float32)
        scores = margin(cosine, *around)
        np.testing.assert_allclose(scores, cosine / 0.05, rtol=1e-6)
