"""The encoder: token ids in, one sentence vector out, as a plain torch module.

One architecture serves XLM-RoBERTa and BERT: learned absolute positions, post-norm layers,
exact gelu. They differ in where positions begin. On top sit what models of this family
publish: pooling (first token or mean), at most one dense layer with tanh, normalisation.

Refuses to know: files, tokenizers, losses, ONNX. Attention is handed in, so that training
can pass a padding-free one and the exporter a fused operator; nothing else changes.

Padding must be on the right: positions count from the left end of the row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Pooling = Literal["first_token", "mean"]

Attention = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""(query, key, value, mask, heads) -> mixed values.

query, key, value and the result: `[batch, length, hidden]`, heads side by side in `hidden`,
of the encoder's dtype. mask: int64 `[batch, length]`, 1 for a token, 0 for padding. What
comes back at padding is not defined, except that it is finite.
"""


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of an encoder.

    hidden, intermediate: widths. positions: rows of the position table, of which the first
    `first_position` are never used (XLM-R counts from pad_id + 1, BERT from 0). head: width
    of the dense layer with tanh after pooling, None for no such layer. dropout: of hidden
    states, in training; attention weights are never dropped (MEXMA's recipe has that off).
    """

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    positions: int
    first_position: int
    pad_id: int
    norm_eps: float
    dropout: float = 0.0
    pooling: Pooling = "first_token"
    head: int | None = None
    normalise: bool = True

    @property
    def dim(self) -> int:
        """Components of the sentence vector."""
        return self.head or self.hidden

    @property
    def max_tokens(self) -> int:
        """Longest sequence for which there are positions."""
        return self.positions - self.first_position


def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, heads: int) -> Tensor:
    """`Attention` by torch's scaled_dot_product_attention, for padded batches."""
    batch, length, hidden = query.shape
    q, k, v = (
        x.view(batch, length, heads, hidden // heads).transpose(1, 2) for x in (query, key, value)
    )  # each [batch, heads, length, hidden / heads]
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask.bool()[:, None, None])
    return mixed.transpose(1, 2).reshape(batch, length, hidden)


class Embeddings(nn.Module):
    """Token, position and (one constant) segment vectors, summed and normalised."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.words = nn.Embedding(config.vocabulary, config.hidden)
        self.positions = nn.Embedding(config.positions, config.hidden)
        # Only segment 0 occurs in a single text, so one row of the published table is kept.
        self.segment = nn.Parameter(torch.zeros(config.hidden))
        self.norm = nn.LayerNorm(config.hidden, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.first_position = config.first_position

    def forward(self, ids: Tensor, places: Tensor | None = None) -> Tensor:
        """ids int64 `[batch, length]` -> `[batch, length, hidden]`.

        places: int64 like ids, each token's place in its sequence from 0. Without it rows are
        sequences and columns are places.
        """
        first = self.first_position
        if places is None:
            position = self.positions.weight[first : first + ids.shape[1]]  # [length, hidden]
        else:
            position = self.positions(places + first)
        summed: Tensor = self.words(ids) + (position + self.segment)
        return self.dropout(self.norm(summed))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Self-attention and a two-layer perceptron, each added to its input, then normalised."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        hidden = config.hidden
        self.heads = config.heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.attention_out = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=config.norm_eps)
        self.widen = nn.Linear(hidden, config.intermediate)
        self.narrow = nn.Linear(config.intermediate, hidden)
        self.output_norm = nn.LayerNorm(hidden, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor, attention: Attention) -> Tensor:
        """x `[batch, length, hidden]`, mask int64 `[batch, length]` -> like x."""
        mixed = attention(self.query(x), self.key(x), self.value(x), mask, self.heads)
        x = self.attention_norm(x + self.dropout(self.attention_out(mixed)))
        wide = functional.gelu(self.widen(x))  # [batch, length, intermediate]
        return self.output_norm(x + self.dropout(self.narrow(wide)))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """`EncoderConfig` made into weights; see the module's text."""

    def __init__(self, config: EncoderConfig, attention: Attention = sdpa):
        super().__init__()
        self.config = config
        self.attention = attention
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.head = nn.Linear(config.hidden, config.head) if config.head else None

    def token_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Last hidden states `[batch, length, hidden]`, of the weights' dtype.

        ids, mask: int64 `[batch, length]`, padded on the right. States at padding are not
        meaningful.
        """
        x: Tensor = self.embeddings(ids)
        for layer in self.layers:
            x = layer(x, mask, self.attention)
        return x

    def sentence_vector(self, states: Tensor, mask: Tensor) -> Tensor:
        """Pool token states `[batch, length, hidden]` to float32 `[batch, dim]`.

        In float32 whatever the states are: a sum over 512 half-precision tokens and a
        squared norm are where half precision first shows.
        """
        if self.config.pooling == "first_token":
            pooled = states[:, 0].float()
        else:
            weight = mask.to(torch.float32)[:, :, None]  # [batch, length, 1]
            pooled = (states.float() * weight).sum(1) / weight.sum(1)
        return self.finished(pooled)

    def finished(self, pooled: Tensor) -> Tensor:
        """Pooled token states float32 `[batch, hidden]` to sentence vectors `[batch, dim]`."""
        if self.head is not None:
            pooled = torch.tanh(functional.linear(pooled, self.head.weight, self.head.bias))
        return functional.normalize(pooled, dim=-1) if self.config.normalise else pooled

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask int64 `[batch, length]` -> sentence vectors float32 `[batch, dim]`."""
        return self.sentence_vector(self.token_states(ids, mask), mask)
