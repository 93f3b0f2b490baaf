"""Mining: by hand, against a search over all thresholds, and with a haystack in between."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.bucc import best_threshold, bucc, collections
from evaluation.pairs import Pairs
from mexma.errors import InputError
from mexma.mining import Candidate, mine
from tests.evaluation.spaces import two_sides, unit


def test_mining_takes_each_sentence_once_best_first():
    x = np.eye(3, dtype=np.float32)
    y = unit(np.array([[0, 1, 0], [1, 0, 0], [0, 0.9, 0.1]]))
    mined = mine(x, y, k=1)
    assert {(c.source, c.target) for c in mined} >= {(0, 1), (1, 0)}
    assert len({c.source for c in mined}) == len({c.target for c in mined}) == len(mined)
    scores = [c.score for c in mined]
    assert scores == sorted(scores, reverse=True)


def f1_at(candidates, gold, threshold):
    taken = [c for c in candidates if c.score >= threshold]
    right = sum((c.source, c.target) in gold for c in taken)
    return 2 * right / (len(taken) + len(gold))


def test_the_threshold_is_the_best_of_all_possible_ones():
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = int(rng.integers(1, 30))
        candidates = [Candidate(i, i, float(s)) for i, s in enumerate(rng.integers(1, 12, n))]
        gold = {(int(i), int(i)) for i in rng.integers(0, 40, 10)}
        threshold = best_threshold(candidates, gold)
        every = [f1_at(candidates, gold, t) for t in [c.score for c in candidates] + [99]]
        assert f1_at(candidates, gold, threshold) == pytest.approx(max(every))


def test_the_threshold_by_hand():
    candidates = [Candidate(0, 0, 1.4), Candidate(1, 1, 1.2), Candidate(2, 9, 1.0)]
    assert best_threshold(candidates, {(0, 0), (1, 1)}) == pytest.approx(1.1)
    assert best_threshold(candidates, {(7, 7)}) == np.inf
    assert best_threshold([], {(7, 7)}) == np.inf
    assert best_threshold(candidates[:1], {(0, 0)}) == 1.4
    # Equal scores stand or fall together.
    tied = [Candidate(0, 0, 1.0), Candidate(1, 5, 1.0), Candidate(2, 5, 1.0)]
    assert best_threshold(tied, {(0, 0)}) == 1.0
    with pytest.raises(InputError, match="expected gold pairs to tune"):
        best_threshold(candidates, set())


def haystack(noise: float, n: int = 60, lone: int = 90):
    x, y = two_sides(n, noise=noise, dim=24)
    a, b = two_sides(lone, noise=50, dim=24, seed=9)
    return np.vstack([x, a]), np.vstack([y, b]), {(i, i) for i in range(n)}


def test_a_good_space_finds_the_pairs_and_a_bad_one_does_not():
    good, fair, useless = (bucc(*haystack(noise)) for noise in (0.2, 1.2, 50))
    assert good.f1_percent > 95
    assert good.f1_percent > fair.f1_percent > useless.f1_percent
    assert useless.f1_percent < 15
    assert good.precision_percent > 90 and good.recall_percent > 90


def test_the_threshold_keeps_the_haystack_out():
    x, y, gold = haystack(0.2)
    mined = bucc(x, y, gold)
    assert len(mine(x, y)) > 100  # without it, most of the haystack pairs up with something
    assert mined.extracted_pairs <= mined.gold_pairs * 1.1


def test_precision_recall_and_f1_are_counted_on_the_test_part_alone():
    x, y, gold = haystack(1.2)
    mined = bucc(x, y, gold, seed=3)
    training = set(np.random.default_rng(3).permutation(len(x))[: round(0.5 * len(x))].tolist())
    test_gold = {g for g in gold if g[0] not in training}
    taken = {
        (c.source, c.target)
        for c in mine(x, y)
        if c.source not in training and c.score >= mined.threshold
    }
    right = len(taken & test_gold)
    assert mined.gold_pairs == len(test_gold)
    assert mined.extracted_pairs == len(taken)
    assert mined.precision_percent == pytest.approx(100 * right / len(taken))
    assert mined.recall_percent == pytest.approx(100 * right / len(test_gold))
    p, r = mined.precision_percent, mined.recall_percent
    assert mined.f1_percent == pytest.approx(2 * p * r / (p + r))


def test_gold_is_needed_on_both_parts():
    x, y = two_sides(4, noise=0.1)
    with pytest.raises(InputError, match="in the training and in the test part"):
        bucc(x, y, {(0, 0)})


def test_sentences_without_translation_are_the_haystack():
    made = collections(
        Pairs(["a", "b", "a"], ["A", "B", "C"], [None] * 3, ["x", "a", "x"], ["Y", "B"])
    )
    assert made.source == ["a", "b", "x"]  # the second "a" and its "C" are left out
    assert made.target == ["A", "B", "Y"]
    assert made.gold == {(0, 0), (1, 1)}
    assert not made.hidden


def test_a_haystack_is_made_where_there_is_none():
    texts = [f"s{i}" for i in range(50)], [f"t{i}" for i in range(50)]
    pairs = Pairs(*texts, [None] * 50)
    made = collections(pairs, seed=1)
    assert made.hidden
    assert len(made.gold) == 10
    assert len(made.source) == len(made.target) == 30
    assert all(made.source[i][1:] == made.target[j][1:] for i, j in made.gold)
    rest = {s[1:] for s in made.source[10:]} & {t[1:] for t in made.target[10:]}
    assert rest == set()  # nothing else has its translation on the other side
    assert collections(pairs, seed=1) == made
    assert collections(pairs, seed=2) != made
