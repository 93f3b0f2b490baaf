"""A scan leaves out no row that scores higher than the last it gives, whatever is masked."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from service.store import index, scan
from service.store.index import Snapshot
from service.store.threads import ThreadBudget

DIM = 8
NONE = np.empty(0, np.int64)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Tiles end within blocks, and blocks within the rows."""
    monkeypatch.setattr(index, "BLOCK_ROWS", 100)
    monkeypatch.setattr(scan, "TILE_SCORES", 150)


def rows(count: int, kinds: int, threads: int) -> Snapshot:
    """Each row one of so many kinds, so that there are ties."""
    draw = np.random.default_rng(count)
    vectors = draw.standard_normal((kinds, DIM)).astype(np.float32)[draw.integers(0, kinds, count)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    snapshot = Snapshot(DIM, ThreadBudget(threads))
    return snapshot.changed(NONE, np.arange(1, count + 1), ["en"] * count, vectors, [{}] * count)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kinds", [1, 7, 5_000])
@pytest.mark.parametrize("share", [0.03, 0.5, 1.0])
def test_no_better_row_is_left_out(threads, kinds, share):
    draw = np.random.default_rng(7)
    snapshot = rows(1_234, kinds, threads)
    for n in (1, 5, 64):
        mask = draw.random(1_234) < share
        mask[200:400] = False  # tiles without any
        allowed = np.flatnonzero(mask)
        queries = draw.standard_normal((n, DIM)).astype(np.float32)
        scores = queries @ snapshot.vectors(np.arange(1_234)).T
        for fetch in (1, 9, len(allowed) - 1):
            for q, (found, last) in enumerate(scan.best(snapshot, queries, fetch, mask)):
                assert len(found) == len(set(found.tolist())) == fetch
                assert mask[found].all()
                assert last == pytest.approx(float(scores[q, found].min()), abs=1e-5)
                others = np.setdiff1d(allowed, found)
                assert scores[q, others].max(initial=-9) <= last + 1e-5


def test_a_product_takes_the_thread_that_asks_for_it():
    ThreadBudget(2)
    libraries = ThreadpoolController().select(user_api="blas").info()
    [own] = [lib for lib in libraries if "numpy" in lib["filepath"]]
    assert own["num_threads"] == 1
