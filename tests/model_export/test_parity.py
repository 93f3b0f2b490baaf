"""The gate catches graphs that are wrong, and what it refuses is not written."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from mexma.encoder import OnnxEncoder
from mexma.errors import ParityError
from mexma.sample import Sentence
from mexma.text import TextTokenizer
from model_export import parity
from model_export.export import export
from tests.tiny import MAX_TOKENS, tiny_checkpoint, tiny_encoder, tiny_tokenizer_json
from training.encoder import Encoder


def changed_weight():
    encoder = copy.deepcopy(tiny_encoder())
    with torch.no_grad():
        encoder.layers[1].narrow.weight[:8] *= 1.5
    return encoder


def other_pooling():
    return tiny_encoder(pooling="first_token")


def shifted_positions():
    right = tiny_encoder()
    encoder = Encoder(replace(right.config, first_position=1))
    encoder.load_state_dict(right.state_dict())
    return encoder


def test_a_first_export_that_fails_leaves_nothing(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(ParityError):
        export(checkpoint, tmp_path / "new", sentences_per_language=1, traced=other_pooling())
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("wrong", [changed_weight, other_pooling, shifted_positions])
def test_a_wrong_graph_is_not_written(tmp_path, wrong):
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    out = tmp_path / "artifact"
    good = export(checkpoint, out, sentences_per_language=1)
    with pytest.raises(ParityError, match=r"cosine_min must be at least 0\.99999, found 0\."):
        export(checkpoint, out, sentences_per_language=1, traced=wrong())
    assert OnnxEncoder(out).fingerprint == good.manifest.fingerprint, "the old one still stands"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["artifact", "checkpoint"]


def test_another_tokenizer_is_noticed(artifacts, tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    lowered = tiny_tokenizer_json().replace(b'"NFKC"', b'"Lowercase"')
    with pytest.raises(ParityError, match=r"splits '.*' differently"):
        parity.measure(
            replace(checkpoint, tokenizer_json=lowered),
            OnnxEncoder(artifacts["fp32"].path),
            per_language=1,
        )


def test_each_bound_is_looked_at():
    report = {
        "cosine_min": 1.0, "cosine_low": 1.0, "cosine_mean": 1.0, "least_like": '"',
        "alone_cosine_min": 1.0, "retrieval_points_lost": 0.0,
    }  # fmt: skip
    bounds = parity.BOUNDS["fp32"]
    assert parity.check(report, bounds)["bounds"]["cosine"] == 0.99999
    bad = {
        "cosine_min": 0.9,
        "cosine_low": 0.9,
        "alone_cosine_min": float("nan"),
        "retrieval_points_lost": 3.0,
    }
    for name, value in bad.items():
        with pytest.raises(ParityError, match=f"{name} must be at .*, found {value}"):
            parity.check(report | {name: value}, bounds)


def test_of_two_hundred_one_may_differ_where_arithmetic_is_coarse():
    """A lone quotation mark failed the gate of sound int8 exports, when the sample had it."""
    cosines = np.full(400, 0.995, np.float32)
    cosines[[7, 300]] = 0.85, 0.9
    assert parity._low(cosines, 0.005) == pytest.approx(0.995)
    assert parity._low(cosines, 0.0) == pytest.approx(0.85)
    assert np.isnan(parity._low(np.append(cosines, np.nan), 0.005)), "an engine that gives NaN"
    cosines[8] = 0.9
    assert parity._low(cosines, 0.005) == pytest.approx(0.9)
    report = {
        "cosine_min": 0.85, "cosine_low": 0.995, "cosine_mean": 0.994, "least_like": '"',
        "alone_cosine_min": 1.0, "retrieval_points_lost": 0.0,
    }  # fmt: skip
    assert parity.check(report, parity.BOUNDS["int8"])
    for bad in ({"cosine_min": 0.79}, {"cosine_low": 0.979}):
        with pytest.raises(ParityError, match=r"the mean cosine is 0\.994, and least like .* '\"'"):
            parity.check(report | bad, parity.BOUNDS["int8"])


def test_every_precision_has_bounds_and_batches_must_not_matter():
    assert set(parity.BOUNDS) == {"fp32", "fp16", "int8", "compact"}
    assert all(bounds.alone >= 0.9999 for bounds in parity.BOUNDS.values())


def test_the_proof_set_has_all_languages_and_lengths():
    tokenizer = TextTokenizer(tiny_tokenizer_json(), max_tokens=MAX_TOKENS)
    proof = parity.proof_set(tokenizer, per_language=2)
    assert len({s.lang for s in proof.sentences}) == 42
    made = proof.sequences[len(proof.sentences) :]
    assert [len(ids) for ids in made] == parity.lengths_to_prove(MAX_TOKENS, 2)
    assert all(ids[0] == 0 and ids[-1] == 2 and 2 not in ids[:-1] for ids in made)


def test_lengths_go_from_one_content_token_to_the_limit():
    for limit in (3, 20, 64, 100, 512):
        lengths = parity.lengths_to_prove(limit, 2)
        assert lengths == sorted(set(lengths))
        assert (lengths[0], lengths[-1]) == (3, limit)
    assert {255, 256, 257, 511, 512} <= set(parity.lengths_to_prove(512, 2))


def test_retrieval_counts_both_directions():
    sentences = [Sentence(g, lang, "") for lang in ("en", "fi") for g in (0, 1)]
    right = np.eye(4, dtype=np.float32)[[0, 1, 0, 1]]
    wrong = np.eye(4, dtype=np.float32)[[0, 1, 0, 0]]  # both Finnish ones say group 0
    found, agreement = parity._retrieval(sentences, right, wrong)
    assert found == {"fi": {"to_en": (100.0, 50.0), "from_en": (100.0, 50.0)}}
    assert agreement == 0.5
