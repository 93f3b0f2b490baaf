"""Vectors that were computed before, by what they were computed from. Off unless asked for.

The key is a hash of the encoder's fingerprint and of the token ids: what the vector depends on and
nothing else, so a hit is the vector that the engine would give, spelling that the tokenizer does not tell
apart (white space, composed and decomposed letters) hits, and receipts and token counts stay those of the
text at hand. Neither texts nor ids are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

# Beside the components: key, two objects' headers, a slot of the table (measured, rounded up).
OVERHEAD_BYTES = 320


class VectorCache:
    """The most recently used vectors, within a bound on memory. Not thread-safe."""

    def __init__(self, max_bytes: int, *, fingerprint: str):
        """max_bytes: for vectors and bookkeeping; 0 keeps nothing."""
        self.max_bytes = max_bytes
        self._start = blake2b(fingerprint.encode(), digest_size=16)
        self._vectors: OrderedDict[bytes, bytes] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def __bool__(self) -> bool:
        return self.max_bytes > 0

    def __len__(self) -> int:
        return len(self._vectors)

    def key(self, ids: NDArray[np.int64]) -> bytes:
        """The name of the vector of `ids`, int64 `[length]`."""
        digest = self._start.copy()
        digest.update(ids.tobytes())
        return digest.digest()

    def get(self, key: bytes) -> NDArray[np.float32] | None:
        """The vector float32 `[dim]`, read-only, or None."""
        found = self._vectors.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._vectors.move_to_end(key)
        return np.frombuffer(found, np.float32)

    def put(self, key: bytes, vector: NDArray[np.float32]) -> None:
        """Keep `vector`, float32 `[dim]`, and drop the least recently used beyond the bound."""
        if key in self._vectors:
            return
        kept = vector.tobytes()
        self._vectors[key] = kept
        self.bytes += len(kept) + OVERHEAD_BYTES
        while self.bytes > self.max_bytes:
            _, dropped = self._vectors.popitem(last=False)
            self.bytes -= len(dropped) + OVERHEAD_BYTES
