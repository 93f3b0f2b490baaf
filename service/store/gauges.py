"""What can be said about the quality of a collection's answers while it serves.

RecallGauge   how much of the exact answer approximate searches find, by checking some of them
hubness       whether a few documents are near to everything
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from mexma.neighbours import nearest
from service.store.index import Snapshot

WINDOW = 100
HUB_ROWS = 1_000
HUB_AT_LEAST = 200
HUB_K = 10


class RecallGauge:
    """every: one in so many approximate searches is checked; 0 checks none."""

    def __init__(self, every: int):
        self._every = every
        self._searches = itertools.count(1)
        self._found: deque[float] = deque(maxlen=WINDOW)
        self._lock = threading.Lock()

    def is_due(self) -> bool:
        """Whether the approximate search that was just done is to be checked."""
        return self._every > 0 and next(self._searches) % self._every == 0

    def check(self, found: Sequence[int], exactly: Callable[[], Sequence[int]]) -> None:
        """Compare the rids that were found with those that an exact search finds."""
        expected = set(exactly())
        with self._lock:
            if expected:
                self._found.append(len(expected & set(found)) / len(expected))

    @property
    def recall(self) -> float | None:
        """Mean over the last checks, None before the first."""
        with self._lock:
            return sum(self._found) / len(self._found) if self._found else None


def hubness(snapshot: Snapshot) -> float | None:
    """Skewness of how often each of up to 1,000 documents is among the 10 nearest of another.

    0 without hubs; Radovanović, Nanopoulos and Ivanović 2010 (JMLR 11) call 1.4 to 5 strong.
    None below 200 documents, where it would be noise.
    """
    alive = np.flatnonzero(snapshot.alive)
    if len(alive) < HUB_AT_LEAST:
        return None
    rows = snapshot.vectors(alive[np.linspace(0, len(alive) - 1, HUB_ROWS).astype(int)])
    rows = np.unique(rows, axis=0)
    if len(rows) <= HUB_K:
        return None
    _, others = nearest(rows, rows, HUB_K + 1)
    others = np.where(others == np.arange(len(rows))[:, None], -1, others)
    counts = np.bincount(others[others >= 0], minlength=len(rows)).astype(np.float64)
    centred = counts - counts.mean()
    deviation = counts.std()
    return float((centred**3).mean() / deviation**3) if deviation else 0.0
