"""Exact nearest neighbours and the margin score, over matrices.

Used wherever the truth is wanted: the parity gate, evaluation, mining, and the store's
own check of its index. Tiled, so memory is bounded by `tile` squared, not by the corpus.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Index = NDArray[np.int64]

LEAST_MEAN = np.float32(0.05)


def nearest(queries: Float, targets: Float, k: int, *, tile: int = 4096) -> tuple[Float, Index]:
    """The `k` targets with the highest inner product for each query.

    queries: float32 `[n, dim]`; targets: float32 `[m, dim]`. Returns scores float32 and
    indices int64, both `[n, min(k, m)]`, best first; ties go to the lower index. For
    normalised vectors the score is the cosine.
    """
    n, m = len(queries), len(targets)
    k = min(k, m)
    scores = np.empty((n, k), np.float32)
    indices = np.empty((n, k), np.int64)
    for row in range(0, n, tile):
        block = queries[row : row + tile]
        best_s = np.empty((len(block), 0), np.float32)
        best_i = np.empty((len(block), 0), np.int64)
        for column in range(0, m, tile):
            s = block @ targets[column : column + tile].T
            i = np.broadcast_to(np.arange(column, column + s.shape[1]), s.shape)
            s, i = np.hstack([best_s, s]), np.hstack([best_i, i])
            order = np.argsort(-s, axis=1, kind="stable")[:, :k]
            best_s, best_i = np.take_along_axis(s, order, 1), np.take_along_axis(i, order, 1)
        scores[row : row + tile], indices[row : row + tile] = best_s, best_i
    return scores, indices


def margin(cosine: Float, mean_of_query: Float, mean_of_target: Float) -> Float:
    """The ratio margin of Artetxe and Schwenk (2019, arXiv 1811.01136, equation 3).

    cosine divided by the mean of the two sides' average cosine to their own k nearest
    neighbours: a target that is near to everything (a hub) loses. The arguments broadcast;
    the result has their common shape, float32. Where that mean is below `LEAST_MEAN` it counts
    as that: unrelated vectors of a centred encoder have cosines around 0, and dividing by
    nearly nothing, or by less, would turn the order around.
    """
    around = np.maximum((mean_of_query + mean_of_target) / 2, LEAST_MEAN)
    found: Float = np.divide(cosine, around, dtype=np.float32)
    return found
