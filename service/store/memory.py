"""One budget of memory for the approximate indexes of a process, asked before anything is built."""

from __future__ import annotations

import threading
from collections.abc import Hashable


class MemoryBudget:
    """total: bytes for all indexes together. While one is made anew its predecessor still
    serves, so for that time there may be twice the bytes of one index."""

    def __init__(self, total: int):
        self.total = total
        self._claims: dict[Hashable, int] = {}
        self._lock = threading.Lock()

    def free(self, owner: Hashable) -> int:
        """Bytes that `owner` could have, what it has included."""
        with self._lock:
            return self.total - sum(n for who, n in self._claims.items() if who != owner)

    def claim(self, owner: Hashable, n: int) -> None:
        """Say what `owner` has now; 0 gives it back."""
        with self._lock:
            self._claims[owner] = n
            if not n:
                del self._claims[owner]
