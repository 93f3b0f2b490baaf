"""Searches, writes and drops at the same time, and the threads they take."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest

from mexma.errors import CollectionNotFound
from service.store import index
from service.store.local import LocalStore
from service.store.protocol import Document, Query
from service.store.threads import ThreadBudget

from .crash_worker import DIM, PRINT, vector_of
from .test_local import filled


def test_readers_see_whole_rows_while_a_writer_works(tmp_path, monkeypatch):
    """Rows of the base are only rewritten, so k hits exist throughout; others come and go."""
    monkeypatch.setattr(index, "BLOCK_ROWS", 64)
    monkeypatch.setattr(index, "COMPACT_ABOVE_DEAD", 100)
    store = filled(tmp_path, "a", count=80)
    done, seen = threading.Event(), []

    def write() -> None:
        try:
            choose = random.Random(1)
            for n in range(250):
                ids = [f"d{i}" for i in choose.sample(range(80), 5)] + [f"x{n % 7}"]
                texts = [f"{id} in write {n}" for id in ids]
                documents = [
                    Document(i, t, "en", {"t": t}) for i, t in zip(ids, texts, strict=True)
                ]
                store.upsert("a", documents, np.array([vector_of(t) for t in texts]), PRINT)
                [[hit]] = store.search("a", vector_of(texts[-1])[None], Query(k=1), PRINT)
                assert (hit.id, hit.text) == (ids[-1], texts[-1]), "own writes are seen"
                if n % 3 == 0:
                    assert store.delete("a", [ids[-1]]) == [ids[-1]]
                    [hits] = store.search("a", vector_of(texts[-1])[None], Query(k=90), PRINT)
                    assert ids[-1] not in [h.id for h in hits], "own deletes are seen"
        finally:
            done.set()

    def read(seed: int) -> int:
        searches, choose = 0, random.Random(seed)
        while not done.is_set() or not searches:
            asked = vector_of(f"asked {choose.random()}")
            score = choose.choice(["cosine", "margin"])
            [hits] = store.search("a", asked[None], Query(k=40, score=score), PRINT)
            assert len({h.id for h in hits}) == 40
            for hit in hits:
                own = vector_of(hit.text)
                cosine = own @ asked / np.linalg.norm(own) / np.linalg.norm(asked)
                assert hit.cosine == pytest.approx(float(cosine), abs=1e-5)
                assert hit.metadata.get("t", hit.text) == hit.text
            searches += 1
        return searches

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read, seed) for seed in range(3)]
        pool.submit(write).result()
        seen = [reader.result() for reader in readers]
    assert all(seen)
    before = store.search("a", vector_of("end")[None], Query(k=90), PRINT)
    store.close()
    again = LocalStore(tmp_path)
    assert again.search("a", vector_of("end")[None], Query(k=90), PRINT) == before
    again.close()


def test_a_reader_is_not_held_up_by_an_open_transaction(tmp_path):
    store = filled(tmp_path, "a")
    collection = store._open["a"]
    with collection._writing, collection._database.transaction() as transaction:
        transaction.delete(list(transaction.rids(["d1"]).values()))
        [hits] = store.search("a", vector_of("text 1 of a")[None], Query(k=1), PRINT)
        assert hits[0].id == "d1"
        assert store.describe("a").count == 60
        assert store.get("a", "d2").text == "text 2 of a"
    store.close()


def test_a_drop_during_searches_is_not_found_and_nothing_else(tmp_path):
    store = filled(tmp_path, "a")
    ready = threading.Barrier(4)

    def search_until_gone() -> str:
        ready.wait()
        while True:
            try:
                assert len(store.search("a", vector_of("x")[None], Query(), PRINT)[0]) == 10
            except CollectionNotFound:
                return "gone"

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(search_until_gone) for _ in range(3)]
        ready.wait()
        store.drop("a")
        assert [reader.result() for reader in readers] == ["gone"] * 3
    assert store.create("a", DIM, PRINT).count == 0
    store.close()


def test_the_thread_budget_holds_in_the_threads_that_search():
    """OpenMP's own count in each scanning thread, and their sum, stay within the budget."""
    budget, scans = ThreadBudget(3), []
    lock, running = threading.Lock(), [0]
    gate = threading.Barrier(6)

    def scan(wanted: int) -> None:
        gate.wait()
        for _ in range(200):
            with budget.take(wanted) as taken:
                with lock:
                    running[0] += taken
                    scans.append((taken, faiss.omp_get_max_threads(), running[0]))
                with lock:
                    running[0] -= taken

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(scan, [1, 1, 2, 3, 5, 64]))
    assert len(scans) == 1_200
    for taken, of_openmp, total in scans:
        assert taken == of_openmp
        assert 1 <= total <= 3
    with pytest.raises(ValueError, match="at least 1"):
        ThreadBudget(0)
