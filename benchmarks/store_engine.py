"""What each engine of the store's benchmarks can do, whichever it is.

An engine is built from FOLDER/vectors.npy (float32 `[n, dim]`, unit rows) and FOLDER/texts.json, and
answers with row numbers. What was built is kept in FOLDER, so that a run that was stopped goes on.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from service.store.loaded_faiss import faiss

THREADS = len(os.sched_getaffinity(0))
LINKS, BUILD_WIDTH = 32, 100  # of each graph
PROGRESS_ROWS = 100_000
MOST_SECONDS = 5.0  # of one measurement of searches


def memory_mb(pid: int | str = "self") -> float:
    """Memory of a process that is its own: not the files it has mapped."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    [kb] = [line.split()[1] for line in status if line.startswith("RssAnon")]
    return int(kb) / 1024


class Engine:
    """width: how hard an approximate search tries, in the engine's own unit; 0 its default.

    filters: whether it can be asked for marked rows only. durable: what it promises of a write that
    it has acknowledged, "" for one that keeps nothing.
    """

    widths: tuple[int, ...] = (0,)
    filters = True
    durable = ""

    def __init__(self, folder: Path):
        self.folder = folder
        self.vectors = np.load(folder / "vectors.npy", mmap_mode="r")
        self.rows, self.dim = self.vectors.shape
        self._shown = 0

    def build(self) -> dict[str, float]:
        """Seconds that it took, also where it is here since an earlier run, and MB that it takes."""
        faiss.omp_set_num_threads(THREADS)
        kept = self.folder / f"{type(self).__name__}.json"
        before, began = self.memory(), time.perf_counter()
        self.fill()
        took = time.perf_counter() - began
        if kept.exists():
            took = json.loads(kept.read_text())
        kept.write_text(json.dumps(took))
        ctypes.CDLL(None).malloc_trim(0)
        return {"seconds": took, "mb": self.memory() - before}

    def memory(self) -> float:
        return memory_mb()

    def progress(self, rows: int) -> None:
        """Say every so often how far the build has come."""
        if rows // PROGRESS_ROWS > self._shown:
            self._shown = rows // PROGRESS_ROWS
            print(f"{type(self).__name__}: {rows} of {self.rows} rows", flush=True)

    def fill(self) -> None:
        raise NotImplementedError

    def search(self, queries: Any, k: int, width: int, mark: str = "") -> list[list[int]]:
        """mark: only rows that carry it, see `marks`."""
        raise NotImplementedError

    def timed(
        self, queries: Any, k: int, width: int, batch: int, mark: str = ""
    ) -> tuple[float, list[list[int]]]:
        """Queries a second in calls of `batch`, and what was found for those that there was time for."""
        found: list[list[int]] = []
        began = time.perf_counter()
        for start in range(0, len(queries), batch):
            found += self.search(queries[start : start + batch], k, width, mark)
            if time.perf_counter() - began > MOST_SECONDS:
                break
        return len(found) / (time.perf_counter() - began), found

    def write(self, caller: int, first: int, documents: int) -> None:
        """Have so many documents acknowledged, in one write to an empty collection."""
        raise NotImplementedError

    def writes_per_second(self, callers: int, documents: int, seconds: float) -> float:
        """Acknowledged writes by so many threads at once; each waits for the answer to its last."""
        began = time.perf_counter()

        def writes(caller: int) -> int:
            done = 0
            while time.perf_counter() < began + seconds:
                self.write(caller, done * documents, documents)
                done += 1
            return done

        with ThreadPoolExecutor(callers) as pool:
            total = sum(pool.map(writes, range(callers)))
        return total / (time.perf_counter() - began)


@cache
def marks(rows: int) -> dict[str, Any]:
    """bool `[rows]` by name: 10 %, 1 % and 0.1 % of the rows."""
    draw = np.random.default_rng(1).random(rows)
    return {"m100": draw < 0.1, "m10": draw < 0.01, "m1": draw < 0.001}


@cache
def bits(rows: int, mark: str) -> Any:
    """The rows that carry a mark as a bit per row, little-endian."""
    return np.packbits(marks(rows)[mark], bitorder="little")
