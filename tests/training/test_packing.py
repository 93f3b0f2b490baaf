"""Packed equals padded, alone equals together, and every attention backend equals the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mexma.text import TokenBatch
from tests.tiny import tiny_encoder
from training.packing import Packed, sentence_vectors, token_states

MANY = tuple(np.random.default_rng(7).integers(1, 40, 70).tolist())
"""So many, of so different lengths, that attention takes them in parts."""
HERE = ("plain", "padded", "nested", "auto")


def sequences(lengths=(5, 17, 3, 11)) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(4, 900, n) for n in lengths]


def run(encoder, batch, **options):
    """Sentence vectors and the gradient of their sum of squares in the first layer."""
    encoder.zero_grad()
    packed = Packed.of(batch)
    vectors = sentence_vectors(encoder, token_states(encoder, packed, **options), packed)
    vectors.square().sum().backward()
    return vectors.detach(), encoder.layers[0].query.weight.grad.clone()


@pytest.mark.parametrize("pooling", ["mean", "first_token"])
@pytest.mark.parametrize("lengths", [(5, 17, 3, 11), (6, 6, 6), (1,), MANY])
def test_backends_agree_with_the_padded_encoder(pooling, lengths):
    encoder = tiny_encoder(pooling=pooling).double()
    batch = sequences(lengths)
    padded = TokenBatch.pad(batch, pad_id=1)
    ids, mask = torch.from_numpy(padded.ids), torch.from_numpy(padded.mask)
    states = encoder.token_states(ids, mask)
    if pooling == "mean":
        expected = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    else:
        expected = states[:, 0]
    expected.float().square().sum().backward()
    gradient = encoder.layers[0].query.weight.grad.clone()
    for backend in HERE:
        vectors, found = run(encoder, batch, backend=backend)
        assert (vectors - expected.detach()).abs().max() < 1e-6, backend
        assert (found - gradient).abs().max() / gradient.abs().max().clamp_min(1e-9) < 1e-5, backend


@pytest.mark.parametrize("kind", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_backends_agree_in_bfloat16(kind):
    device = torch.device(kind)
    encoder = tiny_encoder().to(device)
    found = {}
    for backend in ("plain", "padded", *(["varlen"] if kind == "cuda" else [])):
        packed = Packed.of(sequences()).to(device)
        with torch.autocast(kind, torch.bfloat16):
            states = token_states(encoder, packed, backend=backend)
        found[backend] = sentence_vectors(encoder, states, packed)
    reference = found.pop("plain")
    for backend, vectors in found.items():
        assert torch.cosine_similarity(vectors, reference).min() > 0.999, backend


@pytest.mark.parametrize("lengths", [(5, 17, 3, 11), MANY])
def test_alone_equals_together(lengths):
    encoder = tiny_encoder().double()
    assert (len(Packed.of(sequences(lengths))._parts) > 1) == (lengths == MANY)
    together, _ = run(encoder, sequences(lengths))
    for i, sequence in enumerate(sequences(lengths)):
        assert (run(encoder, [sequence])[0][0] - together[i]).abs().max() < 1e-6


def test_recomputing_changes_nothing():
    encoder = tiny_encoder()
    for a, b in zip(
        run(encoder, sequences()), run(encoder, sequences(), recompute=True), strict=True
    ):
        assert torch.equal(a, b)
