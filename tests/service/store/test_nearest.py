"""What a search takes while it compares."""

from __future__ import annotations

import tracemalloc

import numpy as np

from service.store.index import Snapshot
from service.store.nearest import nearest
from service.store.threads import ThreadBudget

ROWS, DIM = 10_000, 64


def test_a_search_for_very_many_hits_takes_little_memory():
    """The vectors of all of them, widened, would be 75 MB here, and half a gigabyte at 384 dimensions."""
    vectors = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rids = np.arange(1, ROWS + 1)
    empty = Snapshot(DIM, ThreadBudget(1))
    state = empty.changed(rids[:0], rids, ["en"] * ROWS, vectors, [{}] * ROWS)
    tracemalloc.start()
    try:
        found = nearest(state, vectors[:64], 1_500, state.alive)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [len(one.positions) for one in found] == [1_500] * 64
    assert peak < 40 * 2**20
