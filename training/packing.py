"""Sequences laid end to end, without padding, and attention that keeps them apart.

A batch of n sequences is one row of tokens; linear layers, norms and gelu, which are most of
the work, then run over tokens that exist. Only attention must know where sequences end. It
has several backends, which compute the same; `tests/training/test_packing.py` holds them to it:

    plain    scatter to a rectangle, two products and a softmax, gather; what CPUs train with
    padded   the same with torch's scaled_dot_product_attention, which keeps less in memory
    nested   that operator over a jagged nested tensor
    varlen   flash attention over cumulative lengths; CUDA with float16 or bfloat16 only

On a CPU the operator's backward pass is slow (torch 2.13, 128 sequences of 38 tokens, 12 heads
of 32, bfloat16, 2 cores: 115 ms forward and backward, 21 ms when written out), so "auto" writes
it out there where gradients are wanted. To be measured again with torch 2.14.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mexma.text import TokenBatch
from training.encoder import Attention, Encoder

PARTS, FEWEST, WASTE = 4, 16, 0.2
"""A rectangle of which more would be padding is made into so many, if each has enough sequences."""

Backend = Literal["auto", "plain", "padded", "nested", "varlen"]


@dataclass(frozen=True)
class Packed:
    """n sequences of together `tokens` tokens, end to end.

    ids, places, rows: int64 `[tokens]`: token id, position within its sequence from 0, number
    of its sequence. starts, lengths: int64 `[n]`. bounds: int32 `[n + 1]`, cumulative lengths.
    longest: tokens of the longest sequence.
    """

    ids: Tensor
    places: Tensor
    rows: Tensor
    starts: Tensor
    lengths: Tensor
    bounds: Tensor
    longest: int

    @classmethod
    def of(cls, sequences: Sequence[NDArray[np.int64]]) -> Packed:
        """Pack int64 `[length]` arrays, each of length >= 1."""
        batch = TokenBatch.pad(sequences, pad_id=0)
        return cls(
            ids=torch.from_numpy(batch.tokens),
            places=torch.from_numpy(batch.places),
            rows=torch.from_numpy(batch.rows),
            starts=torch.from_numpy(batch.bounds[:-1].astype(np.int64)),
            lengths=torch.from_numpy(batch.lengths.astype(np.int64)),
            bounds=torch.from_numpy(batch.bounds),
            longest=int(batch.lengths.max()),
        )

    def to(self, device: torch.device) -> Packed:
        """The same on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in moved.items():
            if isinstance(value, Tensor):
                moved[name] = value.to(device, non_blocking=True)
        return Packed(**moved)

    def attention(self, backend: Backend = "auto") -> Attention:
        """Attention within each sequence, as `Encoder` takes it; its mask is not looked at."""
        return {
            "auto": self._auto,
            "plain": self._plain,
            "padded": self._padded,
            "nested": self._nested,
            "varlen": self._varlen,
        }[backend]

    def _auto(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, heads: int) -> Tensor:
        if not query.is_cuda:
            chosen = self._plain if torch.is_grad_enabled() else self._padded
        else:
            flash = query.dtype in (torch.float16, torch.bfloat16)
            chosen = self._varlen if flash else self._padded
        return chosen(query, key, value, mask, heads)

    def _padded(self, query: Tensor, key: Tensor, value: Tensor, _: Tensor, heads: int) -> Tensor:
        q, k, v, mask = self._rectangle(query, key, value, heads)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self._gathered(mixed)

    def _plain(self, query: Tensor, key: Tensor, value: Tensor, _: Tensor, heads: int) -> Tensor:
        if len(self._parts) == 1:
            return self._written_out(query, key, value, heads)
        mixed = []
        for part, tokens in self._parts:
            q, k, v = (x.index_select(0, tokens) for x in (query, key, value))
            mixed.append(part._written_out(q, k, v, heads))
        return torch.cat(mixed).index_select(0, self._back)

    @cached_property
    def _parts(self) -> list[tuple[Packed, Tensor]]:
        """Sequences of like length together, each with the places of their tokens, int64; all in one
        where little would be padded."""
        n = len(self.lengths)
        if n < PARTS * FEWEST or len(self.ids) > (1 - WASTE) * n * self.longest:
            return [(self, torch.arange(len(self.ids)))]
        order = torch.argsort(self.lengths, stable=True)
        return [self._part(some) for some in order.chunk(PARTS)]

    def _part(self, sequences: Tensor) -> tuple[Packed, Tensor]:
        """These sequences alone, and the places of their tokens."""
        lengths = self.lengths[sequences]
        bounds = functional.pad(lengths.cumsum(0), (1, 0))
        rows = torch.repeat_interleave(lengths)
        places = torch.arange(len(rows), device=rows.device) - bounds[rows]
        tokens = self.starts[sequences][rows] + places
        part = Packed(
            self.ids[tokens], places, rows, bounds[:-1], lengths, bounds.to(torch.int32),
            int(lengths.max()),
        )  # fmt: skip
        return part, tokens

    @cached_property
    def _back(self) -> Tensor:
        """Where each token is among those of all parts; int64 `[tokens]`."""
        return torch.argsort(torch.cat([tokens for _, tokens in self._parts]))

    def _written_out(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        q, k, v, mask = self._rectangle(query, key, value, heads)
        score = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # [n, heads, longest, longest]
        if mask is not None:
            score = score.masked_fill(~mask, torch.finfo(score.dtype).min)
        precise = score if score.dtype == torch.float64 else score.float()
        return self._gathered(precise.softmax(-1).to(v.dtype) @ v)

    def _rectangle(
        self, query: Tensor, key: Tensor, value: Tensor, heads: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Three `[n, heads, longest, hidden / heads]`, and a mask `[n, 1, 1, longest]` if needed."""
        n, hidden = len(self.lengths), query.shape[-1]
        every = torch.cat([query, key, value], -1)  # [tokens, 3 * hidden]: one scatter, not three
        rectangle = every.new_zeros(n * self.longest, 3 * hidden)
        rectangle = rectangle.index_copy(0, self._cells(), every)
        q, k, v = rectangle.view(n, self.longest, 3, heads, hidden // heads).unbind(2)
        mask = None  # a batch of one length needs none, and is faster without
        if len(self.ids) < n * self.longest:
            columns = torch.arange(self.longest, device=query.device)
            mask = (columns < self.lengths[:, None])[:, None, None]
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask

    def _gathered(self, mixed: Tensor) -> Tensor:
        """Back from `[n, heads, longest, hidden / heads]` to `[tokens, hidden]`."""
        return mixed.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, self._cells())

    def _cells(self) -> Tensor:
        """Where each token lies in the rectangle; int64 `[tokens]`."""
        return self.rows * self.longest + self.places

    def _nested(self, query: Tensor, key: Tensor, value: Tensor, _: Tensor, heads: int) -> Tensor:
        hidden = query.shape[-1]
        q, k, v = (
            torch.nested.nested_tensor_from_jagged(
                x.view(-1, heads, hidden // heads), self.bounds.long(), max_seqlen=self.longest
            ).transpose(1, 2)
            for x in (query, key, value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return mixed.transpose(1, 2).values().reshape(-1, hidden)

    def _varlen(self, query: Tensor, key: Tensor, value: Tensor, _: Tensor, heads: int) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415  CUDA builds only

        q, k, v = (x.view(-1, heads, x.shape[-1] // heads) for x in (query, key, value))
        bounds, longest = self.bounds, self.longest
        mixed = varlen_attn(q, k, v, bounds, bounds, longest, longest)
        assert isinstance(mixed, Tensor)  # noqa: S101  a tuple only when asked for more
        return mixed.reshape(query.shape)


def token_states(
    encoder: Encoder, packed: Packed, *, backend: Backend = "auto", recompute: bool = False
) -> Tensor:
    """`Encoder.token_states` over a packed batch: `[tokens, hidden]`.

    recompute: keep only each layer's input and compute the rest again in the backward pass
    (gradient checkpointing): about a third slower, memory for one layer instead of all.
    """
    x = encoder.embeddings(packed.ids, packed.places)  # [tokens, hidden]
    return through_layers(encoder.layers, x, packed, backend=backend, recompute=recompute)


def through_layers(
    layers: torch.nn.ModuleList, x: Tensor, packed: Packed, *, backend: Backend, recompute: bool
) -> Tensor:
    """Run x `[tokens, hidden]` through encoder layers."""
    attention = packed.attention(backend)
    for layer in layers:
        if recompute and torch.is_grad_enabled():
            x = torch.utils.checkpoint.checkpoint(
                layer, x, packed.lengths, attention, use_reentrant=False
            )
        else:
            x = layer(x, packed.lengths, attention)
    return x


def sentence_vectors(encoder: Encoder, states: Tensor, packed: Packed) -> Tensor:
    """Pool `[tokens, hidden]` to float32 `[n, hidden]`; not normalised, whatever the config says.

    The objective works on vectors whose length is their own (arXiv 2409.12737, section 3).
    """
    if encoder.config.pooling == "first_token":
        return states.index_select(0, packed.starts).float()
    summed = states.new_zeros(len(packed.lengths), states.shape[-1], dtype=torch.float32)
    return summed.index_add(0, packed.rows, states.float()) / packed.lengths[:, None]
