"""Matrices in few bits: blocks of 32 consecutive weights of a row share one fp16 scale.

Plain arithmetic over numpy arrays; the graph is elsewhere. A weight is `code * scale`, the
product taken in fp32. Codes of 4 bits are -8 to 7, of 8 bits -127 to 127.

Weights that come from such blocks are found again exactly: the scale is searched for, not
computed from the largest weight alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mexma.errors import ArtifactError

BLOCK = 32  # weights that share a scale
ROWS_AT_ONCE = 8192  # bounds memory: 8192 x 384 fp32 is 12 MiB, a few such at a time

# What the weight of largest magnitude may be coded as. -8 comes first because common 4-bit
# formats do so; the others are for blocks rounded by another rule, or not rounded before.
LARGEST_4BIT = (-8, 7, -7, 6, -6, 5, -5, 4, -4, 3, -3, 2, -2, 1, -1)


# Rounding misses by 0.289 steps (root mean square) where weights have nothing to do with the grid. Less: they
# come from it. Then the largest is coded as this: of gentle trainings of which the grid of 127 kept 1, 15 and
# 86 %, 121 kept all (114, 102 and 100 %); 118 kept two thirds of the gentlest, 123 made three times of it.
NEAR_A_GRID = 0.28
LARGEST_OFF_GRID = 121


@dataclass(frozen=True)
class Blocks:
    """A matrix in blocks.

    codes: int8 `[rows, columns]`. scales: float16 `[rows, columns / 32]`. bits: 4 or 8.
    exact: whether `widen()` gives back the matrix to the last bit.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float16]
    bits: int
    exact: bool

    def widen(self) -> NDArray[np.float32]:
        """The matrix, float32 `[rows, columns]`."""
        rows, columns = self.codes.shape
        codes = self.codes.reshape(rows, columns // BLOCK, BLOCK).astype(np.float32)
        return (codes * self.scales.astype(np.float32)[..., None]).reshape(rows, columns)

    def unsigned(self) -> NDArray[np.uint8]:
        """Codes plus half their range, uint8, packed along the row (low nibble first).

        `[rows, columns / 2]` for 4 bits, `[rows, columns]` for 8.
        """
        codes = (self.codes.astype(np.int16) + (1 << (self.bits - 1))).astype(np.uint8)
        return codes if self.bits == 8 else codes[:, 0::2] + codes[:, 1::2] * np.uint8(16)


def in_blocks(
    matrix: NDArray[np.float32], bits: int, advance: Callable[[int], object] = lambda rows: None
) -> Blocks:
    """Put `matrix`, float32 `[rows, columns]`, in blocks of 4 or 8 `bits`.

    advance: called with the number of rows done, for a progress bar. Raises ArtifactError
    when the columns do not divide into blocks.
    """
    rows, columns = matrix.shape
    if columns % BLOCK:
        raise ArtifactError(
            f"precision: a matrix of {rows} x {columns} cannot be stored in blocks of {BLOCK}; "
            "choose fp32 or fp16"
        )
    codes = np.empty((rows, columns), np.int8)
    scales = np.empty((rows, columns // BLOCK), np.float16)
    exact = True
    for row in range(0, rows, ROWS_AT_ONCE):
        part = slice(row, row + ROWS_AT_ONCE)
        blocks = np.ascontiguousarray(matrix[part], np.float32).reshape(-1, BLOCK)
        found, scale = _four_bits(blocks) if bits == 4 else _eight_bits(blocks)
        codes[part] = found.reshape(-1, columns)
        scales[part] = scale.reshape(-1, columns // BLOCK)
        exact = exact and np.array_equal(found * scale.astype(np.float32)[:, None], blocks)
        advance(len(matrix[part]))
    return Blocks(codes, scales, bits, exact)


Coded = tuple[NDArray[np.int8], NDArray[np.float16]]


def _four_bits(blocks: NDArray[np.float32]) -> Coded:
    """Codes int8 `[n, 32]` and scales `[n]`, of least squared error."""
    codes = np.zeros(blocks.shape, np.int8)
    scales = np.zeros(len(blocks), np.float16)
    error = np.einsum("ij,ij->i", blocks, blocks)  # of all zeros, the first candidate
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)[:, 0]
    for code in LARGEST_4BIT:
        open_ = np.flatnonzero(error)
        if not len(open_):
            break
        codes_, scales_, error_ = _with_scale(
            blocks[open_], (largest[open_] / code).astype(np.float32), -8, 7
        )
        better = error_ < error[open_]
        codes[open_[better]] = codes_[better]
        scales[open_[better]] = scales_[better]
        error[open_[better]] = error_[better]
    return codes, scales


def _eight_bits(blocks: NDArray[np.float32]) -> Coded:
    """Codes int8 `[n, 32]` and scales `[n]`. What lies nearly on such a grid, as weights do that were
    trained a little from stored ones, gets another one: by its own each weight that moved less than half a
    step would go back to where it came from, and the training with it. What lies on either grid is exact."""
    largest: NDArray[np.float32] = np.abs(blocks).max(1)
    codes, scales, missed = _with_scale(blocks, (largest / 127).astype(np.float32), -127, 127)
    moved = np.flatnonzero(missed * (scales > 0))
    if not len(moved):
        return codes, scales
    off_grid = (largest[moved] / LARGEST_OFF_GRID).astype(np.float32)
    other_codes, other_scales, other_missed = _with_scale(blocks[moved], off_grid, -127, 127)
    steps_squared = missed[moved] / BLOCK / scales[moved].astype(np.float32) ** 2
    taken = other_missed == 0
    if not taken.all() and np.sqrt(steps_squared[~taken].mean()) < NEAR_A_GRID:
        taken[:] = True
    codes[moved[taken]], scales[moved[taken]] = other_codes[taken], other_scales[taken]
    return codes, scales


def _with_scale(
    blocks: NDArray[np.float32], scale: NDArray[np.float32], low: int, high: int
) -> tuple[NDArray[np.int8], NDArray[np.float16], NDArray[np.float32]]:
    """Codes, the scale as stored, and each block's squared error."""
    stored = scale.astype(np.float16)
    wide = stored.astype(np.float32)[:, None]
    codes = np.rint(np.divide(blocks, wide, out=np.zeros_like(blocks), where=wide != 0))
    codes = np.clip(codes, low, high)
    missed = codes * wide - blocks
    return codes.astype(np.int8), stored, np.einsum("ij,ij->i", missed, missed)
