"""Compare queries with every row that may be found: matrix products, and few comparisons.

The product of 64 queries with a tile of rows is what a processor does best; picking the best rows
of it is what takes the time. So the first tile gives each query a bar, and of the others only
what is above the bar is looked at: of the n-th tile about one n-th of what is wanted. FAISS's own
scan under a selector has no matrix product, and its OpenBLAS of 2021 takes newer processors for one
of 2004 (benchmarks/results/store_exact_*.md).

Refuses to know: which cosine counts. These are float32 sums in an order of the library's.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.store.index import Index, Mask, Snapshot
from service.store.protocol import Vectors

TILE_SCORES = 262_144
"""Scores of one product, so that they fit a core's cache: 64 queries with 4,096 rows. A tile does not
go beyond a block."""
MOST_ROWS = 16_384
"""Of a tile, with few queries, so that there are tiles for all threads."""
GATHER_SHARE = 0.25
"""Rows that may be found are copied together where they are a smaller share of a tile than this."""


class _Tile(NamedTuple):
    """rows: float32 `[n, dim]`, the first at position `start`. allowed: bool `[n]`, some of them."""

    rows: Vectors
    start: int
    allowed: Mask

    def gathered(self) -> tuple[Vectors, Index, Mask | None]:
        """Rows to compare, their positions, and which of them are allowed; None for all."""
        chosen = int(np.count_nonzero(self.allowed))
        if chosen < GATHER_SHARE * len(self.rows):
            places = np.flatnonzero(self.allowed)
            return self.rows[places], places + self.start, None
        positions = np.arange(self.start, self.start + len(self.rows))
        return self.rows, positions, None if chosen == len(self.rows) else self.allowed


def best(
    snapshot: Snapshot, queries: Vectors, fetch: int, mask: Mask, first: int = 0
) -> Iterator[tuple[Index, float]]:
    """Per query, positions int64 `[fetch]` of the best rows of `mask`, and the score of the last.

    queries: float32 `[n, dim]`. At least `fetch` rows must be in the mask, those at positions below
    `first` not counted: they are not looked at. No other row that is left out scores higher than the
    last, as scored here.
    """
    found = _Best(len(queries), fetch)
    most = max(1, min(MOST_ROWS, TILE_SCORES // len(queries)))
    tiles = list(_tiles(snapshot, mask, most, first))
    with snapshot.threads.take(max(1, len(queries), len(tiles) // 4)) as threads:
        waiting = iter(tiles)
        found.add(queries, next(waiting))

        def work() -> _Best:
            own = found.fork()
            for tile in waiting:
                own.add(queries, tile)
            return own

        for other in snapshot.threads.run(threads, work):
            found.merge(other)
    yield from found.results()


def _tiles(snapshot: Snapshot, mask: Mask, most: int, first: int) -> Iterator[_Tile]:
    """The rows of `mask` from `first` on, `most` at a time; tiles without any are passed over."""
    begin = 0  # of the block
    for block in snapshot.blocks:
        end = min(begin + len(block), len(mask))
        for start in range(max(begin, first), end, most):
            here = mask[start : min(start + most, end)]
            if here.any():
                yield _Tile(block[start - begin :][: len(here)], start, here)
        begin += len(block)


class _Best:
    """The best so far of `queries` queries, `fetch` of each."""

    def __init__(self, queries: int, fetch: int):
        self._fetch = fetch
        self._bar = np.full(queries, -np.inf, np.float32)
        self._parts: list[tuple[NDArray[np.int64], Index, Vectors]] = []
        self._held = 0

    def fork(self) -> _Best:
        """For another thread: nothing found yet, and the same bar."""
        own = _Best(len(self._bar), self._fetch)
        own._bar = self._bar.copy()
        return own

    def add(self, queries: Vectors, tile: _Tile) -> None:
        rows, positions, allowed = tile.gathered()
        scores = queries @ rows.T  # [n, rows]
        if allowed is not None:
            scores[:, ~allowed] = -np.inf
        if np.isneginf(self._bar).all():
            if scores.shape[1] > self._fetch:  # no bar yet: this tile's own
                self._bar = np.partition(scores, -self._fetch, axis=1)[:, -self._fetch]
            above = scores >= self._bar[:, None]
        else:
            above = scores > self._bar[:, None]
        if allowed is not None:
            above &= allowed
        query, place = np.nonzero(above)
        self._take(query, positions[place], scores[query, place])

    def _take(self, query: Index, positions: Index, scores: Vectors) -> None:
        self._parts.append((query, positions, scores))
        self._held += len(query)
        if self._held > 4 * self._fetch * len(self._bar):
            self._tidy()

    def merge(self, other: _Best) -> None:
        for part in other._parts:
            self._take(*part)

    def _tidy(self) -> None:
        """Keep the best of each query, and raise the bar to the last of them."""
        query, positions, scores = (np.concatenate(p) for p in zip(*self._parts, strict=True))
        order = np.lexsort((-scores, query))
        query, positions, scores = query[order], positions[order], scores[order]
        starts = np.searchsorted(query, np.arange(len(self._bar)))
        rank = np.arange(len(query)) - starts[query]
        kept = rank < self._fetch
        last = rank == self._fetch - 1
        self._bar[query[last]] = np.maximum(self._bar[query[last]], scores[last])
        self._parts = [(query[kept], positions[kept], scores[kept])]
        self._held = int(np.count_nonzero(kept))

    def results(self) -> Iterator[tuple[Index, float]]:
        self._tidy()
        [(query, positions, scores)] = self._parts
        ends = np.searchsorted(query, np.arange(len(self._bar) + 1))
        for start, end in pairwise(ends):
            yield positions[start:end], float(scores[end - 1])
