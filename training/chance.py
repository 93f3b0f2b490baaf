"""Chance as a pure function: the same arguments give the same numbers, on any machine.

Order, masks and sampled vocabulary are drawn from here with a key such as (seed, step, sample id).
There is no generator whose state would have to be saved, copied into workers or kept equal between
ranks; to resume is to ask again. Dropout alone is torch's own: the loop seeds it before each batch
with a number from here (of seed, step, place and rank), so it is the same on resuming, but another
on other devices, versions of torch and numbers of ranks.

The hash is the finaliser of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom
number generators", OOPSLA 2014), applied once for each part of the key. It is written out
because numpy's generators promise the same stream only within one version.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

UInt64 = NDArray[np.uint64]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def number(name: str) -> int:
    """A 63-bit number for a name, to be used as part of a key."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1


def draw(*key: int | NDArray[np.int64] | UInt64) -> UInt64:
    """Hash a key. Parts are integers or integer arrays, which broadcast; so does the result.

    Returns uint64, uniform over all 64 bits, of the parts' common shape.
    """
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for part in key:
            word = part if isinstance(part, np.ndarray) else np.uint64(part & 0xFFFFFFFFFFFFFFFF)
            state = (state ^ word.astype(np.uint64)) + _STEP
            state = (state ^ (state >> np.uint64(30))) * _FIRST
            state = (state ^ (state >> np.uint64(27))) * _SECOND
            state = state ^ (state >> np.uint64(31))
    return np.asarray(state)


def uniform(*key: int | NDArray[np.int64] | UInt64) -> NDArray[np.float64]:
    """Like `draw`, as float64 in [0, 1)."""
    return (draw(*key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(n: int, *key: int) -> NDArray[np.int64]:
    """The numbers 0 to n - 1 in an order that depends on the key alone; int64 `[n]`."""
    return np.argsort(draw(*key, np.arange(n)), kind="stable").astype(np.int64)
