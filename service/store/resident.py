"""All rows of a collection in a GPU's memory, where each search compares every one of them.

    Gpu        the device, as FAISS finds it
    Resident   the rows of one moment there; it proposes candidates as an approximate index does

Going by the bandwidth of its memory a GPU reads a million rows of 384 in a quarter of a millisecond, less
than a CPU takes for a few lists of them (to be measured: `python -m benchmarks.gpu`). So there nothing is
trained, measured or written to disk, and nothing is missed but what 2 bytes a component cannot tell apart;
whoever asks compares the stored vectors of what is proposed. Filters are applied to what was found, so
it looks for as many more as they are likely to take away.

Refuses to know: files, SQLite, which rows are alive now.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mexma.errors import InstallationError
from service.store.approximate import Index, Read, Shape, Stopped
from service.store.growing import grown
from service.store.loaded_faiss import faiss
from service.store.protocol import RECALL, Vectors

FACTORY = "GPU Flat, fp16"
BYTES = 2
"""Of each component there."""
MOST_FOUND = 2_048
"""FAISS's limit for one search on a GPU."""
SPARE = 2.0
"""Times as many are looked for as a filter should leave, since what it takes may lie near the query."""
TEMPORARY_BYTES = 256 << 20
"""For FAISS's own use; by itself it takes more, which the model may need."""
ADD_ROWS = 16_384


@dataclass(frozen=True)
class Gpu:
    """make: of a number of dimensions, an index that compares all rows by inner product. At most one call
    of FAISS runs on a device at one time, so there is one of these in a process."""

    make: Callable[[int], Any]
    turn: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def first(cls) -> Gpu:
        """The first that this process may use. Raises InstallationError where FAISS sees none."""
        if not hasattr(faiss, "StandardGpuResources"):
            raise InstallationError(
                "indexes on a GPU need faiss-gpu, found faiss-cpu; install this project with its extra gpu"
            )
        if not faiss.get_num_gpus():
            raise InstallationError("indexes on a GPU need one that CUDA sees; FAISS found none")
        resources = faiss.StandardGpuResources()
        resources.setTempMemory(TEMPORARY_BYTES)

        def make(dim: int) -> Any:
            config = faiss.GpuIndexFlatConfig()
            config.device, config.useFloat16 = 0, True
            return faiss.GpuIndexFlatIP(resources, dim, config)

        return cls(make)


@dataclass(frozen=True, eq=False)
class Resident:
    """rids: int64 `[count]`, ascending, the rows in the index's own order. seq: the last rid that had been
    given when the rows were taken. The index is shared with those made from this one by `extended`,
    and may hold rows behind these."""

    gpu: Gpu
    index: Any
    rids: Index
    seq: int

    @classmethod
    def choose(cls, rows: int, dim: int, budget_bytes: int) -> Shape | None:
        """What so many rows take of the GPU's memory; None where the budget is smaller."""
        shape = Shape(FACTORY, rows * dim * BYTES)
        return shape if shape.bytes <= budget_bytes else None

    @property
    def shape(self) -> Shape:
        return Shape(FACTORY, len(self.rids) * int(self.index.d) * BYTES)

    @classmethod
    def build(
        cls, gpu: Gpu, rids: Index, seq: int, read: Read, stopped: Callable[[], bool]
    ) -> Resident:
        """Copy the rows `rids` there. Raises Stopped, and RuntimeError where the GPU has no room."""
        dim = read(slice(0, 1)).shape[1]
        with gpu.turn:
            index = gpu.make(dim)
        return cls(gpu, index, np.empty(0, np.int64), 0)._filled(rids, seq, read, stopped)

    @property
    def measured(self) -> int:
        """It is never outgrown: there is nothing that was measured."""
        return len(self.rids)

    @property
    def extends(self) -> bool:
        """Whether rows can be put behind these; not where somebody began to, and failed."""
        return int(self.index.ntotal) == len(self.rids)

    def extended(self, rids: Index, seq: int, read: Read, stopped: Callable[[], bool]) -> Resident:
        """The same with the rows `rids` behind those it has; this one can be searched meanwhile."""
        return self._filled(rids, seq, read, stopped)

    def _filled(self, rids: Index, seq: int, read: Read, stopped: Callable[[], bool]) -> Resident:
        for start in range(0, len(rids), ADD_ROWS):
            if stopped():
                raise Stopped("not all rows are on the GPU: their collection is being closed")
            part = np.ascontiguousarray(read(slice(start, start + ADD_ROWS)))
            with self.gpu.turn:
                self.index.add(part)
        return replace(self, rids=grown(self.rids, rids), seq=seq)

    def candidates(
        self,
        queries: Vectors,
        fetch: int,
        allowed: NDArray[np.uint8] | None,
        share: float,
        recall: float = RECALL,
    ) -> Index:
        """For each query, places in `rids` of the nearest rows, int64 `[n, m]`, m at most `fetch`; -1 where
        fewer are allowed among what was looked at. See `Approximate.candidates`; the recall is the highest
        whatever is asked for."""
        wanted = fetch if allowed is None else math.ceil(fetch * SPARE / share)
        with self.gpu.turn:
            wanted = min(wanted, MOST_FOUND, int(self.index.ntotal))
            places: Index = self.index.search(np.ascontiguousarray(queries), wanted)[1]
        none = (places < 0) | (places >= len(self.rids))
        if allowed is not None:
            within = np.where(none, 0, places)
            none |= (allowed[within >> 3] >> (within & 7) & 1) == 0
        places = np.where(none, -1, places)
        first = np.argsort(none, axis=1, kind="stable")[:, :fetch]
        chosen: Index = np.take_along_axis(places, first, axis=1)
        return chosen
