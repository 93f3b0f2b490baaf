"""One bucket of a run's pairs: tokenized, and cut into batches of like length or of like meaning.

Refuses to know where pairs come from and who asks. That is a thread of the trainer or a process of
its own (`training.workers`), which starts in a moment because nothing here knows torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mexma.errors import InputError
from mexma.text import TextTokenizer
from training.chance import number, permutation, uniform
from training.errors import DataError
from training.groups import near_groups

Ids = NDArray[np.int64]

SWAY = 0.25
"""By this factor, about, groups of like length lie apart."""

CHARACTERS_PER_TOKEN = 64
"""Texts are cut to so many characters a token before they are tokenized: nobody waits for a
megabyte of which 200 tokens are kept."""


@dataclass(frozen=True)
class Layout:
    """What a recipe says of all its buckets. batches: how many are cut from one. alike: pairs of a
    group; 0: none."""

    seed: int
    batches: int
    alike: int


@dataclass(frozen=True, eq=False)
class Pairs:
    """What a bucket is made of. bucket: its number. ids: int64 `[n]`, pair numbers. sources, targets:
    their texts. near: int8 `[n, dim]`, by which they are grouped; None where they are not."""

    bucket: int
    ids: Ids
    sources: list[str]
    targets: list[str]
    near: NDArray[np.int8] | None


class Sequences:
    """n token sequences, end to end: a tenth of what as many arrays would take to send."""

    def __init__(self, sequences: Sequence[Ids]):
        self._tokens = np.concatenate(sequences)
        self._bounds = np.concatenate([[0], np.cumsum([len(s) for s in sequences])])

    def __getitem__(self, place: int) -> Ids:
        """int64 `[length]`."""
        return self._tokens[self._bounds[place] : self._bounds[place + 1]]

    @property
    def lengths(self) -> Ids:
        """int64 `[n]`."""
        return np.diff(self._bounds)


@dataclass(frozen=True, eq=False)
class Bucket:
    """ids: int64 `[n]`, pair numbers. src, trg: their tokens. cuts: of each batch, which places it
    takes. unusable: pair numbers whose neighbours took their places."""

    ids: Ids
    src: Sequences
    trg: Sequences
    cuts: list[Ids]
    unusable: list[int]


def make_bucket(tokenizer: TextTokenizer, layout: Layout, pairs: Pairs) -> Bucket:
    """A pure function. Raises DataError where no pair holds a token that the tokenizer knows."""
    ids, unusable = pairs.ids, []
    src, trg = _tokens(tokenizer, pairs.sources), _tokens(tokenizer, pairs.targets)
    near = pairs.near
    whole = np.array([a is not None and b is not None for a, b in zip(src, trg, strict=True)])
    if not whole.all():
        # Nothing the tokenizer knows, in a text: its neighbour takes the place.
        unusable = ids[~whole].tolist()
        if not whole.any():
            raise DataError("no text in a whole bucket holds a token that the tokenizer knows")
        stand_in = np.flatnonzero(whole)[np.cumsum(whole).clip(1) - 1]
        ids, near = ids[stand_in], None if near is None else near[stand_in]
        src, trg = [src[i] for i in stand_in], [trg[i] for i in stand_in]
    a = Sequences([x for x in src if x is not None])
    b = Sequences([x for x in trg if x is not None])
    length = a.lengths + b.lengths
    order = np.argsort(length, kind="stable")
    if near is not None:
        order = _grouped(near, length, layout, pairs.bucket)
    cuts = np.split(order, layout.batches)
    shuffled = permutation(len(cuts), layout.seed, number("bucket"), pairs.bucket)
    return Bucket(ids, a, b, [cuts[i] for i in shuffled], unusable)


def _grouped(near: NDArray[np.int8], length: Ids, layout: Layout, bucket: int) -> Ids:
    """Places of a bucket's pairs, group after group; groups of like length are near, not in order."""
    key = layout.seed, number("alike"), bucket
    groups = near_groups(near, layout.alike, *key)
    means = np.array([length[group].mean() for group in groups])
    swaying = np.exp(SWAY * (2 * uniform(*key, np.arange(len(groups))) - 1))
    return np.concatenate([groups[i] for i in np.argsort(means * swaying, kind="stable")])


def _tokens(tokenizer: TextTokenizer, texts: list[str]) -> list[Ids | None]:
    limit = tokenizer.max_tokens * CHARACTERS_PER_TOKEN
    texts = [t[:limit] for t in texts]
    try:
        return [t.ids for t in tokenizer.encode(texts)]
    except InputError:
        if len(texts) == 1:
            return [None]
        middle = len(texts) // 2
        return _tokens(tokenizer, texts[:middle]) + _tokens(tokenizer, texts[middle:])
