"""Mining: three ways to make pairs, against the full matrix; ties, copies and edges."""

from __future__ import annotations

import numpy as np
import pytest

from mexma.mining import Candidate, mine
from mexma.neighbours import margin


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def sides(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Few dimensions and whole numbers, so that there are hubs, ties and copies."""
    rng = np.random.default_rng(seed)
    n, m = rng.integers(1, 20, 2)
    drawn = rng.integers(-2, 3, (n + m, 3)).astype(np.float32)
    drawn[~drawn.any(axis=1)] = 1
    rows = unit(drawn)
    return rows[:n], rows[n:]


def margins(x: np.ndarray, y: np.ndarray, k: int) -> np.ndarray:
    cosine = x @ y.T
    of_x = np.sort(cosine, axis=1)[:, -k:].mean(1)
    of_y = np.sort(cosine, axis=0)[-k:].mean(0)
    return margin(cosine, of_x[:, None], of_y[None, :])


def pairs(found: list[Candidate]) -> set[tuple[int, int]]:
    return {(c.source, c.target) for c in found}


@pytest.mark.parametrize("score", ["margin", "cosine"])
@pytest.mark.parametrize("seed", range(25))
def test_each_method_holds_the_surer_ones_and_keeps_its_promise(seed, score):
    x, y = sides(seed)
    union, greedy, both = (
        mine(x, y, score=score, method=m) for m in ("union", "greedy", "intersection")
    )
    assert pairs(both) <= pairs(greedy) <= pairs(union)
    assert {c.source for c in union} == set(range(len(x))), "each sentence chose"
    assert {c.target for c in union} == set(range(len(y)))
    for found in (greedy, both):
        assert len({c.source for c in found}) == len({c.target for c in found}) == len(found)
    for found in (union, greedy, both):
        assert found == sorted(found, key=lambda c: (-c.score, c.source, c.target))
    full = x @ y.T if score == "cosine" else margins(x, y, 4)
    for c in union:
        assert c.score == pytest.approx(full[c.source, c.target], abs=1e-5)
        best = full[c.source].max(), full[:, c.target].max()
        assert c.score == pytest.approx(min(best), abs=1e-5)
    for c in both:
        assert c.score == pytest.approx(full[c.source].max(), abs=1e-5)
        assert c.score == pytest.approx(full[:, c.target].max(), abs=1e-5)


@pytest.mark.parametrize("method", ["intersection", "greedy", "union"])
@pytest.mark.parametrize("seed", range(10))
def test_a_threshold_drops_what_scores_lower_and_nothing_else(seed, method):
    x, y = sides(seed)
    everything = mine(x, y, method=method)
    for threshold in (-1.0, 0.9, everything[0].score, 99.0):
        kept = mine(x, y, method=method, threshold=threshold)
        assert kept == [c for c in everything if c.score >= threshold]


@pytest.mark.parametrize("method", ["intersection", "greedy", "union"])
def test_sides_may_be_swapped(method):
    rng = np.random.default_rng(0)
    x, y = unit(rng.standard_normal((30, 8))), unit(rng.standard_normal((41, 8)))
    there, back = mine(x, y, method=method), mine(y, x, method=method)
    assert pairs(there) == {(j, i) for i, j in pairs(back)}
    assert [c.score for c in there] == pytest.approx([c.score for c in back], rel=1e-5)


@pytest.mark.parametrize("method", ["intersection", "greedy", "union"])
def test_of_equally_good_ones_it_is_the_first(method):
    x = unit(np.array([[1, 0], [1, 0], [0, 1]]))
    y = unit(np.array([[0, 1], [1, 0], [1, 0]]))
    found = mine(x, y, score="cosine", method=method)
    assert found[:2] == [(0, 1, 1.0), (2, 0, 1.0)] or method == "union"
    if method != "union":
        assert len(found) == 2
    else:  # the copies chose the first of the other side
        assert pairs(found) == {(0, 1), (1, 1), (0, 2), (2, 0)}


def test_one_sentence_few_sentences_and_none():
    x = unit(np.array([[1, 0.2]]))
    y = unit(np.array([[1, 0.3], [0, 1], [1, -1]]))
    (one,) = mine(x, y[:1])
    assert one == (0, 0, pytest.approx(1.0)), "a sentence is the whole of its neighbourhood"
    for k in (1, 4, 1000):
        assert pairs(mine(x, y, k=k, method="intersection")) == {(0, 0)}
        assert pairs(mine(y, x, k=k, method="intersection")) == {(0, 0)}
    nothing = np.empty((0, 2), np.float32)
    assert mine(nothing, y) == mine(y, nothing) == mine(nothing, nothing) == []
