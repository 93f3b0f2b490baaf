"""What SQLite does not say about its write-ahead log: that commits in it are being passed over.

After a kill, the newest commits are in the log only. SQLite reads it up to the first frame whose
checksum is wrong and takes the rest for the torn end of a transaction that was never acknowledged.
A flipped bit looks the same, and everything written after it would be gone without a word. But a
torn end is one transaction at most, since each is synced before the next begins: two commits after
a bad frame mean damage.

The format: https://www.sqlite.org/fileformat2.html#walformat
"""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mexma.errors import StoreCorrupt

HEADER, FRAME_HEADER = 32, 24
MAGIC = {0x377F0682: "<", 0x377F0683: ">"}  # the byte order of the words that are summed
FRAMES_AT_ONCE = 1_024
PAGE_SIZES = [2**n for n in range(9, 17)]

Words = NDArray[np.uint32]


def check(path: Path) -> None:
    """Raise StoreCorrupt naming the log beside the database `path` where it has lost commits.

    Before SQLite opens the database: closing it removes the log.
    """
    log = path.with_name(path.name + "-wal")
    try:
        content = log.read_bytes()
    except FileNotFoundError:
        return
    if len(content) < HEADER or not any(content[:HEADER]):
        return
    magic, _, page, _, *salt, first, second = struct.unpack(">8I", content[:HEADER])
    order = MAGIC.get(magic)
    if order is None or _sum(content[:24], order, (0, 0)) != (first, second):
        raise StoreCorrupt(f"{log} must begin with a header that matches its checksum")
    if page not in PAGE_SIZES:
        raise StoreCorrupt(f"{log} must have pages of a size that SQLite knows, has {page} bytes")
    size = FRAME_HEADER + page
    frames = np.frombuffer(content, np.uint8, (len(content) - HEADER) // size * size, HEADER)
    frames = frames.reshape(-1, size)
    heads = frames[:, :FRAME_HEADER].copy().view(">u4").astype(np.uint32)
    ours = (heads[:, 2] == salt[0]) & (heads[:, 3] == salt[1])
    good = _good_frames(frames, heads, ours, order, (first, second))
    lost = int(np.count_nonzero(ours[good:] & (heads[good:, 1] != 0)))
    if lost > 1:
        raise StoreCorrupt(
            f"{log} must have frames that match their checksums, frame {good} of {len(frames)} "
            f"does not, and {lost} commits would be lost with it"
        )


def _good_frames(
    frames: NDArray[np.uint8],
    heads: Words,
    ours: NDArray[np.bool_],
    order: str,
    start: tuple[int, int],
) -> int:
    """How many frames from the first on are of this log and have the right running checksum."""
    sums = np.array(start, np.uint32)
    for begin in range(0, len(frames), FRAMES_AT_ONCE):
        part = frames[begin : begin + FRAMES_AT_ONCE]
        summed = np.concatenate([part[:, :8], part[:, FRAME_HEADER:]], axis=1)
        advance, weights = _weights(summed.shape[1] // 8)
        pairs = summed.view(f"{order}u4").astype(np.uint32).reshape(len(part), -1, 2)
        added = np.stack([pairs[..., 0], pairs[..., 0] + pairs[..., 1]], axis=2)
        # [frames, pairs, 1, 2] * [pairs, 2, 2], summed over pairs and the last axis, modulo 2^32
        own = (added[:, :, None, :] * weights).sum(axis=(1, 3), dtype=np.uint32)
        for n, one in enumerate(own, begin):
            sums = (advance * sums).sum(axis=1, dtype=np.uint32) + one
            if not ours[n] or not np.array_equal(sums, heads[n, 4:6]):
                return n
    return len(frames)


@cache
def _weights(pairs: int) -> tuple[Words, Words]:
    """The checksum as matrices modulo 2^32: one step is `s = M s + (x, x + y)`, M = [[1,1],[1,2]].

    Returns M to the power of `pairs`, and the power that each pair is multiplied with.
    """
    step, power = np.array([[1, 1], [1, 2]], np.uint32), np.eye(2, dtype=np.uint32)
    powers = []
    for _ in range(pairs):
        powers.append(power)
        power = (step[:, :, None] * power[None, :, :]).sum(axis=1, dtype=np.uint32)
    return power, np.stack(powers[::-1])


def _sum(content: bytes, order: str, start: tuple[int, int]) -> tuple[int, int]:
    """The checksum as the format describes it."""
    a, b = start
    words = struct.unpack(f"{order}{len(content) // 4}I", content)
    for x, y in zip(words[::2], words[1::2], strict=True):
        a = (a + x + b) % 2**32
        b = (b + y + a) % 2**32
    return a, b
