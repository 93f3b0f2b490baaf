"""How differently two encoders answer, from vectors of both for the same documents.

Refuses to know: SQLite, texts, which encoder is better.
"""

from __future__ import annotations

import numpy as np

from service.store.index import Index, Mask, Snapshot
from service.store.moving import Overlap
from service.store.nearest import nearest


def compare(serving: Snapshot, other: Snapshot, k: int, sample: int) -> Overlap | None:
    """Of up to `sample` documents, evenly spaced in the order of writing, the k nearest in each.

    Only documents that are in both count, and none is its own neighbour. k is at most half of the
    others, since of few documents any two encoders find the same. None below three documents.
    """
    common, in_serving, in_other = np.intersect1d(
        serving.rids[serving.alive],
        other.rids[other.alive],
        assume_unique=True,
        return_indices=True,
    )
    if len(common) < 3:
        return None
    k = min(k, (len(common) - 1) // 2)
    chosen = np.unique(np.linspace(0, len(common) - 1, min(sample, len(common))).astype(np.int64))
    found = []
    for snapshot, places in ((serving, in_serving), (other, in_other)):
        positions = np.flatnonzero(snapshot.alive)[places]
        mask = np.zeros(len(snapshot.alive), np.bool_)
        mask[positions] = True
        found.append(_others(snapshot, positions[chosen], k, mask))
    positions = np.flatnonzero(other.alive)[in_other][chosen]
    recall = 1.0
    if other.attached is not None:
        asked = _others(other, positions, k, other.alive, exact=False)
        exact = _others(other, positions, k, other.alive)
        recall = _shared(asked, exact, k)
    return Overlap(k, len(chosen), len(common), _shared(found[0], found[1], k), recall)


def _others(
    snapshot: Snapshot, positions: Index, k: int, mask: Mask, *, exact: bool = True
) -> list[set[int]]:
    """Per row the rids of its k nearest other rows of `mask`."""
    hits = nearest(snapshot, snapshot.vectors(positions), k + 1, mask, exact=exact)
    found = []
    for position, hit in zip(positions, hits, strict=True):
        # Among many copies of it a row may not be found itself; then the last is one too many.
        found.append(set(snapshot.rids[hit.positions[hit.positions != position][:k]].tolist()))
    return found


def _shared(some: list[set[int]], others: list[set[int]], k: int) -> float:
    """Mean share of k that two lists of neighbours have in common."""
    return float(np.mean([len(a & b) for a, b in zip(some, others, strict=True)]) / k)
