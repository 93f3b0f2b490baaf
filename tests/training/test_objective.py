"""Each loss beside the same thing written out with loops, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.objective import alignment, contrastive, koleo


def vectors(n: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(row: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(unit(a), unit(b), strict=True))


def plain_alignment(s: list[list[float]], t: list[list[float]]) -> float:
    squares = [(x - y) ** 2 for a, b in zip(s, t, strict=True) for x, y in zip(a, b, strict=True)]
    return sum(squares) / len(squares)


def plain_koleo(rows: list[list[float]], same: list[list[bool]]) -> float:
    logs = []
    for i, a in enumerate(rows):
        others = [j for j in range(len(rows)) if j != i and not same[i][j]]
        if others:
            distances = [math.dist(unit(a), unit(rows[j])) for j in others]
            logs.append(math.log(min(distances) + 1e-8))
    return -sum(logs) / max(1, len(logs))


def plain_contrastive(s, t, temperature: float, same: list[list[bool]]) -> float:
    def direction(queries, targets) -> float:
        total = 0.0
        for i, q in enumerate(queries):
            scores = {
                j: cosine(q, x) / temperature
                for j, x in enumerate(targets)
                if j == i or not same[i][j]
            }
            total += math.log(sum(math.exp(v) for v in scores.values())) - scores[i]
        return total / len(queries)

    return (direction(s, t) + direction(t, s)) / 2


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(2, 9), st.integers(0, 99), st.booleans())
def test_each_equals_a_plain_reference(n, dim, seed, with_duplicates):
    s, t = vectors(n, dim, seed), vectors(n, dim, seed + 1000)
    same = torch.eye(n, dtype=torch.bool)
    if with_duplicates and n > 2:
        same[0, 2] = same[2, 0] = True
    pairs, marks = (s.tolist(), t.tolist()), same.tolist()
    assert alignment(s, t).item() == pytest.approx(plain_alignment(*pairs), abs=1e-6)
    assert koleo(s, same).item() == pytest.approx(plain_koleo(pairs[0], marks), abs=1e-6)
    found = contrastive(s, t, temperature=0.3, same=same).item()
    assert found == pytest.approx(plain_contrastive(*pairs, 0.3, marks), abs=1e-6)


def test_gradients_are_those_of_finite_differences():
    s, t = vectors(5, 4, 1).requires_grad_(), vectors(5, 4, 2).requires_grad_()
    for loss in (
        alignment,
        lambda s, t: koleo(s) + koleo(t),
        lambda s, t: contrastive(s, t, temperature=0.3),
    ):
        assert torch.autograd.gradcheck(loss, (s, t), eps=1e-6, atol=1e-5)


def test_equal_texts_neither_repel_nor_explode():
    s = vectors(4, 8, 3)
    s[1] = s[0]
    same = torch.eye(4, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    s.requires_grad_()
    koleo(s, same).backward()
    assert s.grad.abs().max() < 10
    everything_same = torch.ones(4, 4, dtype=torch.bool)
    assert koleo(s, everything_same).item() == 0
    # Without the mark, the distance of 0 still gives a finite loss and gradient.
    again = s.detach().clone().requires_grad_()
    koleo(again).backward()
    assert again.grad.isfinite().all()


def test_they_are_computed_in_float32_under_autocast():
    s, t = vectors(6, 16, 4).float(), vectors(6, 16, 5).float()
    with torch.autocast("cpu", torch.bfloat16):
        low = koleo(s), contrastive(s, t, temperature=0.02), alignment(s, t)
    high = koleo(s), contrastive(s, t, temperature=0.02), alignment(s, t)
    assert all(
        a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(low, high, strict=True)
    )
