"""Writes of many callers in one commit: each is whole, answered after it, and harmed by no other."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mexma.errors import CollectionNotFound, MexmaError, StoreFailed
from service.store import index, steps
from service.store.filters import Exists
from service.store.local import LocalStore
from service.store.protocol import Document, Query, Selection

from .crash_worker import PRINT, vector_of
from .test_local import filled

Write = Callable[[LocalStore], Any]


def put(*texts: str, **metadata: Any) -> Write:
    """Upsert documents given as "id: text"."""
    documents = [Document(t.partition(":")[0], t, "en", metadata) for t in texts]
    return lambda store: store.upsert(
        "a", documents, np.array([vector_of(t) for t in texts]), PRINT
    )


def gone(*ids: str) -> Write:
    return lambda store: store.delete("a", ids)


def grouped(store: LocalStore, writes: list[Write]) -> list[Future[Any]]:
    """Have all of them wait for one commit, in this order, then let it go."""
    collection = store._open["a"]
    with ThreadPoolExecutor(len(writes)) as pool, collection._writing:
        futures = []
        for n, write in enumerate(writes, 1):
            futures.append(pool.submit(write, store))
            while len(collection._group._waiting) < n:
                time.sleep(0.001)
        collection._writing.release()  # the pool's own end waits for all of them
        try:
            pool.shutdown()
        finally:
            collection._writing.acquire()
    return futures


def everything(store: LocalStore) -> Any:
    page = store.scroll("a", Selection(), 10_000, vectors=True)
    found = store.search("a", vector_of("asked")[None], Query(k=500), PRINT)
    marked = store.count("a", Selection(filter=Exists(("mark",))))
    return page.documents, page.vectors.tolist(), found, marked, store.describe("a").languages


@pytest.fixture
def commits(monkeypatch) -> list[str]:
    """The steps of commits as they are reached."""
    seen: list[str] = []
    monkeypatch.setattr(steps, "observer", lambda s: seen.append(s) if s.startswith("write") else 0)
    return seen


def test_waiting_writes_share_one_commit(tmp_path, commits):
    store = filled(tmp_path, "a")
    commits.clear()
    futures = grouped(store, [put(f"n{i}: new") for i in range(40)])
    assert [f.result() for f in futures] == [["created"]] * 40
    assert commits.count("write: committed") == 1
    store.close()
    again = LocalStore(tmp_path, threads=1)
    assert again.describe("a").count == 100
    again.close()


def test_nobody_is_answered_before_the_commit(tmp_path, monkeypatch):
    store = filled(tmp_path, "a")
    answered, early = [], []

    def observer(step: str) -> None:
        if step == "write: prepared":
            time.sleep(0.05)  # time to answer too early in
            early.extend(answered)

    def write(store: LocalStore, n: int) -> None:
        put(f"n{n}: new")(store)
        answered.append(n)

    monkeypatch.setattr(steps, "observer", observer)
    grouped(store, [lambda s, n=n: write(s, n) for n in range(10)])
    assert early == []
    assert sorted(answered) == list(range(10))
    store.close()


def random_writes(choose: random.Random, round_: int) -> list[Write]:
    """Few ids, so that the writes of a group meet in the same documents."""
    writes: list[Write] = []
    for n in range(choose.randint(2, 12)):
        ids = [f"x{choose.randrange(12)}" for _ in range(choose.randint(1, 6))]
        what = choose.choice(["put", "put", "gone", "where"])
        if what == "put":
            marks = {"mark": n} if choose.random() < 0.5 else {}
            writes.append(put(*[f"{id}: {round_}.{n}" for id in ids], **marks))
        elif what == "gone":
            writes.append(gone(*ids))
        else:
            writes.append(lambda s: s.delete_where("a", Selection(filter=Exists(("mark",)))))
    return writes


def test_a_group_is_as_its_writes_one_after_the_other(tmp_path, monkeypatch):
    """Outcomes, documents, vectors and metadata, with updates and deletes of what the group itself
    wrote, through compactions; and the same again after a restart."""
    monkeypatch.setattr(index, "BLOCK_ROWS", 16)
    monkeypatch.setattr(index, "COMPACT_ABOVE_DEAD", 20)
    one, other = filled(tmp_path / "one", "a", count=5), filled(tmp_path / "other", "a", count=5)
    choose = random.Random(3)
    for round_ in range(40):
        writes = random_writes(choose, round_)
        expected = [write(one) for write in writes]
        assert [f.result() for f in grouped(other, writes)] == expected
        assert everything(other) == everything(one)
    state = everything(other)
    other.close()
    again = LocalStore(tmp_path / "other", threads=1)
    assert everything(again) == state
    one.close()
    again.close()


def test_one_that_fails_leaves_no_trace_and_harms_no_other(tmp_path, commits):
    store = filled(tmp_path, "a")
    collection = store._open["a"]
    before = store.get("a", "d1")

    def breaks(store: LocalStore) -> None:
        def change(transaction, draft):
            transaction.delete(list(transaction.rids(["d1", "n0"]).values()))
            raise ValueError("half done")

        collection._group.write(1, change)

    commits.clear()
    futures = grouped(store, [put("n0: a"), breaks, put("n1: b"), breaks, gone("d2")])
    errors = [f.exception() for f in futures]
    assert [type(e) for e in errors] == [type(None), ValueError, type(None), ValueError, type(None)]
    assert errors[1] is not errors[3]
    assert commits.count("write: committed") == 1
    assert store.get("a", "d1") == before
    assert store.get("a", "n0").text == "n0: a"
    store.close()
    again = LocalStore(tmp_path, threads=1)
    assert again.describe("a").count == 61
    assert again.get("a", "d1") == before
    again.close()


def test_one_that_fills_the_disk_fails_alone(tmp_path):
    """SQLite gives up more than one write then, the commit included; the others are written."""
    store = filled(tmp_path, "a")
    connection = store._open["a"]._database._writer
    [pages] = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 40}")
    small = [put(f"n{i}: small") for i in range(6)]
    large = put("large: " + "x" * 1_000_000)
    futures = grouped(store, [*small[:3], large, *small[3:], large])
    assert [type(f.exception()) for f in futures] == [
        *[type(None)] * 3, StoreFailed, *[type(None)] * 3, StoreFailed,
    ]  # fmt: skip
    store.close()
    again = LocalStore(tmp_path, threads=1)
    found = {d.id for d in again.scroll("a", Selection(), 1_000).documents}
    assert found == {f"d{i}" for i in range(60)} | {f"n{i}" for i in range(6)}
    again.close()


def test_a_commit_that_fails_is_tried_for_each_alone(tmp_path, monkeypatch):
    store = filled(tmp_path, "a")
    reached: list[int] = []

    def observer(step: str) -> None:
        if step == "write: prepared":
            reached.append(1)
            if len(reached) in (1, 3):
                raise OSError("no")

    monkeypatch.setattr(steps, "observer", observer)
    futures = grouped(store, [put(f"n{i}: new") for i in range(4)])
    # The first commit is that of all, the third that of the second write alone.
    assert [f.exception() is None for f in futures] == [True, False, True, True]
    monkeypatch.undo()
    assert {f"n{i}" for i in (0, 2, 3)} < {
        d.id for d in store.scroll("a", Selection(), 99).documents
    }
    with pytest.raises(MexmaError):
        store.get("a", "n1")
    store.close()


def test_a_closed_collection_refuses_each_of_a_group(tmp_path):
    store = filled(tmp_path, "a")
    collection = store._open["a"]
    with ThreadPoolExecutor(5) as pool:
        with collection.held():
            futures = [pool.submit(put(f"n{i}: new"), store) for i in range(5)]
            while len(collection._group._waiting) < 5:
                time.sleep(0.001)
            del store._open["a"]
            collection.end()
        errors = [f.exception() for f in futures]
    assert {type(e) for e in errors} == {CollectionNotFound}
    assert len({id(e) for e in errors}) == 5, "one object raised by many gathers their tracebacks"
    store.close()


def test_many_writers_and_nothing_is_lost(tmp_path: Path):
    """No order is forced here: threads come as they come, and each sees its own write."""
    store = filled(tmp_path, "a", count=1)
    begin = threading.Barrier(16)

    def write(thread: int) -> None:
        begin.wait()
        for n in range(40):
            assert put(f"t{thread}n{n}: {n}", f"t{thread}: {n}")(store)[0] == "created"
            assert store.get("a", f"t{thread}").text == f"t{thread}: {n}"

    with ThreadPoolExecutor(16) as pool:
        for done in [pool.submit(write, thread) for thread in range(16)]:
            done.result()
    assert store.describe("a").count == 1 + 16 * 41
    state = everything(store)
    store.close()
    again = LocalStore(tmp_path, threads=1)
    assert everything(again) == state
    again.close()
