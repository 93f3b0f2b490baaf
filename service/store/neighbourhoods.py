"""Each row's nearest other rows, remembered across writes.

A row's 4 nearest others change in two ways only: a new row comes nearer, or one of the 4 goes.
So what is remembered of a row is its 4 nearest among the rows that were there, and how many rows
those were. Whoever asks later compares the row with those written since and no other, or, where
one of the 4 is gone, begins anew. Both give what a comparison with all rows gives, to the bit:
nothing is estimated, and a write has nothing to do. (With an approximate index the 4 are those it
found, and stay so until one goes; rows written since are compared exactly.)

Refuses to know: how neighbours are found (nearest.py), languages, margins.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.store.protocol import NEIGHBOURHOOD, Vectors

Index = NDArray[np.int64]
Mask = NDArray[np.bool_]

NONE = -1
"""In place of a neighbour where there are fewer than 4."""
BEHIND_ROWS = 16_384
"""What was remembered more rows ago is found anew: an old entry would make all others wait."""
GROWTH = 1.5


class Remembered(NamedTuple):
    """Of n rows: neighbours int64 `[n, 4]`, positions, nearest first. cosines: float32 `[n, 4]`.

    seen: int64 `[n]`, of so many first positions these are the nearest; 0 where nothing is known.
    exact: bool `[n]`, found by comparing all rows.
    """

    neighbours: Index
    cosines: Vectors
    seen: Index
    exact: Mask

    def at(self, chosen: Mask) -> Remembered:
        """Some of them; chosen: bool `[n]`."""
        return Remembered(
            self.neighbours[chosen], self.cosines[chosen], self.seen[chosen], self.exact[chosen]
        )

    def put(self, chosen: Mask, others: Remembered) -> None:
        """Replace some by others; chosen: bool `[n]`."""
        self.neighbours[chosen], self.cosines[chosen] = others.neighbours, others.cosines
        self.seen[chosen], self.exact[chosen] = others.seen, others.exact

    def means(self) -> Vectors:
        """Mean cosine of each row, float32 `[n]`, over as many as there are; NaN over none."""
        there = np.count_nonzero(self.neighbours != NONE, axis=1)
        means = np.full(len(there), np.nan, np.float32)
        for n in range(1, NEIGHBOURHOOD + 1):
            means[there == n] = self.cosines[there == n, :n].mean(axis=1)
        return means


class Neighbourhoods:
    """By position. Thread-safe; any state may ask and tell.

    An entry says at which state it was made (`Snapshot.number`). It serves that state and later
    ones: rows that an earlier one still sees may have been left out.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._neighbours = np.empty((0, NEIGHBOURHOOD), np.int32)
        self._cosines = np.empty((0, NEIGHBOURHOOD), np.float32)
        self._seen = np.empty(0, np.int32)
        self._made = np.empty(0, np.int64)
        self._exact = np.empty(0, np.bool_)

    def recall(self, positions: Index, alive: Mask, number: int, *, exact: bool) -> Remembered:
        """What is known of these rows in the state `number`, whose rows are `alive` (bool `[count]`).

        positions: int64 `[n]`. exact: only what was found by comparing all rows.
        """
        with self._lock:
            held = positions < len(self._seen)
            at = positions[held]
            neighbours = np.full((len(positions), NEIGHBOURHOOD), NONE, np.int64)
            cosines = np.full((len(positions), NEIGHBOURHOOD), -np.inf, np.float32)
            seen, exactly = np.zeros(len(positions), np.int64), np.zeros(len(positions), np.bool_)
            neighbours[held], cosines[held] = self._neighbours[at], self._cosines[at]
            usable = self._made[at] <= number
            exactly[held] = self._exact[at]
            if exact:
                usable &= exactly[held]
            seen[held] = np.where(usable, self._seen[at], 0)
        whole = np.ones(len(positions), np.bool_)
        known = seen > 0
        near = neighbours[known]
        whole[known] = (alive[near] | (near == NONE)).all(axis=1)
        seen[~whole] = 0
        return Remembered(neighbours, cosines, seen, exactly)

    def remember(self, positions: Index, found: Remembered, number: int) -> None:
        """Keep what the state `number` has found; what a later one told stays."""
        with self._lock:
            self._grow(int(positions.max(initial=-1)) + 1)
            new = (self._made[positions] <= number) | (self._seen[positions] == 0)
            at = positions[new]
            self._neighbours[at], self._cosines[at] = found.neighbours[new], found.cosines[new]
            self._seen[at], self._made[at], self._exact[at] = (
                found.seen[new],
                number,
                found.exact[new],
            )

    def _grow(self, rows: int) -> None:
        have = len(self._seen)
        if rows <= have:
            return
        more = max(1024, int(rows * GROWTH)) - have
        self._neighbours = np.concatenate(
            [self._neighbours, np.empty((more, NEIGHBOURHOOD), np.int32)]
        )
        self._cosines = np.concatenate([self._cosines, np.empty((more, NEIGHBOURHOOD), np.float32)])
        self._seen = np.concatenate([self._seen, np.zeros(more, np.int32)])
        self._made = np.concatenate([self._made, np.zeros(more, np.int64)])
        self._exact = np.concatenate([self._exact, np.zeros(more, np.bool_)])

    def compacted(self, alive: Mask) -> Neighbourhoods:
        """The same for the rows that are `alive` (bool `[count]`), numbered anew."""
        made = Neighbourhoods()
        places = np.concatenate([[0], np.cumsum(alive)])  # of each position, rows alive before it
        with self._lock:
            rows = min(len(self._seen), len(alive))
            kept = np.flatnonzero(alive[:rows])
            known = self._seen[kept] > 0
            near = np.where(known[:, None], self._neighbours[kept], NONE)
            there = near != NONE
            whole = known & alive[np.where(there, near, kept[:, None])].all(axis=1)
            made._grow(len(kept))
            n = len(kept)
            made._neighbours[:n] = np.where(there, places[np.where(there, near, 0)], NONE)
            made._cosines[:n] = self._cosines[kept]
            made._seen[:n] = np.where(whole, places[np.minimum(self._seen[kept], len(alive))], 0)
            made._made[:n], made._exact[:n] = self._made[kept], self._exact[kept]
        return made
