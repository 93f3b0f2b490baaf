"""Which pairs make up step s, tokenized, masked and packed: a pure function of seed and step.

The stream of pairs is endless: epoch after epoch, each an order of its own. In an epoch each
language has its share of places (by the sampling temperature), and takes the next pairs from a
shuffled cycle through its own, so that all its pairs are seen before one is seen again.

The stream is cut into buckets of `bucket_batches` batches. Within a bucket pairs are sorted by
length and cut into batches, and the batches are shuffled. So batches hold texts of like length,
and to find any batch costs the tokenizing of one bucket at most. With `alike`, it is groups of pairs
that are sorted by length, and roughly, so that groups meet others. Rank r of w takes every w-th
pair of a batch: together the ranks always see what one rank would.

Who makes a bucket (`training.buckets`) makes no difference: a thread, or processes that make some
ahead (`training.workers`).
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from mexma.text import TextTokenizer
from training.alike import Alike
from training.buckets import Bucket, Layout, Pairs, make_bucket
from training.chance import number, permutation
from training.corpus import Corpus
from training.errors import DataError, WorkerLost
from training.masking import Vocabulary, mask_tokens
from training.model import PairBatch
from training.packing import Packed
from training.recipe import Recipe
from training.workers import Workers

Ids = NDArray[np.int64]


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
        self._layout = Layout(recipe.seed, recipe.bucket_batches, recipe.alike)
        self._workers: Workers | None = None
        self.lost: WorkerLost | None = None
        self._bucket = lru_cache(maxsize=3)(self._make_bucket)

    def read(self, first_step: int, workers: int = 0) -> Generator[Step]:
        """Steps from `first_step` to the end; the next one is prepared while one is used.

        workers: processes that make buckets ahead; 0: the thread that prepares steps makes them. Close
        what is returned to end them before the last step. What one of them should have made when it was
        lost is made here, and `lost` says so.
        """
        with ExitStack() as held:
            thread = held.enter_context(ThreadPoolExecutor(1, "batches"))
            left = (
                self.buckets - first_step * self._recipe.accumulate // self._recipe.bucket_batches
            )
            if workers := min(workers, left):
                self._workers = held.enter_context(
                    Workers(workers, self._tokenizer, self._layout, self._pairs, self.buckets)
                )
                held.callback(setattr, self, "_workers", None)
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
        which, place = divmod(batch, self._recipe.bucket_batches)
        bucket = self._bucket(which)
        return bucket.ids[bucket.cuts[place]]

    def _make_bucket(self, bucket: int) -> Bucket:
        made = None
        if workers := self._workers:
            try:
                made = workers.bucket(bucket)
            except WorkerLost as error:
                self.lost = self.lost or error
        if made is None:
            made = make_bucket(self._tokenizer, self._layout, self._pairs(bucket))
        self.unusable.update(made.unusable)
        return made

    def _pairs(self, bucket: int) -> Pairs:
        """What a bucket is made of."""
        size = self._recipe.batch_pairs * self._recipe.bucket_batches
        ids = self.order.take(bucket * size, size)
        near = None
        if self._recipe.alike:
            assert self.alike is not None, "groups must be found first"  # noqa: S101
            near = self.alike.vectors_of(ids)
        return Pairs(bucket, ids, *self._corpus.pairs(ids), near)

    @property
    def buckets(self) -> int:
        """How many the run reads."""
        return -(-self.count // self._recipe.bucket_batches)

    @property
    def read_pairs(self) -> Ids:
        """The numbers of all pairs that the run reads."""
        size = self._recipe.bucket_batches * self._recipe.batch_pairs
        return self.order.take(0, self.buckets * size)

    def _make_batch(self, batch: int, step: int) -> tuple[PairBatch, tuple[int, int]]:
        """This rank's part of a batch, and the masked tokens on each side in all of it."""
        r = self._recipe
        which, place = divmod(batch, r.bucket_batches)
        bucket = self._bucket(which)
        ids, rows = bucket.ids, bucket.cuts[place]
        mine = slice(self._rank, None, self._world)
        sides = ([bucket.src[i] for i in rows], [bucket.trg[i] for i in rows])
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
