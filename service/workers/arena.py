"""Memory that a worker and the engine's process share: token ids one way, vectors the other.

The worker owns it and gives out regions; the engine's process only reads and writes in those that a
message names. It has no name in any file system, so nothing is left behind when a process is killed.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
ID = np.dtype("<i8")
LENGTH = np.dtype("<i4")
COMPONENT = np.dtype("<f4")


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class Layout:
    """Where the parts of one job lie in its region: lengths `[n]`, ids `[tokens]`, vectors `[n, dim]`."""

    def __init__(self, offset: int, count: int, tokens: int, dim: int):
        self.count, self.tokens, self.dim = count, tokens, dim
        self.lengths = offset
        self.ids = self.lengths + _aligned(count * LENGTH.itemsize)
        self.vectors = self.ids + _aligned(tokens * ID.itemsize)
        self.end = self.vectors + _aligned(count * dim * COMPONENT.itemsize)

    @property
    def size(self) -> int:
        return self.end - self.lengths


class Arena:
    """A piece of shared memory; made by `create`, or opened from a descriptor."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        self.memory = mmap.mmap(descriptor, self.size)

    @classmethod
    def create(cls, size: int) -> Arena:
        """New memory of `size` bytes; pages are taken when they are first used."""
        descriptor = os.memfd_create("mexma", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, size)
        return cls(descriptor)

    def close(self) -> None:
        """Give the memory back once no view of it is left."""
        os.close(self.descriptor)
        with suppress(BufferError):  # a view lives on; the memory goes with that
            self.memory.close()

    def write_ids(self, layout: Layout, sequences: Sequence[NDArray[np.int64]]) -> None:
        self._view(layout.lengths, LENGTH, layout.count)[:] = [len(s) for s in sequences]
        np.concatenate(sequences, out=self._view(layout.ids, ID, layout.tokens))

    def read_ids(self, layout: Layout) -> list[NDArray[np.int64]]:
        """The sequences, copied. Raises ValueError when the lengths do not add up."""
        lengths = self._view(layout.lengths, LENGTH, layout.count).tolist()
        if min(lengths) < 1 or sum(lengths) != layout.tokens:
            raise ValueError(
                f"expected {layout.tokens} tokens in {layout.count} sequences, found {sum(lengths)}"
            )
        ids = self._view(layout.ids, ID, layout.tokens).copy()
        ends = accumulate(lengths)
        return [ids[end - length : end] for end, length in zip(ends, lengths, strict=True)]

    def write_vectors(self, layout: Layout, vectors: NDArray[np.float32]) -> None:
        self._view(layout.vectors, COMPONENT, layout.count * layout.dim)[:] = vectors.reshape(-1)

    def read_vectors(self, layout: Layout) -> NDArray[np.float32]:
        """The vectors `[n, dim]`, copied."""
        flat = self._view(layout.vectors, COMPONENT, layout.count * layout.dim)
        return flat.reshape(layout.count, layout.dim).copy()

    def _view(self, offset: int, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        return np.frombuffer(self.memory, dtype, count, offset)


class Regions:
    """Which parts of an arena are free: first fit, neighbours merged."""

    def __init__(self, size: int):
        self.size = size
        self._free: list[tuple[int, int]] = [(0, size)]  # (offset, size), by offset

    @property
    def free(self) -> int:
        return sum(size for _, size in self._free)

    def take(self, size: int) -> int | None:
        """The offset of `size` free bytes, or None when there are not so many in one piece."""
        for i, (offset, room) in enumerate(self._free):
            if room >= size:
                if room == size:
                    del self._free[i]
                else:
                    self._free[i] = (offset + size, room - size)
                return offset
        return None

    def give_back(self, offset: int, size: int) -> None:
        """Free what `take` gave."""
        merged: list[tuple[int, int]] = []
        for start, length in sorted([*self._free, (offset, size)]):
            if merged and merged[-1][0] + merged[-1][1] == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((start, length))
        self._free = merged
