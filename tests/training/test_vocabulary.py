"""The chunked cross-entropy is the plain one, in value and gradients, and in memory a part of it."""

from __future__ import annotations

import torch
from torch.nn import LinearCrossEntropyOptions, functional

from training.vocabulary import chunked_cross_entropy, sample_vocabulary, sampled_cross_entropy


def inputs(n=37, dim=12, vocabulary=101, dtype=torch.float64):
    g = torch.Generator().manual_seed(7)
    states = torch.randn(n, dim, generator=g, dtype=dtype).requires_grad_()
    table = torch.randn(vocabulary, dim, generator=g, dtype=dtype).requires_grad_()
    bias = torch.randn(vocabulary, generator=g, dtype=dtype).requires_grad_()
    targets = torch.randint(vocabulary, (n,), generator=g)
    return states, table, bias, targets


def gradients(loss, *leaves):
    return [loss.detach(), *torch.autograd.grad(loss * 3, leaves)]


def plain(states, table, bias, targets):
    return functional.cross_entropy(states @ table.T + bias, targets, reduction="sum")


def test_equal_to_the_plain_one_in_float64():
    states, table, bias, targets = inputs()
    expected = gradients(plain(states, table, bias, targets), states, table, bias)
    for rows in (1, 5, 36, 37, 1000):
        loss = chunked_cross_entropy(states, table, bias, targets, chunk_bytes=rows * 4 * 101)
        found = gradients(loss, states, table, bias)
        assert all((a - b).abs().max() < 1e-9 for a, b in zip(expected, found, strict=True)), rows


def test_equal_to_torch_s_own_in_float32():
    states, table, bias, targets = inputs(dtype=torch.float32)
    theirs = functional.linear_cross_entropy(
        states, table, targets, linear_bias=bias, reduction="sum",
        options=LinearCrossEntropyOptions(batch_chunk_size=8),
    )  # fmt: skip
    expected = gradients(theirs, states, table, bias)
    ours = chunked_cross_entropy(states, table, bias, targets, chunk_bytes=8 * 4 * 101)
    found = gradients(ours, states, table, bias)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_bfloat16_products_leave_the_loss_accurate():
    states, table, bias, targets = inputs(dtype=torch.float32)
    exact = plain(states, table, bias, targets)
    low = chunked_cross_entropy(states, table, bias, targets, dtype=torch.bfloat16)
    assert low.dtype == torch.float32
    assert abs(low - exact) / exact < 5e-3


def test_no_gradient_is_computed_for_what_is_frozen():
    states, table, bias, targets = inputs()
    loss = chunked_cross_entropy(states, table.detach(), bias, targets)
    loss.backward()
    assert table.grad is None
    assert states.grad is not None
    assert bias.grad is not None


def test_nothing_masked_is_a_loss_of_zero_that_still_has_a_graph():
    states, table, bias, targets = inputs()
    loss = chunked_cross_entropy(states[:0], table, bias, targets[:0])
    loss.backward()
    assert loss.item() == 0
    assert table.grad.abs().max() == 0


def test_sampled_from_everything_is_exact():
    states, table, bias, targets = inputs()
    everything = torch.arange(len(table))
    expected = gradients(plain(states, table, bias, targets), states, table, bias)
    sampled = sampled_cross_entropy(states, table, bias, targets, everything)
    found = gradients(sampled, states, table, bias)
    assert all((a - b).abs().max() < 1e-9 for a, b in zip(expected, found, strict=True))


def test_sampled_from_less_is_less_and_holds_every_target():
    states, table, bias, targets = inputs()
    rows = sample_vocabulary(targets, len(table), 10, seed=1, step=2)
    assert torch.isin(targets, rows).all()
    assert torch.equal(rows, rows.unique())
    assert torch.equal(rows, sample_vocabulary(targets, len(table), 10, seed=1, step=2))
    assert not torch.equal(rows, sample_vocabulary(targets, len(table), 10, seed=1, step=3))
    sampled = sampled_cross_entropy(states, table, bias, targets, rows)
    assert 0 < sampled < plain(states, table, bias, targets)
