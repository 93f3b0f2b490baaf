"""Hard pools: what is in them, who is misled by what, and that blindness shows."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.corruption import KINDS
from evaluation.retrieval import xsim
from evaluation.xsimpp import HardPool, hard_pool, xsimpp
from mexma.errors import InputError
from mexma.sample import parallel_pairs
from tests.evaluation.spaces import two_sides, unit

SENTENCES = parallel_pairs("fi")[1]


def test_the_pool_begins_with_the_sentences_and_repeats_nothing():
    pool = hard_pool(SENTENCES, seed=0)
    n = len(SENTENCES)
    assert pool.texts[:n] == SENTENCES
    assert pool.kinds[:n] == [""] * n
    copies = pool.texts[n:]
    assert len(copies) == len(set(copies)) > n
    assert not set(copies) & set(SENTENCES)
    assert set(pool.kinds[n:]) == set(KINDS)
    assert pool == hard_pool(SENTENCES, seed=0) != hard_pool(SENTENCES, seed=1)


def test_a_copy_that_is_another_sentence_is_left_out():
    pool = hard_pool(["He is rich.", "He is not rich."])
    assert pool.texts.count("He is not rich.") == pool.texts.count("He is rich.") == 1


def test_errors_are_told_apart_by_hand():
    texts = ["a", "b", "c", "not a", "9 b"]
    pool = HardPool(texts, ["", "", "", "negation", "number"], [0, 1, 2, 0, 1])
    targets = np.eye(5, dtype=np.float32)
    queries = targets[[3, 4, 0]]  # a misled by its negation, b by its number, c finds a
    errors = xsimpp(queries, targets, pool)
    assert errors.margin_percent == errors.cosine_percent == 100
    assert errors.by_kind["negation"] == errors.by_kind["number"] == pytest.approx(100 / 3)
    assert errors.by_kind["antonym"] == errors.by_kind["entity"] == 0
    assert errors.other_percent == pytest.approx(100 / 3)
    assert errors.copies == 2
    swapped = xsimpp(targets[[4, 1, 2]], targets, pool)  # a finds the copy of b
    assert swapped.other_percent == pytest.approx(100 / 3)
    assert not any(swapped.by_kind.values())
    assert xsimpp(targets[:3], targets, pool).margin_percent == 0


def test_without_copies_it_is_xsim():
    x, y = two_sides(50, noise=1.2)
    texts = [str(i) for i in range(50)]
    plain, hard = xsim(x, y, texts, texts), xsimpp(x, y, HardPool(texts, [""] * 50, [*range(50)]))
    assert (hard.margin_percent, hard.cosine_percent) == (
        plain.margin_percent,
        plain.cosine_percent,
    )
    assert hard.other_percent == pytest.approx(hard.margin_percent)


def test_an_encoder_blind_to_what_was_changed_fails_where_xsim_does_not_see_it():
    rng = np.random.default_rng(0)
    pool = hard_pool(SENTENCES)
    n = len(SENTENCES)
    meaning = rng.standard_normal((n, 32))
    detail = rng.standard_normal((len(pool.texts), 32)) * (np.array(pool.kinds) != "")[:, None]
    seeing = unit(meaning[pool.origin] + detail)
    # Copies lie exactly where their sentences lie, but for noise on either side.
    blind = unit(meaning[pool.origin] + 0.01 * rng.standard_normal(detail.shape))
    queries = unit(meaning + 0.01 * rng.standard_normal((n, 32)))
    assert xsim(queries, blind[:n], SENTENCES, SENTENCES).margin_percent < 1
    assert xsimpp(queries, seeing, pool).margin_percent < 1
    errors = xsimpp(queries, blind, pool)
    assert errors.margin_percent > 40
    assert sum(errors.by_kind.values()) > 40 > 1 > errors.other_percent


def test_an_empty_pool_is_refused():
    nothing = np.empty((0, 4), np.float32)
    with pytest.raises(InputError, match="expected at least one query"):
        xsimpp(nothing, nothing, hard_pool([]))
