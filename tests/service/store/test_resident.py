"""Rows on a GPU: what they find, what filters and deletes leave, growth, and a GPU that has no room.

Where FAISS sees a GPU they are there. Elsewhere FAISS's own rows of 2 bytes on the CPU, with the same calls,
stand for it: all that is not the device itself is the same.
"""

from __future__ import annotations

import logging
import threading

import faiss
import numpy as np
import pytest

from benchmarks.gpu_search import on_cpu
from mexma.errors import InstallationError
from service.__main__ import _gpu
from service.settings import Settings
from service.store import caretaker, planner, resident
from service.store.filters import parse
from service.store.local import LocalStore
from service.store.protocol import Query, Selection
from service.store.resident import Gpu, Resident

from .test_index import PRINT, WIDE, put, recall, rows_of

THERE = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


@pytest.fixture(autouse=True)
def small_collections_are_large(monkeypatch):
    monkeypatch.setattr(planner, "EXACT_ROWS", 20)
    monkeypatch.setattr(planner, "EXACT_FETCH", 0.2)
    monkeypatch.setattr(caretaker, "TAIL_ROWS", 300)
    monkeypatch.setattr(resident, "ADD_ROWS", 128)


@pytest.fixture
def gpu() -> Gpu:
    return Gpu.first() if THERE else Gpu(on_cpu)


@pytest.fixture
def store(tmp_path, gpu):
    store = LocalStore(tmp_path, threads=1, gpu=gpu)
    store.create("c", WIDE, PRINT)
    put(store, rows_of(2_000))
    store.settle()
    yield store
    store.close()


def built(store: LocalStore) -> Resident:
    found = store._open["c"]._snapshot.attached.built
    assert isinstance(found, Resident)
    return found


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"k": 37},
        {"languages": frozenset({"fi"})},
        {"per_language": True, "k": 4},
        {"filter": parse({"field": "ten", "in": [1, 2]})},
        {"mutual": True},
    ],
    ids=str,
)
def test_it_finds_what_an_exact_search_finds(store, query):
    found, paths = recall(store, rows_of(40, 1), **query)
    assert found == 1
    assert paths == {"approximate"}, "the GPU was asked"
    assert store.describe("c").index_state == "approximate"


def test_nothing_of_it_is_on_disk_and_a_restart_makes_it_again(store, tmp_path, gpu):
    assert not [*tmp_path.glob("c.*/index/g*")]
    store.close()
    again = LocalStore(tmp_path, threads=1, gpu=gpu)
    again.settle()
    assert recall(again, rows_of(40, 1)) == (1, {"approximate"})
    again.close()


def test_deleted_rows_are_not_found_and_new_ones_are(store):
    put(store, rows_of(200, 2), 2_000)  # a tail, compared by itself
    store.delete("c", [f"d{i}" for i in range(0, 2_200, 7)])
    assert recall(store, rows_of(40, 1)) == (1, {"approximate"})
    before = built(store)
    put(store, rows_of(600, 3), 2_200)
    store.settle()
    after = built(store)
    assert after.index is before.index and len(after.rids) > len(before.rids), "rows were added"
    assert recall(store, rows_of(40, 1)) == (1, {"approximate"})
    # What was made before it grew proposes none of the rows behind its own.
    proposed = before.candidates(rows_of(40, 1), 300, None, 1.0)
    assert proposed.max() < len(before.rids)


def test_with_many_deleted_it_is_made_anew(store):
    before = built(store)
    store.delete_where("c", Selection(filter=parse({"field": "ten", "in": [0, 1, 2, 3]})))
    store.settle()
    after = built(store)
    assert after.index is not before.index
    assert after.index.ntotal == len(after.rids) == 1_200
    assert recall(store, rows_of(40, 1)) == (1, {"approximate"})


def test_a_filter_that_nothing_near_meets_still_gets_its_k(store):
    far = rows_of(1, 5)[0]
    cosines = rows_of(2_000) @ far
    nearest = np.argsort(-cosines)[:1_500]
    store.delete("c", [f"d{i}" for i in nearest])
    [one] = store.explain(
        "c", far[None], Query(k=10, filter=parse({"field": "ten", "eq": 3})), PRINT
    )
    assert len(one.hits) == 10


def test_rows_that_were_half_added_are_never_taken_for_others(store, monkeypatch, caplog):
    """A GPU that runs out of memory in the midst of growth holds rows that nobody counts."""
    before, calls = built(store), []
    add = type(before.index).add

    def full(index, rows):
        calls.append(len(rows))
        if len(calls) > 2:
            raise RuntimeError("out of memory")
        add(index, rows)

    with monkeypatch.context() as patched:
        patched.setattr(type(before.index), "add", full)
        put(store, rows_of(500, 6), 2_000)
        store.settle()
    assert "its searches stay exact" in caplog.text
    assert built(store) is before and not before.extends
    assert recall(store, rows_of(40, 1)) == (1, {"approximate"}), "as before, and a tail"
    put(store, rows_of(700, 7), 2_500)  # it is tried again at a tenth more
    store.settle()
    assert built(store).index is not before.index
    assert len(built(store).rids) == 3_200
    assert recall(store, rows_of(40, 1)) == (1, {"approximate"})


def test_a_collection_for_which_too_little_is_left_stays_exact(tmp_path, gpu, caplog):
    need = 2_000 * WIDE * 2
    store = LocalStore(tmp_path, threads=1, gpu=gpu, index_memory_bytes=need - 1)
    store.create("c", WIDE, PRINT)
    with caplog.at_level(logging.WARNING):
        put(store, rows_of(2_000))
        store.settle()
    assert "MEXMA_INDEX_MEMORY_MB" in caplog.text
    assert recall(store, rows_of(5, 1)) == (1, {"exact"})
    store.close()


def test_searches_beside_writes_are_right(store):
    asked, wrong = rows_of(20, 1), []
    over = threading.Event()

    def search() -> None:
        while not over.is_set():
            for hits in store.search("c", asked, Query(k=10), PRINT):
                cosines = [hit.cosine for hit in hits]
                if len(hits) != 10 or cosines != sorted(cosines, reverse=True):
                    wrong.append(hits)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for n in range(12):
        put(store, rows_of(100, 10 + n), 2_000 + 100 * n)
        store.delete("c", [f"d{i}" for i in range(50 * n, 50 * n + 50)])
    store.settle()
    over.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert recall(store, asked) == (1, {"approximate"})


def test_a_gpu_that_is_not_there_is_said(caplog):
    """`auto` goes on with the CPU and says so; who insists is refused."""
    if THERE:
        assert _gpu(Settings(index_device="cuda")) is not None
        return
    assert _gpu(Settings()) is None and not caplog.text
    with caplog.at_level(logging.WARNING):
        assert _gpu(Settings(device="cuda")) is None
    assert "searched on the CPU" in caplog.text
    with pytest.raises(InstallationError, match=r"MEXMA_INDEX_DEVICE=cuda.*(faiss-gpu|none)"):
        _gpu(Settings(index_device="cuda"))
