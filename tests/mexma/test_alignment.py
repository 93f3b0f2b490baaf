"""The methods of alignment against loops, and the states of words."""

from __future__ import annotations

import numpy as np
import pytest

from mexma.alignment import METHODS, argmax_links, itermax_links, similarities, word_states


def argmax_by_loops(s):
    n, m = len(s), len(s[0])
    out = set()
    for i in range(n):
        for j in range(m):
            first_in_row = all(s[i][j] > s[i][o] for o in range(j)) and all(
                s[i][j] >= s[i][o] for o in range(j, m)
            )
            first_in_column = all(s[i][j] > s[o][j] for o in range(i)) and all(
                s[i][j] >= s[o][j] for o in range(i, n)
            )
            if first_in_row and first_in_column and s[i][j] > 0:
                out.add((i, j))
    return out


def itermax_by_loops(s, rounds, alpha):
    n, m = len(s), len(s[0])
    found = set()
    for _ in range(rounds):
        masked = [[0.0] * m for _ in range(n)]
        for i in range(n):
            for j in range(m):
                row = any(a == i for a, _ in found)
                column = any(b == j for _, b in found)
                masked[i][j] = s[i][j] * (0 if row and column else alpha if row or column else 1)
        found |= argmax_by_loops(masked)
    return found


def as_set(links):
    return {(int(i), int(j)) for i, j in zip(*np.nonzero(links), strict=True)}


@pytest.mark.parametrize("seed", range(20))
def test_both_methods_against_loops_with_ties(seed):
    rng = np.random.default_rng(seed)
    n, m = rng.integers(1, 9, 2)
    s = rng.integers(0, 6, (n, m)) / 5  # many ties, some zeros
    assert as_set(argmax_links(s)) == argmax_by_loops(s.tolist())
    for rounds in (1, 2, 4):
        found = as_set(itermax_links(s, iterations=rounds, discount=0.9))
        assert found == itermax_by_loops(s.tolist(), rounds, 0.9)


def test_itermax_adds_what_argmax_left():
    s = np.array([[0.9, 0.8], [0.2, 0.1]])
    assert as_set(argmax_links(s)) == {(0, 0)}
    # Second round: (0, 0) is out; 0.9 * 0.8 and 0.9 * 0.2 each lead their row and column.
    assert as_set(itermax_links(s)) == {(0, 0), (0, 1), (1, 0)}
    assert as_set(itermax_links(s, iterations=1)) == {(0, 0)}


def test_nothing_to_link():
    for shape in ((0, 3), (3, 0), (0, 0)):
        for method in METHODS.values():
            assert method(np.zeros(shape)).shape == shape
    assert not argmax_links(np.zeros((2, 2))).any()


def test_similarities_lie_between_zero_and_one():
    found = similarities(
        np.array([[2, 0], [0, 0]], np.float32), np.array([[3, 0], [-1, 0], [0, 5]], np.float32)
    )
    np.testing.assert_allclose(found, [[1, 0, 0.5], [0.5, 0.5, 0.5]])


def test_a_word_s_state_is_the_mean_of_its_tokens_and_words_may_share_them():
    states = np.arange(12, dtype=np.float32).reshape(4, 3)
    found = word_states(states, [(1, 2), (1, 4), (0, 1)])
    np.testing.assert_array_equal(found, [states[1], states[1:].mean(0), states[0]])
    assert word_states(states, []).shape == (0, 3)
