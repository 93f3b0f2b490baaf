"""Which pairs make up step s, tokenized, masked and packed: a pure function of seed and step.

The stream of pairs is endless: epoch after epoch, each an order of its own. In an epoch each
language has its share of places (by the sampling temperature), and takes the next pairs from a
shuffled cycle through its own, so that all its pairs are seen before one is seen again.

The stream is cut into buckets of `bucket_batches` batches. Within a bucket pairs are sorted by
length and cut into batches, and the batches are shuffled. So batches hold texts of like length,
and to find any batch costs the tokenizing of one bucket at most. With `alike`, it is groups of pairs
that are sorted by length, and roughly, so that groups meet others. Rank r of w takes every w-th
pair of a batch: together the ranks always see what one rank would.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from mexma.errors import InputError
from mexma.text import TextTokenizer
from training.alike import Alike
from training.chance import number, permutation, uniform
from training.corpus import Corpus
from training.errors import DataError
from training.groups import near_groups
from training.masking import Vocabulary, mask_tokens
from training.model import PairBatch
from training.packing import Packed
from training.recipe import Recipe

Ids = NDArray[np.int64]

SWAY = 0.25
"""By this factor, about, groups of like length lie apart."""

CHARACTERS_PER_TOKEN = 64
"""Texts are cut to so many characters a token before they are tokenized: nobody waits for a
megabyte of which 200 tokens are kept."""


class Order:
    """The endless stream of pair numbers."""

    def __init__(self, corpus: Corpus, *, seed: int, temperature: float):
        self._seed = seed
        counts = np.bincount(corpus.languages, minlength=len(corpus.names))
        by_language = np.argsort(corpus.languages, kind="stable")
        self._members = np.split(by_language, np.cumsum(counts)[:-1])
        share = counts ** (1 / temperature)
        self.places = np.maximum(1, np.round(share / share.sum() * len(corpus))).astype(np.int64)
        self.places[counts == 0] = 0
        self.epoch_pairs = int(self.places.sum())
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def take(self, first: int, count: int) -> Ids:
        """Places `first` to `first + count` of the stream; int64 `[count]`."""
        parts = []
        while count > 0:
            epoch, offset = divmod(first, self.epoch_pairs)
            part = self._epoch(epoch)[offset : offset + count]
            parts.append(part)
            first, count = first + len(part), count - len(part)
        return np.concatenate(parts)

    def _make_epoch(self, epoch: int) -> Ids:
        taken = []
        for language, (members, places) in enumerate(zip(self._members, self.places, strict=True)):
            if places == 0:
                continue
            first, last = epoch * int(places), (epoch + 1) * int(places)
            rounds = range(first // len(members), (last - 1) // len(members) + 1)
            cycle = np.concatenate(
                [members[permutation(len(members), self._seed, language, r)] for r in rounds]
            )
            skip = first - rounds[0] * len(members)
            taken.append(cycle[skip : skip + int(places)])
        chosen = np.concatenate(taken)
        return chosen[permutation(len(chosen), self._seed, number("epoch"), epoch)]


@dataclass(frozen=True)
class Step:
    """What one optimiser step reads. batches: this rank's. chosen: masked tokens of texts and
    of translations, in all batches of all ranks. pairs: of all ranks."""

    batches: list[PairBatch]
    chosen: tuple[int, int]
    pairs: int


class Batches:
    """Steps of a run, for one rank."""

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: TextTokenizer,
        vocabulary: Vocabulary,
        recipe: Recipe,
        *,
        rank: int = 0,
        world: int = 1,
    ):
        """Raises DataError when batches cannot be divided among ranks. Where the recipe groups pairs,
        `alike` is to be set before a batch is asked for."""
        if recipe.batch_pairs % world:
            raise DataError(
                f"batch_pairs must be a multiple of the {world} ranks, got {recipe.batch_pairs}"
            )
        self._corpus, self._tokenizer, self._vocabulary = corpus, tokenizer, vocabulary
        self._recipe, self._rank, self._world = recipe, rank, world
        self.order = Order(corpus, seed=recipe.seed, temperature=recipe.language_temperature)
        pairs = recipe.pairs or round(recipe.epochs * self.order.epoch_pairs)
        self.count = max(1, pairs // recipe.batch_pairs)
        self.steps = -(-self.count // recipe.accumulate)
        self.unusable: set[int] = set()
        self.alike: Alike | None = None
        self._bucket = lru_cache(maxsize=3)(self._make_bucket)

    def read(self, first_step: int) -> Iterator[Step]:
        """Steps from `first_step` to the end; the next one is prepared while one is used."""
        with ThreadPoolExecutor(1, "batches") as thread:
            coming = thread.submit(self.step, first_step) if first_step < self.steps else None
            for step in range(first_step, self.steps):
                assert coming is not None  # noqa: S101
                made = coming.result()
                coming = thread.submit(self.step, step + 1) if step + 1 < self.steps else None
                yield made

    def step(self, step: int) -> Step:
        """All batches of one optimiser step; the last step may have fewer of them."""
        first = step * self._recipe.accumulate
        numbers = range(first, min(first + self._recipe.accumulate, self.count))
        made = [self._make_batch(n, step) for n in numbers]
        src, trg = (sum(counts[side] for _, counts in made) for side in (0, 1))
        return Step([b for b, _ in made], (src, trg), len(made) * self._recipe.batch_pairs)

    def sample_ids(self, batch: int) -> Ids:
        """Pair numbers of batch `batch` of the run, all ranks; int64 `[batch_pairs]`."""
        bucket, place = divmod(batch, self._recipe.bucket_batches)
        ids, _, _, cuts = self._bucket(bucket)
        return ids[cuts[place]]

    def _make_bucket(self, bucket: int) -> tuple[Ids, list[Ids], list[Ids], list[Ids]]:
        """Pair numbers, their tokens on both sides, and which of them each batch takes."""
        r = self._recipe
        size = r.batch_pairs * r.bucket_batches
        ids = self.order.take(bucket * size, size)
        sources, targets = self._corpus.pairs(ids)
        src, trg = self._tokens(sources), self._tokens(targets)
        whole = np.array([a is not None and b is not None for a, b in zip(src, trg, strict=True)])
        if not whole.all():
            # Nothing the tokenizer knows, in a text: its neighbour takes the place.
            self.unusable.update(ids[~whole].tolist())
            if not whole.any():
                raise DataError("no text in a whole bucket holds a token that the tokenizer knows")
            stand_in = np.flatnonzero(whole)[np.cumsum(whole).clip(1) - 1]
            ids = ids[stand_in]
            src, trg = [src[i] for i in stand_in], [trg[i] for i in stand_in]
        a, b = [x for x in src if x is not None], [x for x in trg if x is not None]
        length = np.array([len(x) + len(y) for x, y in zip(a, b, strict=True)])
        order = np.argsort(length, kind="stable")
        if r.alike:
            assert self.alike is not None, "groups must be found first"  # noqa: S101
            order = self._grouped(self.alike, ids, length, bucket)
        cuts = np.split(order, r.bucket_batches)
        shuffled = permutation(len(cuts), r.seed, number("bucket"), bucket)
        return ids, a, b, [cuts[i] for i in shuffled]

    def _grouped(self, alike: Alike, ids: Ids, length: Ids, bucket: int) -> Ids:
        """Places of a bucket's pairs, group after group; groups of like length are near, not in order."""
        key = self._recipe.seed, number("alike"), bucket
        groups = near_groups(alike.vectors_of(ids), self._recipe.alike, *key)
        means = np.array([length[group].mean() for group in groups])
        swaying = np.exp(SWAY * (2 * uniform(*key, np.arange(len(groups))) - 1))
        return np.concatenate([groups[i] for i in np.argsort(means * swaying, kind="stable")])

    @property
    def read_pairs(self) -> Ids:
        """The numbers of all pairs that the run reads."""
        buckets = -(-self.count // self._recipe.bucket_batches)
        return self.order.take(0, buckets * self._recipe.bucket_batches * self._recipe.batch_pairs)

    def _tokens(self, texts: list[str]) -> list[Ids | None]:
        limit = self._tokenizer.max_tokens * CHARACTERS_PER_TOKEN
        texts = [t[:limit] for t in texts]
        try:
            return [t.ids for t in self._tokenizer.encode(texts)]
        except InputError:
            if len(texts) == 1:
                return [None]
            middle = len(texts) // 2
            return self._tokens(texts[:middle]) + self._tokens(texts[middle:])

    def _make_batch(self, batch: int, step: int) -> tuple[PairBatch, tuple[int, int]]:
        """This rank's part of a batch, and the masked tokens on each side in all of it."""
        r = self._recipe
        bucket, place = divmod(batch, r.bucket_batches)
        ids, src, trg, cuts = self._bucket(bucket)
        rows = cuts[place]
        mine = slice(self._rank, None, self._world)
        sides = ([src[i] for i in rows], [trg[i] for i in rows])
        clean = Packed.of([*sides[0][mine], *sides[1][mine]])
        masked, chosen, truths = None, torch.zeros(0, dtype=torch.int64), torch.zeros(0).long()
        counts, chosen_src = (0, 0), 0
        if r.unmasking:
            made = [
                mask_tokens(
                    texts, ids[rows], self._vocabulary,
                    seed=r.seed, step=step, side=side, rate=r.mask_rate,
                )
                for texts, side in zip(sides, ("src", "trg"), strict=True)
            ]  # fmt: skip
            counts = tuple(sum(int(c.sum()) for c in chose) for _, chose in made)  # type: ignore[assignment]
            masked = Packed.of([*made[0][0][mine], *made[1][0][mine]])
            chose = [*made[0][1][mine], *made[1][1][mine]]
            chosen = torch.from_numpy(np.flatnonzero(np.concatenate(chose)))
            truths = clean.ids[chosen]
            chosen_src = sum(int(c.sum()) for c in made[0][1][mine])
        sources, targets = self._corpus.pairs(ids[rows][mine])
        keys = [[number(a), number(b)] for a, b in zip(sources, targets, strict=True)]
        made_batch = PairBatch(
            clean, masked, chosen, truths, chosen_src, torch.tensor(keys),
            ids[rows][mine].tolist(), step,
        )  # fmt: skip
        return made_batch, counts
