"""xsim and Tatoeba accuracy against plain loops, by hand, at the edges; worse is worse."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.lexical import lexical_vectors
from evaluation.retrieval import xsim
from evaluation.tatoeba import XTREME_36, accuracy, xtreme_mean
from mexma.errors import InputError
from mexma.neighbours import (
    best_by_cosine,
    best_by_margin,
    both_ways_by_margin,
    neighbourhood,
)
from tests.evaluation.spaces import two_sides, unit


def margins_by_loops(x, y, k):
    """Equation 3 of arXiv 1811.01136, read aloud; what is divided by is at least 0.05."""
    cosine = [[float(np.dot(a, b)) for b in y] for a in x]
    k_x, k_y = min(k, len(y)), min(k, len(x))
    of_x = [sum(sorted(row, reverse=True)[:k_x]) / (2 * k_x) for row in cosine]
    of_y = [
        sum(sorted((cosine[i][j] for i in range(len(x))), reverse=True)[:k_y]) / (2 * k_y)
        for j in range(len(y))
    ]
    return [
        [cosine[i][j] / max(of_x[i] + of_y[j], 0.05) for j in range(len(y))] for i in range(len(x))
    ]


@pytest.mark.parametrize("tile", [1, 5, 2048])
@pytest.mark.parametrize("k", [1, 4, 40])
def test_the_margin_is_the_equation_over_the_whole_pool(tile, k):
    x, y = two_sides(13, noise=1.0)
    y = np.vstack([y, two_sides(9, noise=0, seed=5)[0]])
    expected = np.array(margins_by_loops(x.astype(float), y.astype(float), k))
    scores, found = best_by_margin(x, y, k=k, tile=tile)
    assert found.tolist() == expected.argmax(1).tolist()
    np.testing.assert_allclose(scores, expected.max(1), rtol=1e-5)
    forward, backward = both_ways_by_margin(x, y, k=k, tile=tile)
    np.testing.assert_array_equal(forward[1], found)
    assert backward[1].tolist() == expected.argmax(0).tolist()


@pytest.mark.parametrize("tile", [1, 5, 2048])
def test_the_nearest_and_the_neighbourhood_are_those_of_the_full_matrix(tile):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((11, 4)).astype(np.float32)
    y = rng.integers(-1, 2, (17, 4)).astype(np.float32)  # many ties
    cosine = x @ y.T
    scores, found = best_by_cosine(x, y, tile=tile)
    np.testing.assert_allclose(scores, cosine.max(1), atol=1e-6)
    np.testing.assert_allclose(
        np.take_along_axis(cosine, found[:, None], 1)[:, 0], scores, atol=1e-6
    )
    for k in (1, 4, 17, 30):
        expected = np.sort(cosine, 1)[:, ::-1][:, :k].mean(1)
        np.testing.assert_allclose(neighbourhood(x, y, k, tile=tile), expected, atol=1e-6)
    same = np.ones((3, 2), np.float32)
    assert best_by_cosine(same, same, tile=tile)[1].tolist() == [0, 0, 0]


def test_the_margin_passes_over_a_hub():
    """By hand: (2, 1) is nearer to the hub (1, 0) than to its own (1, 1.6), by cosine."""
    x = unit(np.array([[2, 1], [1, 0.1], [1, -0.1], [1, -0.2]]))
    y = unit(np.array([[1, 1.6], [1, 0]]))
    cosine = x @ y.T
    assert cosine[0, 1] > cosine[0, 0]
    assert best_by_cosine(x, y)[1][0] == 1
    assert best_by_margin(x, y, k=2)[1][0] == 0
    of_x = cosine[0].mean()
    of_y = np.sort(cosine, axis=0)[-2:].mean(0)
    ratios = cosine[0] / ((of_x + of_y) / 2)
    np.testing.assert_allclose(best_by_margin(x, y, k=2)[0][0], ratios.max(), rtol=1e-6)


def test_xsim_by_hand():
    texts = ["a", "b", "c", "d"]
    y = np.eye(4, dtype=np.float32)
    x = y[[0, 1, 3, 2]]  # two of four changed places
    errors = xsim(x, y, texts, texts)
    assert (errors.margin_percent, errors.cosine_percent, errors.queries) == (50.0, 50.0, 4)
    assert xsim(y, y, texts, texts).margin_percent == 0
    assert xsim(y[[1, 2, 3, 0]], y, texts, texts).margin_percent == 100


def test_duplicates_are_no_errors_and_other_texts_are():
    y = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    assert xsim(y, y, ["a", "a", "b"], ["a", "a", "b"]).cosine_percent == 0
    tie = xsim(y, y, ["a", "c", "b"], ["a", "c", "b"])  # the lower index wins
    assert tie.cosine_percent == pytest.approx(100 / 3)
    assert tie.margin_percent == pytest.approx(100 / 3)


def test_tiny_pools_are_defined():
    x, y = two_sides(3, noise=0.01)
    assert xsim(x, y, list("abc"), list("abc"), k=4).margin_percent == 0
    assert xsim(x[:1], y[:1], ["a"], ["a"]).margin_percent == 0
    np.testing.assert_allclose(neighbourhood(x, y, 4), (x @ y.T).mean(1), rtol=1e-6)
    assert accuracy(x[:1], y[:1], ["a"], ["b"]).forward_percent == 100
    nothing = np.empty((0, 2), np.float32)
    with pytest.raises(InputError, match="expected at least one query and one target, got 0 and 3"):
        xsim(nothing, y, [], list("abc"))
    with pytest.raises(InputError, match="expected at least one"):
        accuracy(nothing, nothing, [], [])
    with pytest.raises(InputError, match="'z' is not in the pool"):
        xsim(x, y, ["a", "b", "z"], list("abc"))
    with pytest.raises(InputError, match="a text for each of 3 targets, got 2"):
        xsim(x, y, list("aba"), list("ab"))


def test_a_zero_space_gives_every_query_the_first_target():
    zero = np.zeros((4, 3), np.float32)
    errors = xsim(zero, zero, list("abcd"), list("abcd"))
    assert (errors.margin_percent, errors.cosine_percent) == (75, 75)


def test_accuracy_in_both_directions_by_hand():
    x = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    y = np.array([[1, 0], [0.6, 0.8], [0, 1]], np.float32)
    result = accuracy(x, y, ["x0", "x1", "x2"], ["y0", "y1", "y2"])
    assert result.forward_percent == pytest.approx(100 / 3)
    assert result.backward_percent == pytest.approx(100 / 3)
    one_way = accuracy(x[:2], unit(np.array([[1, 0.9], [1, 1.5]])), ["x0", "x1"], ["y0", "y1"])
    assert (one_way.forward_percent, one_way.backward_percent) == (100, 100)
    hub = accuracy(x[:2], unit(np.array([[1, 0.9], [1, 0.95]])), ["x0", "x1"], ["y0", "y1"])
    assert (hub.forward_percent, hub.backward_percent) == (100, 50)


def test_worse_encoders_score_worse_and_a_useless_one_no_better_than_chance():
    texts = [str(i) for i in range(200)]
    margin, cosine, right = [], [], []
    for noise in (0.1, 0.8, 1.6, 100):
        x, y = two_sides(200, noise=noise)
        errors = xsim(x, y, texts, texts)
        margin.append(errors.margin_percent)
        cosine.append(errors.cosine_percent)
        right.append(accuracy(x, y, texts, texts).forward_percent)
        assert right[-1] == pytest.approx(100 - cosine[-1])
    assert margin == sorted(margin) and margin[0] == 0 and margin[-1] > 95
    assert cosine == sorted(cosine) and cosine[1] < cosine[2]
    assert margin[2] < cosine[2]  # what the margin is for


def test_the_xtreme_mean_needs_all_36():
    assert len(set(XTREME_36)) == 36
    values = dict.fromkeys(XTREME_36, 80.0) | {"afr": 116.0, "xho": 0.0}
    assert xtreme_mean(values) == pytest.approx(81)
    assert xtreme_mean({lang: v for lang, v in values.items() if lang != "fin"}) is None


def test_the_lexical_baseline_is_tf_idf_over_n_grams():
    """Against the dense matrix of the definition, in every use that is made of it."""
    source = ["Berlin 1989", "Helsinki on kaunis", "?", "Tom ja Mary"]
    target = ["Tom and Mary", "Helsinki is beautiful", "Berlin in 1989", "no"]
    x, y = lexical_vectors(source, target)

    def grams(text):
        words = [f" {w} " for w in text.lower().split()]
        return [w[i : i + n] for w in words for n in (2, 3, 4) for i in range(len(w) - n + 1)]

    documents = [grams(t) for t in source + target]
    terms = sorted({g for d in documents for g in d})
    counts = np.array([[d.count(t) for t in terms] for d in documents], float)
    idf = np.log((1 + len(documents)) / (1 + (counts > 0).sum(0))) + 1
    weights = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * idf
    dense = unit(weights)
    np.testing.assert_allclose(x @ y.T, dense[:4] @ dense[4:].T, atol=1e-6)
    for tile in (1, 3, 100):
        assert best_by_cosine(x, y, tile=tile)[1].tolist()[:2] == [2, 1]
        assert best_by_margin(x, y, tile=tile)[1].tolist()[3] == 0
    assert accuracy(x, y, source, [target[i] for i in (2, 1, 3, 0)]).forward_percent <= 75


def test_texts_without_n_grams_have_no_neighbour():
    x, y = lexical_vectors(["ab"], ["ab", "漢字"])
    assert (x @ y.T).tolist() == [[pytest.approx(1), 0]]
