"""The derived half of a collection: vectors, languages and metadata in memory, as of one moment.

    Snapshot    one immutable state: rows, their languages, which are alive. Reading it needs no
                lock. `changed` makes the next state and shares the rows already there.

Refuses to know: SQLite, texts, ids of callers, how neighbours are found (nearest.py). Rows are
named by position; positions ascend with rid, the number the database gives to each written row and
never again.

Rows lie in blocks that are only ever appended to, beyond what any snapshot in use can see, each as
large as all before it; a delete is a bit in `alive`. So a reader is never disturbed, a write copies
no rows, rows do not move, and those of many places are gathered from few blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.store.approximate import Approximate, Proposer, sketch
from service.store.columns import Columns
from service.store.filters import Filter
from service.store.growing import begins_with, grown
from service.store.neighbourhoods import Neighbourhoods
from service.store.protocol import Vectors, primary
from service.store.steps import reached
from service.store.threads import ThreadBudget

Index = NDArray[np.int64]
Mask = NDArray[np.bool_]

BLOCK_ROWS = 16_384
"""Of the first block; memory is taken page by page as rows are written, not before."""
COMPACT_ABOVE_DEAD = 4_096
"""Dead rows below this are never worth a copy; above it, compaction starts when half are dead."""


class Attached(NamedTuple):
    """An approximate index, seen from a state: the position of each of its rows, int64 `[count]`,
    -1 for one that is gone. tail: the first position that it does not cover. same: row n of the
    index is at position n, as where nothing had been deleted before it was made. alive: how many of
    its rows are. bits: which, a bit per row, little-endian, uint8; None for all.

    Kept from state to state, so that neither a write nor the search after it looks at each row.
    """

    built: Proposer
    positions: Index
    tail: int
    same: bool
    alive: int
    bits: NDArray[np.uint8] | None

    @classmethod
    def to(cls, built: Proposer, rids: Index, alive: Mask, before: Attached | None) -> Attached:
        """rids, alive: of the state's rows. before: what is attached to it, whose positions hold."""
        first, positions, same, count = 0, np.empty(0, np.int64), True, 0
        bits: NDArray[np.uint8] | None = None
        if before and begins_with(built.rids, before.built.rids):
            _, positions, _, same, count, bits = before
            first = len(positions)
        behind = built.rids[first:]
        places = np.searchsorted(rids, behind)
        there = places < len(rids)
        there[there] = rids[places[there]] == behind[there]
        places[~there] = -1
        there[there] = alive[places[there]]
        if bits is not None or not there.all():
            bits = _with_bits(bits, first, there)
        same = same and np.array_equal(places, np.arange(first, first + len(places)))
        count += int(np.count_nonzero(there))
        tail = int(np.searchsorted(rids, built.seq, side="right"))
        return cls(built, grown(positions, places), tail, same, count, bits)

    def without(self, dead: Index) -> Attached:
        """The same after these rids, which were alive, have been deleted."""
        rids = self.built.rids
        places = np.searchsorted(rids, dead)
        places = places[places < len(rids)]
        places = places[np.isin(rids[places], dead)]
        if not len(places):
            return self
        full = -(-len(rids) // 8)
        bits = np.full(full, 255, np.uint8) if self.bits is None else self.bits.copy()
        kept = ~(1 << (places & 7)).astype(np.uint8)
        np.bitwise_and.at(bits, places >> 3, kept)
        return self._replace(alive=self.alive - len(places), bits=bits)


def _with_bits(bits: NDArray[np.uint8] | None, count: int, more: Mask) -> NDArray[np.uint8]:
    """Those of `count` rows, None for all, and `more`'s behind them."""
    whole, rest = divmod(count, 8)
    before = np.full(whole + 1, 255, np.uint8) if bits is None else bits
    begun = np.unpackbits(before[whole : whole + 1], bitorder="little")[:rest]
    return np.concatenate(
        [before[:whole], np.packbits(np.concatenate([begun, more]), bitorder="little")]
    )


@dataclass(frozen=True, eq=False)
class Snapshot:
    """blocks: float32 `[n, dim]` each, rows of length 1. rids: int64 `[count]`, ascending.

    codes: int32 `[count]`, places in `tags`. alive: bool `[count]`. counts: int64 `[len(tags)]`,
    rows alive of each tag. columns: the rows' metadata. neighbourhoods: what is remembered of each
    row's nearest. number: how many changes led here.
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
    attached: Attached | None = None
    neighbourhoods: Neighbourhoods = field(default_factory=Neighbourhoods)
    number: int = 0

    def __len__(self) -> int:
        return int(self.counts.sum())

    def count(self, mask: Mask) -> int:
        """How many rows a mask has; of all that are alive it is known."""
        return len(self) if mask is self.alive else int(np.count_nonzero(mask))

    def languages(self) -> dict[str, int]:
        """Stored tag -> documents alive, by tag."""
        return {t: int(n) for t, n in sorted(zip(self.tags, self.counts, strict=True)) if n}

    def where(self, wanted: Callable[[str], bool] | None, condition: Filter | None = None) -> Mask:
        """Bool `[count]`: alive rows whose tag is wanted and whose metadata meets the condition.

        wanted: None for every tag, which asks about none of them.
        """
        mask = self.alive
        if wanted is not None:
            chosen = np.array([wanted(tag) for tag in self.tags], np.bool_)
            mask = mask if chosen.all() else mask & chosen[self.codes]
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
        gone, alive, attached = np.searchsorted(self.rids, dead), self.alive, self.attached
        if len(gone):
            alive = grown(self.alive, np.empty(0, np.bool_), anew=True)
            alive[gone] = False
            attached = attached and attached.without(dead)
        n_dead = len(alive) - len(self) + len(gone)
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
            grown(self.rids, rids),
            grown(self.codes, new_codes),
            grown(alive, np.ones(len(rids), np.bool_)),
            tuple(codes),
            counts,
            self.columns,
            attached,
            self.neighbourhoods,
            self.number + 1,
        )

    def _appended(self, vectors: Vectors) -> tuple[Vectors, ...]:
        return _laid(self.blocks, len(self.rids), vectors)

    def _compacted(self, alive: Mask) -> Snapshot:
        """The rows that are `alive`, moved together into blocks of their own."""
        reached("compaction: begun")
        kept, blocks = np.flatnonzero(alive), tuple[Vectors, ...]()
        for start in range(0, len(kept), BLOCK_ROWS):
            part = kept[start : start + BLOCK_ROWS]
            blocks = _laid(blocks, start, self.vectors(part))
        codes = self.codes[kept]
        reached("compaction: rows moved")
        compacted = Snapshot(
            self.dim,
            self.threads,
            blocks,
            self.rids[kept],
            codes,
            np.ones(len(kept), np.bool_),
            self.tags,
            np.bincount(codes, minlength=len(self.tags)),
            self.columns.compacted(alive),
            neighbourhoods=self.neighbourhoods.compacted(alive),
            number=self.number,
        )
        return compacted.attaching(self.attached.built) if self.attached else compacted

    def attaching(self, index: Proposer) -> Snapshot:
        """The same state, with this index to ask."""
        return replace(self, attached=Attached.to(index, self.rids, self.alive, self.attached))

    def misfit(self, index: Approximate) -> str | None:
        """What shows that an index was made from other rows than these, if anything does."""
        positions = np.searchsorted(self.rids, index.rids)
        there = np.flatnonzero(positions < len(self.rids))
        there = there[self.rids[positions[there]] == index.rids[there]]
        for start in range(0, len(there), BLOCK_ROWS):
            part = there[start : start + BLOCK_ROWS]
            found = sketch(self.vectors(positions[part]))
            for wrong in part[found != index.sketches[part]][:1]:
                return f"its row {index.rids[wrong]} has another vector"
        return None

    def vectors(self, positions: Index) -> Vectors:
        """float32 `[len(positions), dim]`, copied."""
        out = np.empty((len(positions), self.dim), np.float32)
        starts = np.cumsum([0, *(len(block) for block in self.blocks)])
        block = np.searchsorted(starts, positions, side="right") - 1
        for b in np.flatnonzero(np.bincount(block)):
            here = block == b
            out[here] = self.blocks[b][positions[here] - starts[b]]
        return out


def _laid(blocks: tuple[Vectors, ...], count: int, vectors: Vectors) -> tuple[Vectors, ...]:
    """`blocks`, which hold `count` rows, with `vectors` behind them."""
    room = sum(len(block) for block in blocks)
    while room < count + len(vectors):
        more = np.empty((max(room, BLOCK_ROWS), vectors.shape[1]), np.float32)
        blocks, room = (*blocks, more), room + len(more)
    start = 0
    for block in blocks:
        first, end = max(count, start), min(count + len(vectors), start + len(block))
        if first < end:
            block[first - start : end - start] = vectors[first - count : end - count]
        start += len(block)
    return blocks
