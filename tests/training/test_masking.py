"""Masks hang on seed, step, side and sample id, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from training.errors import RecipeError
from training.masking import Vocabulary, mask_tokens
from training.miniature import miniature

N, LENGTH = 400, 50


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    made = miniature("mean")
    return Vocabulary.of(made.tokenizer_json, made.encoder.config.vocabulary)


@pytest.fixture
def sequences(vocabulary) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    body = [rng.choice(vocabulary.ordinary, LENGTH) for _ in range(N)]
    return [np.concatenate([[0], b, [2]]) for b in body]


def mask(sequences, vocabulary, ids=None, *, seed=1, step=2, side="src", rate=0.4):
    ids = np.arange(len(sequences)) if ids is None else np.asarray(ids)
    return mask_tokens(sequences, ids, vocabulary, seed=seed, step=step, side=side, rate=rate)


def test_rates(sequences, vocabulary):
    masked, chosen = (np.concatenate(x) for x in mask(sequences, vocabulary))
    plain = np.concatenate(sequences)
    total = chosen.sum()
    assert total / (N * LENGTH) == pytest.approx(0.4, abs=0.015)
    became_mask = masked[chosen] == vocabulary.mask_id
    stayed = masked[chosen] == plain[chosen]
    assert became_mask.mean() == pytest.approx(0.8, abs=0.015)
    assert stayed.mean() == pytest.approx(0.1, abs=0.015)
    assert np.array_equal(masked[~chosen], plain[~chosen])
    assert not vocabulary.special[masked[chosen & (masked != vocabulary.mask_id)]].any()


def test_special_tokens_are_never_chosen(sequences, vocabulary):
    _, chosen = mask(sequences, vocabulary, rate=1.0)
    assert all(c[1:-1].all() and not c[0] and not c[-1] for c in chosen)


def test_a_batch_of_special_tokens_ends_and_chooses_nothing(vocabulary):
    masked, chosen = mask([np.array([0, 2]), np.array([0, 1, 1, 2])], vocabulary)
    assert not np.concatenate(chosen).any()
    assert masked[1].tolist() == [0, 1, 1, 2]


def test_a_sequence_with_ordinary_tokens_always_has_one_chosen(vocabulary):
    word = vocabulary.ordinary[5]
    _, chosen = mask([np.array([0, word, 2])] * 50, vocabulary, rate=0.0)
    assert all(c.tolist() == [False, True, False] for c in chosen)


def test_company_and_order_change_nothing(sequences, vocabulary):
    together, _ = mask(sequences, vocabulary)
    alone, _ = mask([sequences[7]], vocabulary, [7])
    assert np.array_equal(together[7], alone[0])
    backwards, _ = mask(sequences[::-1], vocabulary, np.arange(N)[::-1])
    assert np.array_equal(together[7], backwards[N - 1 - 7])


def test_everything_in_the_key_matters(sequences, vocabulary):
    base = np.concatenate(mask(sequences, vocabulary)[1])
    for other in ({"seed": 2}, {"step": 3}, {"side": "trg"}, {"ids": np.arange(N) + 1}):
        assert (base != np.concatenate(mask(sequences, vocabulary, **other)[1])).mean() > 0.3


def test_the_draws_are_those_of_every_machine_and_version():
    from training.chance import draw, permutation, uniform

    assert draw(1, 2, 3).item() == DRAWN
    assert uniform(7, np.arange(3)).round(12).tolist() == UNIFORM
    assert permutation(6, 9).tolist() == PERMUTED


def test_a_tokenizer_without_a_mask_token(sequences, vocabulary):
    bare = Vocabulary(vocabulary.special, vocabulary.ordinary, None)
    with pytest.raises(RecipeError, match="the tokenizer has none"):
        mask(sequences, bare)


DRAWN = 15020427595393229491
UNIFORM = [0.721508180605, 0.239284472857, 0.275982433327]
PERMUTED = [5, 1, 2, 3, 0, 4]
