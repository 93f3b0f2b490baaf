"""One budget of threads for all scans of a process.

OpenMP keeps its thread count per calling thread: `omp_set_num_threads` in the main thread
leaves a server's worker threads at the machine's default (seen with faiss 1.15 on 2 cores:
set to 1 in main, a new thread still reports and uses 2). So the number is set by the thread
that scans, at each scan, and the sum over all scans at one time stays within the budget.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from service.store.loaded_faiss import faiss

T = TypeVar("T")


class ThreadBudget:
    """total: threads that may scan at one time, over all collections and callers."""

    def __init__(self, total: int):
        if total < 1:
            raise ValueError(f"threads must be at least 1, got {total}")
        self.total = total
        self._free = total
        self._freed = threading.Condition()
        self._helpers = ThreadPoolExecutor(total, thread_name_prefix="scan")
        _matrix_products_take_one_thread()

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

    def run(self, threads: int, work: Callable[[], T]) -> list[T]:
        """Do `work` in so many threads at once, this one among them; what each returned.

        threads: what `take` gave.
        """
        helpers = [self._helpers.submit(work) for _ in range(threads - 1)]
        return [work(), *(helper.result() for helper in helpers)]


@cache
def _matrix_products_take_one_thread() -> None:
    """numpy's products run in the thread that asks for them, so that a budget can count threads.

    By itself each takes all cores. FAISS's own library for products is left as it is.
    """
    where = str(np.__path__[0])
    controller = ThreadpoolController()
    for library in controller.lib_controllers:
        if library.user_api == "blas" and library.filepath.startswith(where):
            library.set_num_threads(1)
