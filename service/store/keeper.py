"""One thread for what nobody waits for: building indexes, checking recall.

Jobs have names, and one that is waiting is not added again. The thread is niced, and so are the
threads that FAISS starts from it, so that a build takes the cores that searches leave over.

Refuses to know: what the jobs are.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable

from service.priority import FAR_BELOW, lower
from service.store.loaded_faiss import faiss

log = logging.getLogger(__name__)


class Keeper:
    """threads: how many FAISS may use in the jobs."""

    def __init__(self, threads: int):
        self._threads = threads
        self._jobs: dict[Hashable, Callable[[], object]] = {}
        self._running = False
        self._changed = threading.Condition()
        self.stopping = False
        self._thread = threading.Thread(target=self._work, name="keeper", daemon=True)
        self._thread.start()

    def wake(self, name: Hashable, job: Callable[[], object]) -> None:
        """Have `job` done, unless one of this name is waiting. Its exceptions are logged."""
        with self._changed:
            if not self.stopping:
                self._jobs.setdefault(name, job)
                self._changed.notify_all()

    def settle(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is left to do, or no longer than that. Whether nothing is left."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs and not self._running, timeout_s)

    def close(self) -> None:
        """Forget what is waiting, let the running job see `stopping`, and wait for its end."""
        with self._changed:
            self.stopping = True
            self._jobs.clear()
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        lower(FAR_BELOW)
        faiss.omp_set_num_threads(self._threads)
        while True:
            with self._changed:
                self._running = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._jobs or self.stopping)
                if self.stopping:
                    return
                job = self._jobs.pop(next(iter(self._jobs)))
                self._running = True
            try:
                job()
            except Exception:
                log.exception("background work on the store failed; searches are exact without it")
