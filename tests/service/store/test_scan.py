"""A scan leaves out no row that scores higher than the last it gives, whatever is masked."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from service.store import index, loaded_faiss, scan
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


def test_rows_before_the_first_are_not_looked_at():
    snapshot, queries = rows(1_234, 5_000, 2), np.eye(DIM, dtype=np.float32)[:3]
    mask = np.ones(1_234, np.bool_)
    for first in (0, 99, 100, 101, 777, 1_230):
        snapshot.blocks[0][:] = np.nan if first >= 100 else 1
        scores = queries @ snapshot.vectors(np.arange(first, 1_234)).T
        for q, (found, last) in enumerate(scan.best(snapshot, queries, 4, mask, first)):
            assert sorted(scores[q, found - first])[0] == pytest.approx(last, abs=1e-6)
            assert np.sort(scores[q])[-4] == pytest.approx(last, abs=1e-6)


def test_faiss_is_told_which_processor_this_is():
    """Its library does not know newer ones, and takes them for much older ones."""
    script = """
import json, os, sys
before = dict(os.environ)
import service.store.approximate
from threadpoolctl import ThreadpoolController
assert dict(os.environ) == before
seen = {}
for library in ThreadpoolController().info():
    if library["user_api"] == "blas":
        seen["faiss" if "faiss" in library["filepath"] else "numpy"] = library["architecture"]
json.dump(seen, sys.stdout)
"""
    environment = {k: v for k, v in os.environ.items() if k != loaded_faiss.VARIABLE}
    seen = json.loads(subprocess.check_output([sys.executable, "-c", script], env=environment))
    told = loaded_faiss.NEWER.get(seen["numpy"], seen["numpy"])
    assert told not in loaded_faiss.KNOWN or seen["faiss"] == told
    chosen = environment | {loaded_faiss.VARIABLE: "Haswell"}
    asked = script.replace("json.dump(seen", 'json.dump({"faiss": seen["faiss"]}')
    seen = json.loads(subprocess.check_output([sys.executable, "-c", asked], env=chosen))
    assert seen["faiss"] == "Haswell", "who has chosen already is left alone"


def test_a_product_takes_the_thread_that_asks_for_it():
    ThreadBudget(2)
    libraries = ThreadpoolController().select(user_api="blas").info()
    [own] = [lib for lib in libraries if "numpy" in lib["filepath"]]
    assert own["num_threads"] == 1
