"""Cross-entropy over a vocabulary of 250,000 without ever holding all logits.

logits = states @ table.T + bias, for a few thousand masked positions, would be gigabytes. Here
they are made for a chunk of positions at a time, turned into loss and gradients at once, and
forgotten (the gradient of a sum of losses needs nothing from later chunks).

torch.nn.functional.linear_cross_entropy (torch 2.13) does the same, and tests hold the two
equal in float32. It is not used because its loss comes out in the inputs' precision (bfloat16:
12.875 for 12.952) and its own choice of chunk was 15 times slower on a CPU. To be looked at
again with torch 2.14.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.chance import draw, number

CHUNK_BYTES = 64 * 2**20
"""Size of one chunk's float32 logits. Three such buffers are alive at once."""


def chunked_cross_entropy(
    states: Tensor,
    table: Tensor,
    bias: Tensor,
    targets: Tensor,
    *,
    dtype: torch.dtype | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Sum over positions of -log softmax(states @ table.T + bias)[target]; a scalar.

    states: `[n, dim]`; table: `[vocabulary, dim]`; bias: `[vocabulary]`; targets: int64 `[n]`.
    n may be 0. dtype: of the matrix products; logits, softmax and loss are float32 (float64 for
    float64 states). Gradients reach states, table and bias, each only where it is required.
    """
    rows = max(1, chunk_bytes // (4 * len(table)))
    loss: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        states, table, bias, targets, dtype, rows
    )
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917  positional is how autograd calls it
        ctx: Any,
        states: Tensor,
        table: Tensor,
        bias: Tensor,
        targets: Tensor,
        dtype: torch.dtype | None,
        rows: int,
    ) -> Tensor:
        precise = torch.float64 if states.dtype == torch.float64 else torch.float32
        low = dtype or precise
        for_states, for_table, for_bias = ctx.needs_input_grad[:3]
        with torch.autocast(states.device.type, enabled=False):
            x_all, weight = states.detach().to(low), table.detach().to(low)
            offset = bias.detach().to(precise)
            loss = torch.zeros((), dtype=precise, device=states.device)
            d_states = torch.empty_like(states) if for_states else None
            d_table = torch.zeros_like(table) if for_table else None
            d_bias = torch.zeros_like(bias) if for_bias else None
            for first in range(0, len(states), rows):
                x, target = x_all[first : first + rows], targets[first : first + rows, None]
                logits = (x @ weight.T).to(precise).add_(offset)  # [rows, vocabulary]
                total = logits.logsumexp(1, keepdim=True)
                loss += (total - logits.gather(1, target)).sum()
                if not any(ctx.needs_input_grad[:3]):
                    continue
                d_logits = logits.sub_(total).exp_()
                d_logits.scatter_add_(1, target, -torch.ones_like(total))
                if d_bias is not None:
                    d_bias += d_logits.sum(0)
                d_low = d_logits.to(low)
                if d_states is not None:
                    d_states[first : first + rows] = d_low @ weight
                if d_table is not None:
                    d_table += d_low.T @ x
        ctx.gradients = d_states, d_table, d_bias
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = [
            g if g is None else g.mul_(outer[0].to(g.dtype)) for g in ctx.gradients
        ]
        ctx.gradients = None, None, None  # used up: a second backward would scale them again
        return (*found, None, None, None)


def sample_vocabulary(present: Tensor, size: int, extra: int, *, seed: int, step: int) -> Tensor:
    """The batch's own tokens and `extra` random ones; sorted int64 `[k]`, without repeats.

    Scoring against these instead of all `size` is about 30 times cheaper and biased: the loss
    is a lower bound of the exact one. present: int64, any shape, which holds every target.
    """
    ids = draw(seed, step, number("vocabulary"), np.arange(extra)) % np.uint64(size)
    drawn = torch.from_numpy(ids.astype("int64")).to(present.device)
    found: Tensor = torch.unique(torch.cat([present.flatten(), drawn]))
    return found


def sampled_cross_entropy(
    states: Tensor,
    table: Tensor,
    bias: Tensor,
    targets: Tensor,
    candidates: Tensor,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`chunked_cross_entropy` against the rows `candidates` only; sorted, and holding every target."""
    places = torch.searchsorted(candidates, targets)
    return chunked_cross_entropy(
        states, table.index_select(0, candidates), bias.index_select(0, candidates), places,
        dtype=dtype,
    )  # fmt: skip
