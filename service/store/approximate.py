"""An approximate index over the vectors of one moment: it proposes candidates, and decides nothing.

    Shape         what to build, chosen by the number of rows and the memory there is
    Approximate   the built index and the rows it covers
    Proposer      what searches and their caretaker need of it, or of rows on a GPU (resident.py)

Rows lie in lists by their nearest centroid, as 4-bit codes of 2 components each that a processor
compares 32 at a time (FAISS's fast scan; André et al. 2015, "Cache locality is not enough", VLDB).
Whoever asks compares the stored vectors of what is proposed, so an index that is coarse, stale or
wrong costs recall and never makes a score wrong. How many lists a search must read for its recall,
and how many candidates the codes must propose, depends on the texts, so both are measured when the
index is built.

Refuses to know: files, SQLite, which rows are alive now.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mexma.errors import MexmaError
from service.store.growing import grown
from service.store.loaded_faiss import faiss
from service.store.protocol import MOST_RECALL, RECALL, Vectors

Index = NDArray[np.int64]
Sketches = NDArray[np.uint32]
Read = Callable[[slice | Index], Vectors]
"""Vectors of some of the rows to index, float32 `[n, dim]` of length 1."""

TRAINING_ROWS_PER_LIST = 40
CODES = 16
"""What 4 bits tell apart: fewer rows cannot be trained on."""
CHECKED_ROWS, NEAREST, CHECKED_FETCH = 128, 10, 52
"""A recall is the share of the 10 nearest to rows of its own that an index proposes. Searches measure
a little less: what is looked for is not among the rows."""
LEAST_PROBES = 8
GRAPH_LISTS, LINKS = 2_048, 32
"""From so many lists on their centroids are in a graph: to find the 96 nearest of 4,096 takes 165 us of a
core in it and 290 us without, also for 64 queries at a time, and 98 % of them are found. That is
within what is measured: it is searched as searches will."""
FILING_WIDTH = 64
"""How hard that graph tries to find a row's own list when it is added."""
DEEPEST = 16
ADD_ROWS = 1_024
"""Rows added between two looks at whether to stop."""


class Stopped(MexmaError):
    """A build was told to stop."""


@dataclass(frozen=True)
class Shape:
    """factory: FAISS's name for it. bytes: memory it will take, the vectors' own not counted."""

    factory: str
    bytes: int

    @classmethod
    def choose(cls, rows: int, dim: int, budget_bytes: int) -> Shape | None:
        """What fits the budget; None where nothing does."""
        lists = 2 ** round(np.log2(4 * np.sqrt(rows)))
        lists = int(np.clip(lists, 1, max(1, rows // TRAINING_ROWS_PER_LIST)))
        codes = dim // 2 if dim % 2 == 0 else dim
        graph = f"_HNSW{LINKS}" if lists >= GRAPH_LISTS else ""
        bytes_ = rows * (codes // 2 + 8) + lists * (4 * dim + 8 * LINKS * bool(graph))
        shape = cls(f"IVF{lists}{graph},PQ{codes}x4fs", bytes_)
        if rows < CODES:
            shape = cls("IVF1,Flat", rows * (4 * dim + 8) + 4 * dim)
        return shape if shape.bytes <= budget_bytes else None


@dataclass(frozen=True, eq=False)
class Approximate:
    """rids: int64 `[count]`, ascending, the rows in the index's own order. seq: the last rid that
    had been given when the rows were taken; rows above it are not covered. sketches: uint32
    `[count]`, of each row's vector, by which a wrong pairing of index and rows is noticed.
    reach: recalls and the lists that a search of all rows must read for each, both ascending.
    depth: candidates for each that is asked for, since codes order a little wrongly. measured: rows
    there were when it was built, and lists, reach and depth were chosen.
    """

    shape: Shape
    index: Any
    rids: Index
    sketches: Sketches
    seq: int
    reach: tuple[tuple[float, int], ...] = ((1.0, LEAST_PROBES),)
    depth: int = 1
    measured: int = 0

    @classmethod
    def build(
        cls, shape: Shape, rids: Index, seq: int, read: Read, stopped: Callable[[], bool]
    ) -> Approximate:
        """Index the rows `rids`. Uses as many threads as OpenMP was told to in this thread.

        Raises Stopped.
        """
        dim = read(slice(0, 1)).shape[1]
        # The distance of unit vectors orders like their cosine.
        index = faiss.index_factory(dim, shape.factory, faiss.METRIC_L2)
        if _is_graph(index):
            faiss.downcast_index(index.quantizer).hnsw.efSearch = FILING_WIDTH
        index.train(read(slice(None, None, _stride(index.nlist, len(rids)))))
        empty = cls(shape, index, np.empty(0, np.int64), np.empty(0, np.uint32), 0)
        full = empty._filled(index, rids, seq, read, stopped)
        return full._tuned(read, stopped)

    @property
    def extends(self) -> bool:
        """Whether rows can be put behind those it has."""
        return True

    def extended(
        self, rids: Index, seq: int, read: Read, stopped: Callable[[], bool]
    ) -> Approximate:
        """A copy with the rows `rids` behind those it has; this one can be searched meanwhile.

        In one thread: it comes often while much is written, and searches need the other cores.
        """
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            return self._extended(rids, seq, read, stopped)
        finally:
            faiss.omp_set_num_threads(threads)

    def _extended(
        self, rids: Index, seq: int, read: Read, stopped: Callable[[], bool]
    ) -> Approximate:
        rows = len(self.rids) + len(rids)
        shape = replace(self.shape, bytes=self.shape.bytes * rows // max(len(self.rids), 1))
        longer = replace(self, shape=shape)
        return longer._filled(faiss.clone_index(self.index), rids, seq, read, stopped)

    def _filled(
        self, index: Any, rids: Index, seq: int, read: Read, stopped: Callable[[], bool]
    ) -> Approximate:
        sketches = self.sketches
        for start in range(0, len(rids), ADD_ROWS):
            _look(stopped)
            part = read(slice(start, start + ADD_ROWS))
            index.add(part)
            sketches = grown(sketches, sketch(part))
        return replace(self, index=index, rids=grown(self.rids, rids), sketches=sketches, seq=seq)

    def _tuned(self, read: Read, stopped: Callable[[], bool]) -> Approximate:
        """With the least depth, and then the fewest lists, that find what they should."""
        count, lists = len(self.rids), int(self.index.nlist)
        queries = read(np.unique(np.linspace(0, count - 1, CHECKED_ROWS).astype(np.int64)))
        wanted = min(NEAREST + 1, count)  # each finds itself, too
        best = np.full((len(queries), wanted), -np.inf, np.float32)
        for start in range(0, count, ADD_ROWS):
            _look(stopped)
            scores = queries @ read(slice(start, start + ADD_ROWS)).T
            best = np.partition(np.hstack([best, scores]), -wanted)[:, -wanted:]
        # By score and not by name: of equal texts any is as good.
        bars = best.min(axis=1) - 1e-5

        def recall(probes: int, depth: int) -> float:
            tried = replace(self, reach=((1.0, probes),), depth=depth)
            found = 0
            asked = tried.candidates(queries, CHECKED_FETCH, None, 1.0)
            for query, bar, places in zip(queries, bars, asked, strict=True):
                _look(stopped)
                scores = read(places[places >= 0]) @ query
                found += min(int(np.count_nonzero(scores >= bar)), wanted)
            return (found - len(queries)) / max((wanted - 1) * len(queries), 1)

        depth, probes = 1, min(LEAST_PROBES, lists)
        while depth < DEEPEST and recall(lists, depth) < (1 + RECALL) / 2:
            depth *= 2
        reach = [(recall(probes, depth), probes)]
        while probes < lists and reach[-1][0] < MOST_RECALL:  # 8, 12, 16, 24, 32 and so on
            probes = min(probes * 3 // 2 if probes & (probes - 1) == 0 else probes * 4 // 3, lists)
            if (found := recall(probes, depth)) > reach[-1][0]:
                reach.append((found, probes))
        return replace(self, reach=tuple(reach), depth=depth, measured=count)

    def probes(self, recall: float) -> int:
        """Lists that a search of all rows reads for this recall; the most that
        were measured, where none sufficed."""
        enough = (probes for found, probes in self.reach if found >= recall)
        return next(enough, self.reach[-1][1])

    def candidates(
        self,
        queries: Vectors,
        fetch: int,
        allowed: NDArray[np.uint8] | None,
        share: float,
        recall: float = RECALL,
    ) -> Index:
        """For each query, `fetch` times the depth, places in `rids`, int64 `[n, m]`; -1 where it sees fewer.

        allowed: a bit per row, little-endian, or None for all. share: of the rows, how many are
        allowed: the fewer, the more lists are read. Uses OpenMP's threads of this thread.
        """
        chosen: dict[str, Any] = {}
        if allowed is not None:
            chosen["sel"] = faiss.IDSelectorBitmap(allowed)
        probes = min(int(self.probes(recall) / share), self.index.nlist)
        if _is_graph(self.index):
            chosen["quantizer_params"] = faiss.SearchParametersHNSW(efSearch=probes)
        parameters = faiss.SearchParametersIVF(nprobe=probes, **chosen)
        fetch = min(fetch * self.depth, len(self.rids))
        places: Index = self.index.search(np.ascontiguousarray(queries), fetch, params=parameters)[
            1
        ]
        return places


class Proposer(Protocol):
    """What proposes candidates for searches; see `Approximate`."""

    @property
    def shape(self) -> Shape: ...

    @property
    def rids(self) -> Index: ...

    @property
    def seq(self) -> int: ...

    @property
    def measured(self) -> int: ...

    @property
    def extends(self) -> bool: ...

    def extended(
        self, rids: Index, seq: int, read: Read, stopped: Callable[[], bool]
    ) -> Proposer: ...

    def candidates(
        self,
        queries: Vectors,
        fetch: int,
        allowed: NDArray[np.uint8] | None,
        share: float,
        recall: float = RECALL,
    ) -> Index: ...


def _is_graph(index: Any) -> bool:
    """Whether the centroids of its lists are in a graph."""
    return isinstance(faiss.downcast_index(index.quantizer), faiss.IndexHNSW)


def _look(stopped: Callable[[], bool]) -> None:
    if stopped():
        raise Stopped("the index was not finished: its collection is being closed")


def _stride(lists: int, rows: int) -> int:
    """Take every so-manieth row to train on."""
    return max(1, rows // max(lists * TRAINING_ROWS_PER_LIST, 256 * CODES))


def sketch(vectors: Vectors) -> Sketches:
    """uint32 `[n]`: a hash of each row of float32 `[n, dim]`; another row's differs but for chance."""
    weights = np.random.default_rng(0).integers(1, 2**32, vectors.shape[1], np.uint32) | 1
    bits = np.ascontiguousarray(vectors).view(np.uint32)
    sketches: Sketches = (bits * weights).sum(axis=1, dtype=np.uint32)
    return sketches
