"""The derived half of a collection: vectors in memory, searched exactly with FAISS.

    Snapshot    one immutable state: rows, their languages, which are alive. Searching it needs
                no lock. `changed` makes the next state and shares the rows already there.

Refuses to know: SQLite, texts, ids of callers, margins. Rows are named by position; positions
ascend with rid, the number the database gives to each written row and never again.

Rows lie in blocks of fixed size that are only ever appended to, beyond what any snapshot in use
can see; a delete is a bit in `alive`. So a reader is never disturbed, nothing is copied as a
collection grows, and FAISS (which forbids adding to an index while it is searched) scans blocks
that do not move. An approximate index is later one more kind of source for candidates: whatever
proposes them, `nearest` decides by cosines computed one way, so results do not depend on batch
size, block, or index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from service.store.columns import Columns
from service.store.filters import Filter
from service.store.protocol import NEIGHBOURHOOD, Vectors, primary
from service.store.threads import ThreadBudget

Index = NDArray[np.int64]
Mask = NDArray[np.bool_]

BLOCK_ROWS = 16_384
COMPACT_ABOVE_DEAD = 4_096
"""Dead rows below this are never worth a copy; above it, compaction starts when half are dead."""
SLACK = 8
"""Candidates fetched beyond k, so that near-ties at the border rarely need a second scan."""
GATHER_ROWS = 4_096
SCAN_QUERIES = 64
"""Queries in one scan: FAISS gains nothing from more, and other searches' threads wait for it."""


class Found(NamedTuple):
    """positions: int64 `[m]`. cosines: float32 `[m]`, best first. compared: rows looked at."""

    positions: Index
    cosines: Vectors
    compared: int


@dataclass(frozen=True, eq=False)
class Snapshot:
    """blocks: float32 `[BLOCK_ROWS, dim]` each, rows of length 1. rids: int64 `[count]`, ascending.

    codes: int32 `[count]`, places in `tags`. alive: bool `[count]`. counts: int64 `[len(tags)]`,
    rows alive of each tag. columns: the rows' metadata.
    """

    dim: int
    threads: ThreadBudget
    blocks: tuple[Vectors, ...] = ()
    rids: Index = field(default_factory=lambda: np.empty(0, np.int64))
    codes: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    alive: Mask = field(default_factory=lambda: np.empty(0, np.bool_))
    tags: tuple[str, ...] = ()
    counts: Index = field(default_factory=lambda: np.empty(0, np.int64))
    columns: Columns = field(default_factory=Columns)
    _neighbourhoods: dict[int, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.counts.sum())

    def languages(self) -> dict[str, int]:
        """Stored tag -> documents alive, by tag."""
        return {t: int(n) for t, n in sorted(zip(self.tags, self.counts, strict=True)) if n}

    def where(self, wanted: Callable[[str], bool], condition: Filter | None = None) -> Mask:
        """Bool `[count]`: alive rows whose tag is wanted and whose metadata meets the condition."""
        chosen = np.array([wanted(tag) for tag in self.tags], np.bool_)
        mask = self.alive if chosen.all() else self.alive & chosen[self.codes]
        return mask if condition is None else mask & self.columns.where(condition, len(mask))

    def primaries(self, mask: Mask) -> list[str]:
        """The primary subtags among the rows of `mask`, sorted."""
        present = np.unique(self.codes[mask])
        return sorted({primary(self.tags[code]) for code in present})

    def changed(
        self,
        dead: Index,
        rids: Index,
        tags: Sequence[str],
        vectors: Vectors,
        metadata: Sequence[dict[str, Any]],
    ) -> Snapshot:
        """The next state: without the rows of rid `dead`, and with new rows at the end.

        rids: int64 `[n]`, ascending and above all there are. vectors: float32 `[n, dim]` of
        length 1. Only the newest state may be changed, by one thread; a state that was made
        and not used leaves no trace.
        """
        alive, gone = self.alive.copy(), np.searchsorted(self.rids, dead)
        alive[gone] = False
        n_dead = len(alive) - int(np.count_nonzero(alive))
        if n_dead > COMPACT_ABOVE_DEAD and 2 * n_dead > len(alive):
            kept = self._compacted(alive)
            return kept.changed(np.empty(0, np.int64), rids, tags, vectors, metadata)
        codes = {tag: code for code, tag in enumerate(self.tags)}
        new_codes = np.array([codes.setdefault(tag, len(codes)) for tag in tags], np.int32)
        counts = np.bincount(new_codes, minlength=len(codes))
        counts[: len(self.tags)] += self.counts
        counts -= np.bincount(self.codes[gone], minlength=len(codes))
        self.columns.append(len(self.rids), metadata)
        return Snapshot(
            self.dim,
            self.threads,
            self._appended(vectors),
            _grown(self.rids, rids),
            _grown(self.codes, new_codes),
            np.concatenate([alive, np.ones(len(rids), np.bool_)]),
            tuple(codes),
            counts,
            self.columns,
        )

    def _appended(self, vectors: Vectors) -> tuple[Vectors, ...]:
        blocks, count, done = list(self.blocks), len(self.rids), 0
        while done < len(vectors):
            block, row = divmod(count + done, BLOCK_ROWS)
            if block == len(blocks):
                # Memory is taken page by page as rows are written, not here.
                blocks.append(np.empty((BLOCK_ROWS, self.dim), np.float32))
            part = vectors[done : done + BLOCK_ROWS - row]
            blocks[block][row : row + len(part)] = part
            done += len(part)
        return tuple(blocks)

    def _compacted(self, alive: Mask) -> Snapshot:
        """The rows that are `alive`, moved together into blocks of their own."""
        state = Snapshot(self.dim, self.threads)
        kept, blocks = np.flatnonzero(alive), state.blocks
        for part in np.split(kept, range(BLOCK_ROWS, len(kept), BLOCK_ROWS)):
            block = np.empty((BLOCK_ROWS, self.dim), np.float32)
            block[: len(part)] = self.vectors(part)
            blocks = (*blocks, block)
        codes = self.codes[kept]
        return Snapshot(
            self.dim,
            self.threads,
            blocks,
            self.rids[kept],
            codes,
            np.ones(len(kept), np.bool_),
            self.tags,
            np.bincount(codes, minlength=len(self.tags)),
            self.columns.compacted(alive),
        )

    def vectors(self, positions: Index) -> Vectors:
        """float32 `[len(positions), dim]`, copied."""
        out = np.empty((len(positions), self.dim), np.float32)
        block, row = np.divmod(positions, BLOCK_ROWS)
        for b in np.unique(block):
            here = block == b
            out[here] = self.blocks[b][row[here]]
        return out

    def nearest(self, queries: Vectors, k: int, mask: Mask) -> list[Found]:
        """For each query the k rows of `mask` with the highest cosine; equal ones by position.

        queries: float32 `[n, dim]` of length 1. Returns n times what was found, k rows or all
        of the mask.
        """
        parts = (queries[n : n + SCAN_QUERIES] for n in range(0, len(queries), SCAN_QUERIES))
        compared = int(np.count_nonzero(mask))
        return [Found(*found, compared) for part in parts for found in self._nearest(part, k, mask)]

    def _nearest(self, queries: Vectors, k: int, mask: Mask) -> list[tuple[Index, Vectors]]:
        available = int(np.count_nonzero(mask))
        k = min(k, available)
        results: list[tuple[Index, Vectors]] = [(np.empty(0, np.int64), np.empty(0, np.float32))]
        results *= len(queries)
        pending, fetch = (np.arange(len(queries)) if k else np.empty(0, np.int64)), k + SLACK
        while len(pending):
            if fetch >= available:
                everything = np.flatnonzero(mask)
                for q in pending:
                    results[q] = self._best(queries[q], everything, k)
                break
            unsure = []
            for q, (positions, floor) in zip(
                pending, self._candidates(queries[pending], fetch, mask), strict=True
            ):
                results[q] = self._best(queries[q], positions, k)
                # FAISS adds in float32, in an order of its own: two unit vectors' product may be
                # off by dim * 2^-24. Only below that is a row not fetched certainly not better.
                if results[q][1][-1] <= floor + 2 * self.dim * 2.0**-24:
                    unsure.append(q)
            pending, fetch = np.array(unsure, np.int64), fetch * 4
        return results

    def _candidates(
        self, queries: Vectors, fetch: int, mask: Mask
    ) -> Iterator[tuple[Index, float]]:
        """Per query the `fetch` best rows as FAISS sees them, and its score of the last."""
        scores, positions = [], []
        n = len(queries)
        # The stub of these two describes the C++ side, not what Python passes.
        pointer: Any = faiss.swig_ptr
        selector: Any = faiss.IDSelectorBitmap
        queries = np.ascontiguousarray(queries)
        with self.threads.take(n):
            for b, block in enumerate(self.blocks):
                here = mask[b * BLOCK_ROWS : (b + 1) * BLOCK_ROWS]
                if not (k := min(fetch, int(here.sum()))):
                    continue
                bits = np.packbits(here, bitorder="little")
                s, i = np.empty((n, k), np.float32), np.empty((n, k), np.int64)
                faiss.knn_inner_product(
                    pointer(queries),
                    pointer(block),
                    self.dim,
                    n,
                    len(here),
                    k,
                    pointer(s),
                    pointer(i),
                    selector(bits),
                )
                scores.append(s)
                positions.append(i + b * BLOCK_ROWS)
        for s, p in zip(np.hstack(scores), np.hstack(positions), strict=True):
            best = np.argpartition(-s, fetch - 1)[:fetch]
            yield p[best], float(s[best].min())

    def _best(self, query: Vectors, positions: Index, k: int) -> tuple[Index, Vectors]:
        """The k best of `positions`, by cosines added in float64 and rounded to float32."""
        wide = query.astype(np.float64)
        cosines = np.empty(len(positions), np.float32)
        for start in range(0, len(positions), GATHER_ROWS):
            rows = self.vectors(positions[start : start + GATHER_ROWS]).astype(np.float64)
            cosines[start : start + GATHER_ROWS] = np.einsum("nd,d->n", rows, wide).clip(-1, 1)
        order = np.lexsort((positions, -cosines))[:k]
        return positions[order], cosines[order]

    def neighbourhood(self, positions: Index) -> Vectors:
        """Mean cosine of each row to its 4 nearest other rows alive, float32 `[len(positions)]`.

        Over fewer where fewer exist; NaN for a row without any other. Remembered for as long
        as this state is the newest.
        """
        known = self._neighbourhoods
        missing = np.array([p for p in np.unique(positions) if p not in known], np.int64)
        found = self.nearest(self.vectors(missing), NEIGHBOURHOOD + 1, self.alive)
        for position, (others, cosines, _) in zip(missing, found, strict=True):
            # With many exact duplicates a row may not be among its own nearest: then the first
            # four are as near as itself, and the fifth is what is one too many.
            around = cosines[others != position][:NEIGHBOURHOOD]
            known[int(position)] = float(around.mean()) if len(around) else float("nan")
        return np.array([known[int(p)] for p in positions], np.float32)


def _grown(old: Any, new: Any) -> Any:
    """`old` with `new` behind it, in the memory behind `old` where there is room.

    What lies there belongs to no state that is in use: only the newest one is changed.
    """
    base, total = (old if old.base is None else old.base), len(old) + len(new)
    if total > len(base):
        base = np.empty(max(1024, total + total // 2), old.dtype)
        base[: len(old)] = old
    base[len(old) : total] = new
    return base[:total]
