"""An approximate index over the vectors of one moment: it proposes candidates, and decides nothing.

    Shape         what to build, chosen by the number of rows and the memory there is
    Approximate   the built index and the rows it covers

Whoever asks compares the stored vectors of what is proposed, so an index that is coarse, stale or
wrong costs recall and never makes a score wrong. Vectors are kept in 8 bits per component.

Refuses to know: files, SQLite, which rows are alive now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import faiss as typed_faiss
import numpy as np
from numpy.typing import NDArray

from mexma.errors import MexmaError
from service.store.protocol import Vectors

Index = NDArray[np.int64]
Sketches = NDArray[np.uint32]

faiss: Any = typed_faiss  # its stubs lack half of what is used here

HNSW_LINKS = 32
HNSW_BUILD_WIDTH = 100
HNSW_MOST_ROWS = 4_000_000
"""Above this a graph takes hours to build on few cores, and an inverted file minutes."""
WIDTH = 128
"""Candidates an unfiltered search of a graph keeps in view; more is slower and finds more."""
PROBES = 32
"""Lists of an inverted file an unfiltered search reads."""
TRAINING_ROWS_PER_LIST = 64
ADD_ROWS = 1_024
"""Rows added between two looks at whether to stop."""


class Stopped(MexmaError):
    """A build was told to stop."""


@dataclass(frozen=True)
class Shape:
    """factory: FAISS's name for it. bytes: memory it will take, the vectors' own not counted."""

    kind: str
    factory: str
    bytes: int

    @classmethod
    def choose(cls, rows: int, dim: int, budget_bytes: int) -> Shape | None:
        """The quickest to search that fits the budget; None where nothing does."""
        links = 4 * (2 * HNSW_LINKS + 2) + 24  # both levels' share, the level's number, offsets
        lists = max(64, 2 ** round(np.log2(4 * np.sqrt(max(rows, 1)))))
        graph = cls("hnsw", f"HNSW{HNSW_LINKS}_SQ8", rows * (dim + links))
        inverted = cls("ivf", f"IVF{lists},SQ8", rows * (dim + 8) + lists * dim * 4)
        shapes = [inverted] if rows > HNSW_MOST_ROWS else [graph, inverted]
        return next((shape for shape in shapes if shape.bytes <= budget_bytes), None)


@dataclass(frozen=True, eq=False)
class Approximate:
    """rids: int64 `[count]`, ascending, the rows in the index's own order. seq: the last rid that
    had been given when the rows were taken; rows above it are not covered. sketches: uint32
    `[count]`, of each row's vector, by which a wrong pairing of index and rows is noticed.
    """

    shape: Shape
    index: Any
    rids: Index
    sketches: Sketches
    seq: int

    @classmethod
    def build(
        cls,
        shape: Shape,
        rids: Index,
        seq: int,
        read: Callable[[slice], Vectors],
        stopped: Callable[[], bool],
    ) -> Approximate:
        """Index the rows `rids`; `read` gives their vectors, float32 `[n, dim]` of length 1.

        Uses as many threads as OpenMP was told to in this thread. Raises Stopped.
        """
        sample = read(slice(None, None, _stride(shape, len(rids))))
        # The distance of unit vectors orders like their cosine, and FAISS's graphs are made for
        # distances.
        index = faiss.index_factory(sample.shape[1], shape.factory, faiss.METRIC_L2)
        if shape.kind == "hnsw":
            index.hnsw.efConstruction = HNSW_BUILD_WIDTH
        index.train(sample)
        empty = cls(shape, index, rids[:0], np.empty(0, np.uint32), 0)
        return empty._filled(index, rids, seq, read, stopped)

    def extended(
        self,
        rids: Index,
        seq: int,
        read: Callable[[slice], Vectors],
        stopped: Callable[[], bool],
    ) -> Approximate:
        """A copy with the rows `rids` behind those it has; this one can be searched meanwhile."""
        rows = len(self.rids) + len(rids)
        shape = replace(self.shape, bytes=self.shape.bytes * rows // max(len(self.rids), 1))
        longer = replace(self, shape=shape)
        return longer._filled(faiss.clone_index(self.index), rids, seq, read, stopped)

    def _filled(
        self,
        index: Any,
        rids: Index,
        seq: int,
        read: Callable[[slice], Vectors],
        stopped: Callable[[], bool],
    ) -> Approximate:
        sketches = [self.sketches]
        for start in range(0, len(rids), ADD_ROWS):
            if stopped():
                raise Stopped("the index was not finished: its collection is being closed")
            part = read(slice(start, start + ADD_ROWS))
            index.add(part)
            sketches.append(sketch(part))
        return Approximate(
            self.shape, index, np.concatenate([self.rids, rids]), np.concatenate(sketches), seq
        )

    def candidates(
        self, queries: Vectors, fetch: int, allowed: NDArray[np.uint8] | None, share: float
    ) -> Iterator[Index]:
        """For each query about `fetch` places in `rids`, int64 `[m]`; fewer where it sees fewer.

        allowed: a bit per row, little-endian, or None for all. share: of the rows, how many are
        allowed: the fewer, the wider the search. Uses OpenMP's threads of this thread.
        """
        chosen = {} if allowed is None else {"sel": faiss.IDSelectorBitmap(allowed)}
        if self.shape.kind == "hnsw":
            width = min(int(max(WIDTH, 2 * fetch) / share), len(self.rids))
            parameters = faiss.SearchParametersHNSW(efSearch=width, **chosen)
        else:
            probes = min(int(PROBES / share), self.index.nlist)
            parameters = faiss.SearchParametersIVF(nprobe=probes, **chosen)
        _, places = self.index.search(
            np.ascontiguousarray(queries), min(fetch, len(self.rids)), params=parameters
        )
        for row in places:
            yield row[row >= 0]


def _stride(shape: Shape, rows: int) -> int:
    """Take every so-manieth row to train on."""
    lists = int(shape.factory.removeprefix("IVF").partition(",")[0]) if shape.kind == "ivf" else 256
    return max(1, rows // (lists * TRAINING_ROWS_PER_LIST))


def sketch(vectors: Vectors) -> Sketches:
    """uint32 `[n]`: a hash of each row of float32 `[n, dim]`; another row's differs but for chance."""
    weights = np.random.default_rng(0).integers(1, 2**32, vectors.shape[1], np.uint32) | 1
    bits = np.ascontiguousarray(vectors).view(np.uint32)
    sketches: Sketches = (bits * weights).sum(axis=1, dtype=np.uint32)
    return sketches
