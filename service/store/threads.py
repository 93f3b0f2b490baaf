"""One budget of threads for all scans of a process.

OpenMP keeps its thread count per calling thread: `omp_set_num_threads` in the main thread
leaves a server's worker threads at the machine's default (seen with faiss 1.15 on 2 cores:
set to 1 in main, a new thread still reports and uses 2). So the number is set by the thread
that scans, at each scan, and the sum over all scans at one time stays within the budget.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import faiss


class ThreadBudget:
    """total: threads that may scan at one time, over all collections and callers."""

    def __init__(self, total: int):
        if total < 1:
            raise ValueError(f"threads must be at least 1, got {total}")
        self.total = total
        self._free = total
        self._freed = threading.Condition()

    @contextmanager
    def take(self, wanted: int) -> Iterator[int]:
        """Hold up to `wanted` threads, at least one, waiting for it if need be.

        FAISS parallelises over query rows, so a scan wants one thread per row at most.
        """
        with self._freed:
            self._freed.wait_for(lambda: self._free > 0)
            taken = max(1, min(wanted, self._free))
            self._free -= taken
        try:
            faiss.omp_set_num_threads(taken)
            yield taken
        finally:
            with self._freed:
                self._free += taken
                self._freed.notify(taken)
