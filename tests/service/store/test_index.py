"""Approximate indexes: what they find, when they are made, their files, and damage to those."""

from __future__ import annotations

import errno
import json
import logging
import shutil
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.store import approximate, caretaker, durable, generations, index, planner
from service.store.approximate import Approximate, Shape
from service.store.columns import Columns
from service.store.filters import parse
from service.store.gauges import RecallGauge, hubness
from service.store.index import Attached, Snapshot
from service.store.local import LocalStore
from service.store.planner import plan
from service.store.protocol import RECALL, Document, Query
from service.store.threads import ThreadBudget

from .reference import ReferenceStore
from .test_search_against_reference import (
    DIM,
    PRINT,
    every_path_at_small_size,  # noqa: F401 a fixture of this module too
    histories,
    queries,
    query_tags,
    replay,
    rows_any,
)

WIDE = 32


@pytest.fixture(autouse=True)
def indexes_for_small_collections(monkeypatch):
    monkeypatch.setattr(planner, "EXACT_ROWS", 20)
    monkeypatch.setattr(planner, "EXACT_FETCH", 0.2)
    monkeypatch.setattr(caretaker, "TAIL_ROWS", 300)
    monkeypatch.setattr(approximate, "ADD_ROWS", 100)


def rows_of(count: int, seed: int = 0) -> np.ndarray:
    """float32 `[count, WIDE]` in 40 clusters, as sentence vectors are: not the hardest case."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((40, WIDE))
    rows = centres[random.integers(0, 40, count)] + 0.6 * random.standard_normal((count, WIDE))
    return rows.astype(np.float32)


def put(store: LocalStore, rows: np.ndarray, first: int = 0, name: str = "c") -> None:
    documents = [
        Document(f"d{i}", f"text {i}", "en" if i % 3 else "fi", {"i": i, "ten": i % 10})
        for i in range(first, first + len(rows))
    ]
    store.upsert(name, documents, rows, PRINT)


def filled(root: Path, count: int = 2_000, **options) -> LocalStore:
    store = LocalStore(root, threads=1, **options)
    store.create("c", WIDE, PRINT)
    put(store, rows_of(count))
    store.settle()
    return store


def recall(store: LocalStore, asked: np.ndarray, **query) -> tuple[float, set[str]]:
    """Of the exact answer, what is found; each hit must have the exact answer's score."""
    found = store.explain("c", asked, Query(**query), PRINT)
    exact = store.explain("c", asked, Query(**query, exact=True), PRINT)
    assert {one.path for one in exact} <= {"exact", "filtered_exact"}
    shares = []
    for one, expected in zip(found, exact, strict=True):
        assert len(one.hits) == len(expected.hits), "k where k exist"
        scores = {hit.id: hit.cosine for hit in expected.hits}
        assert all(hit.cosine == scores.get(hit.id, hit.cosine) for hit in one.hits)
        if not query.get("per_language"):
            cosines = [hit.cosine for hit in one.hits]
            assert cosines == sorted(cosines, reverse=True)
        shares.append(len({h.id for h in one.hits} & scores.keys()) / max(len(scores), 1))
    return float(np.mean(shares)), {one.path for one in found}


def generation_names(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob("c.*/index/*"))


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    histories(rows_any),
    histories(rows_any),
    st.lists(st.tuples(rows_any, query_tags), min_size=1, max_size=3),
    queries,
)
def test_an_index_that_sees_all_rows_finds_what_plain_loops_find(before, after, asked, query):
    """Built in the midst of a history: rows before it, a tail, deletes in both, and compaction."""
    with pytest.MonkeyPatch.context() as patched, tempfile.TemporaryDirectory() as folder:
        patched.setattr(planner, "EXACT_ROWS", 0)
        patched.setattr(planner, "EXACT_SHARE", 0)
        patched.setattr(planner, "EXACT_FETCH", 10**9)
        patched.setattr(caretaker, "TAIL_ROWS", 3)
        reference, vectors = ReferenceStore(), np.array([row for row, _ in asked], np.float32)
        tags, chosen = [tag for _, tag in asked], Query(**query)
        store = LocalStore(Path(folder), threads=1)
        replay(before, store, reference)
        store.settle()
        replay(after, store, reference)
        found = store.search("c", vectors, chosen, PRINT, tags)
        assert found == reference.search("c", vectors, chosen, PRINT, tags)
        store.settle()
        assert store.search("c", vectors, chosen, PRINT, tags) == found
        store.close()
        again = LocalStore(Path(folder), threads=1)
        again.settle()
        assert again.search("c", vectors, chosen, PRINT, tags) == found
        assert again.describe("c").index_state == (
            "approximate" if again.list()[0].count else "exact"
        )
        again.close()
    assert DIM == 3


def test_recall_deletes_filters_and_a_tail(tmp_path):
    store, asked = filled(tmp_path, 3_000), rows_of(40, seed=5)
    assert recall(store, asked, k=10) >= (0.97, {"approximate"})
    store.delete("c", [f"d{i}" for i in range(0, 3_000, 7)])
    put(store, rows_of(200, seed=3), first=5_000)
    assert recall(store, asked, k=10) >= (0.97, {"approximate"})
    [one, *_] = store.explain("c", asked, Query(), PRINT)
    assert 10 <= one.candidates < 300 < one.documents
    some = parse({"field": "ten", "in": [1, 2]})
    assert recall(store, asked, k=10, filter=some) >= (0.97, {"approximate"})
    few = parse({"field": "i", "lt": 15})
    assert recall(store, asked, k=10, filter=few) == (1.0, {"filtered_exact"})
    assert recall(store, asked, k=10, languages=frozenset({"fi"})) >= (0.97, {"approximate"})
    assert recall(store, asked, k=5, per_language=True) >= (0.97, {"approximate"})
    assert recall(store, asked[:3], k=2_700) == (1.0, {"exact"}), "nearly all: a scan"
    [hits] = store.search("c", rows_of(200, seed=3)[:1], Query(k=1, mutual=True), PRINT)
    assert (hits[0].id, hits[0].cosine) == ("d5000", pytest.approx(1)), "written after the index"
    store.close()


def test_a_write_leaves_what_was_there_where_it_is(tmp_path):
    """Its work does not grow with the collection: it copies no row, and asks no old one anything."""
    store = filled(tmp_path)
    collection = store._open["c"]
    put(store, rows_of(3, seed=1), first=9_000)  # so that there is room behind each array
    before = collection._snapshot
    put(store, rows_of(3, seed=2), first=9_100)
    after = collection._snapshot
    assert after.attached is before.attached is not None
    assert all(a is b for a, b in zip(after.blocks, before.blocks, strict=True))
    for name in ("rids", "codes", "alive"):
        assert np.shares_memory(getattr(after, name), getattr(before, name)), name
    assert (len(before.alive), len(after.alive)) == (2_003, 2_006)
    store.delete("c", ["d7"])
    assert before.alive.all(), "a state in use is not changed"
    assert not np.shares_memory(collection._snapshot.alive, after.alive)
    store.close()


def test_what_is_kept_of_an_index_is_what_would_be_found_anew(tmp_path):
    store, choose = filled(tmp_path), np.random.default_rng(6)
    collection = store._open["c"]
    for n in range(12):
        some = choose.integers(0, 2_000, 40)
        store.delete("c", [f"d{i}" for i in some[:30]])
        put(store, rows_of(1, seed=n), first=int(some[35]))  # an update
        put(store, rows_of(60, seed=n), first=10_000 + 60 * n)  # and a tail that is taken in
        if n % 4 == 3:
            store.settle()
        now = collection._snapshot
        anew = Attached.to(now.attached.built, now.rids, now.alive, None)
        for name in ("positions", "bits"):
            assert np.array_equal(getattr(now.attached, name), getattr(anew, name)), name
        assert now.attached[2:5] == anew[2:5]
        assert now.count(now.alive) == np.count_nonzero(now.alive)
    assert len(now.attached.built.rids) > 2_000
    store.close()


def test_rows_lie_in_few_blocks(tmp_path):
    rows, none = rows_of(500), np.empty(0, np.int64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(index, "BLOCK_ROWS", 16)
        snapshot = Snapshot(WIDE, ThreadBudget(1), columns=Columns())
        for start in range(0, 500, 7):
            part = rows[start : start + 7]
            rids = np.arange(start, start + len(part)) + 1
            snapshot = snapshot.changed(none, rids, ["en"] * len(part), part, [{}] * len(part))
        assert [len(block) for block in snapshot.blocks] == [16, 16, 32, 64, 128, 256]
        order = np.random.default_rng(2).permutation(500)
        assert np.array_equal(snapshot.vectors(order), rows[order])


def test_fewer_proposed_than_wanted_are_topped_up(tmp_path, monkeypatch):
    store, asked = filled(tmp_path), rows_of(3, seed=5)
    monkeypatch.setattr(
        Approximate,
        "candidates",
        lambda self, queries, *_: np.arange(2)[None].repeat(len(queries), 0),
    )
    assert recall(store, asked, k=10) == (1.0, {"exact"})
    store.close()


def test_a_search_that_asks_for_less_reads_less(tmp_path, monkeypatch):
    store, asked = filled(tmp_path), rows_of(3, seed=5)
    seen, candidates = [], Approximate.candidates
    monkeypatch.setattr(Approximate, "candidates", lambda *a: seen.append(a[-1]) or candidates(*a))
    for wanted in (0.5, 0.99):
        store.search("c", asked, Query(recall=wanted), PRINT)
    store.search("c", asked, Query(), PRINT)
    assert seen == [0.5, 0.99, RECALL]
    store.close()


def test_many_lists_have_their_centroids_in_a_graph(tmp_path, monkeypatch):
    """And it is searched as widely as the lists that are wanted, also after a restart."""
    monkeypatch.setattr(approximate, "GRAPH_LISTS", 8)
    store, asked = filled(tmp_path), rows_of(20, seed=5)
    put(store, rows_of(400, seed=1), first=2_000)
    store.settle()
    for _ in range(2):
        built = store._open["c"]._snapshot.attached.built
        assert built.shape.factory == "IVF50_HNSW32,PQ16x4fs"
        assert len(built.rids) == 2_400
        assert recall(store, asked) >= (0.97, {"approximate"})
        everything = replace(built, reach=((1.0, 50),), depth=16)
        for n, found in enumerate(everything.candidates(asked, 150, None, 1.0)):
            assert np.count_nonzero(found >= 0) == 2_400, f"query {n} sees all lists"
        store.close()
        store = LocalStore(tmp_path, threads=1)
        store.settle()
    store.close()


def test_margins_come_from_the_index_too(tmp_path):
    store, asked = filled(tmp_path), rows_of(5, seed=5)
    found = store.search("c", asked, Query(score="margin", k=5), PRINT)
    exact = store.search("c", asked, Query(score="margin", k=5, exact=True), PRINT)
    for hits, expected in zip(found, exact, strict=True):
        assert len(hits) == 5
        assert hits[0].score == pytest.approx(expected[0].score, rel=0.02)
    store.close()


def test_a_build_holds_up_nobody(tmp_path, monkeypatch):
    """The builder stands still; searches, writes and descriptions go on, and lose nothing."""
    building, go_on, build = threading.Event(), threading.Event(), Approximate.build

    def slowly(*arguments):
        building.set()
        assert go_on.wait(60)
        return build(*arguments)

    monkeypatch.setattr(Approximate, "build", slowly)
    store = LocalStore(tmp_path, threads=1)
    store.create("c", WIDE, PRINT)
    put(store, rows_of(500))
    assert building.wait(60)
    assert store.describe("c").index_state == "building"
    assert recall(store, rows_of(3, seed=1)) == (1.0, {"exact"})
    put(store, rows_of(50, seed=8), first=1_000)
    assert store.delete("c", ["d1", "d2"]) == ["d1", "d2"]
    [[hit]] = store.search("c", rows_of(50, seed=8)[:1], Query(k=1), PRINT)
    assert hit.id == "d1000"
    go_on.set()
    store.settle()
    assert store.describe("c").index_state == "approximate"
    assert store.describe("c").count == 548
    [[hit]] = store.search("c", rows_of(50, seed=8)[:1], Query(k=1), PRINT)
    assert hit.id == "d1000"
    [hits] = store.search("c", rows_of(500)[1:2], Query(k=100), PRINT)
    assert not {"d1", "d2"} & {h.id for h in hits}
    store.close()


def test_closing_and_dropping_stop_a_build(tmp_path, monkeypatch):
    building, closing, sketch = threading.Event(), threading.Event(), approximate.sketch

    def one_part(vectors):
        building.set()
        assert closing.wait(60)
        return sketch(vectors)

    monkeypatch.setattr(approximate, "sketch", one_part)
    store = LocalStore(tmp_path, threads=1)
    for name in ("c", "d"):
        store.create(name, WIDE, PRINT)
    put(store, rows_of(500))
    assert building.wait(60)
    store.drop("c")
    closing.set()
    store.settle()
    put(store, rows_of(500), name="d")
    store.close()
    assert not list(tmp_path.glob("c.*"))
    again = LocalStore(tmp_path, threads=1)
    again.settle()
    assert [(i.name, i.count, i.index_state) for i in again.list()] == [("d", 500, "approximate")]
    again.close()


def test_a_restart_reads_the_file_and_does_not_build(tmp_path, monkeypatch):
    filled(tmp_path).close()
    names = generation_names(tmp_path)
    assert len(names) == 1

    def never(*_):
        raise AssertionError("built")

    monkeypatch.setattr(Approximate, "_filled", never)
    store = LocalStore(tmp_path, threads=1)
    store.settle()
    assert store.describe("c").index_state == "approximate"
    assert generation_names(tmp_path) == names
    put(store, rows_of(50, seed=4), first=3_000)
    assert recall(store, rows_of(20, seed=5)) >= (0.97, {"approximate"})
    store.close()


def test_an_index_grows_by_its_tail_and_is_made_anew_without_its_dead(tmp_path, monkeypatch):
    store = filled(tmp_path)
    put(store, rows_of(400, seed=1), first=2_000)
    store.settle()
    built = store._open["c"]._snapshot.attached.built
    assert len(built.rids) == 2_400
    store.delete("c", [f"d{i}" for i in range(1_000)])
    store.settle()
    assert len(store._open["c"]._snapshot.attached.built.rids) == 1_400
    assert len(generation_names(tmp_path)) == generations.KEPT
    assert recall(store, rows_of(20, seed=5)) >= (0.97, {"approximate"})
    store.close()


def test_what_is_taken_in_often_takes_one_thread(tmp_path, monkeypatch):
    store = filled(tmp_path, 400)
    store.close()
    seen, fill = [], Approximate._filled

    def noticed(*arguments):
        seen.append(faiss.omp_get_max_threads())
        return fill(*arguments)

    monkeypatch.setattr(Approximate, "_filled", noticed)
    store = LocalStore(tmp_path, threads=3)
    put(store, rows_of(301, seed=1), first=1_000)
    store.settle()
    store.delete("c", [f"d{i}" for i in range(300)])  # anew, without its dead
    store.settle()
    assert seen == [1, 3]
    store.close()


def test_an_index_that_has_grown_fourfold_by_little_is_made_anew(tmp_path):
    """Each step is small; its lists and what a search reads of them were for a quarter of the rows."""
    store = filled(tmp_path, 400)
    seen = []
    for n in range(5):
        put(store, rows_of(301, seed=n), first=1_000 + 301 * n)
        store.settle()
        built = store._open["c"]._snapshot.attached.built
        seen.append((len(built.rids), built.measured))
    assert seen == [(701, 400), (1_002, 400), (1_303, 400), (1_604, 1_604), (1_905, 1_604)]
    store.close()
    again = LocalStore(tmp_path, threads=1)
    again.settle()
    assert again._open["c"]._snapshot.attached.built.measured == 1_604
    again.close()


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


FILES = [generations.VECTORS, generations.RIDS, generations.SKETCHES, generations.MANIFEST]


@pytest.mark.parametrize("damage", [flip, cut, lengthen, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_made_again(tmp_path, caplog, damage, name):
    store, asked = filled(tmp_path, 400), rows_of(5, seed=5)
    expected = store.search("c", asked, Query(exact=True), PRINT)
    store.close()
    [before] = tmp_path.glob(f"c.*/index/*/{name}")
    damage(before)
    with caplog.at_level(logging.ERROR):
        store = LocalStore(tmp_path, threads=1)
        store.settle()
    assert str(before) in caplog.text
    assert not before.exists()
    assert store.describe("c").index_state == "approximate"
    assert recall(store, asked) >= (0.97, {"approximate"})
    assert store.search("c", asked, Query(exact=True), PRINT) == expected
    [after] = tmp_path.glob(f"c.*/index/*/{name}")
    assert generations.Generations(after.parents[2], WIDE, PRINT).verify(after.parent)
    store.close()


def test_the_older_generation_serves_where_the_newer_is_damaged(tmp_path, caplog):
    store = filled(tmp_path)
    put(store, rows_of(400, seed=1), first=2_000)
    store.settle()
    store.close()
    older, newer = generation_names(tmp_path)
    [file] = tmp_path.glob(f"c.*/index/{newer}/{generations.VECTORS}")
    flip(file)
    store = LocalStore(tmp_path, threads=1)
    store.settle()
    assert str(file) in caplog.text
    assert older in generation_names(tmp_path)
    assert len(store._open["c"]._snapshot.attached.built.rids) == 2_400
    store.close()


def forged(generation: Path, **changes) -> None:
    """Change a manifest and its hash: whole, and not this collection's."""
    content = durable.read_manifest(generation / generations.MANIFEST) | changes
    (generation / generations.MANIFEST).unlink()
    durable.write_manifest(generation / generations.MANIFEST, content)


@pytest.mark.parametrize(
    "change",
    [{"fingerprint": "another"}, {"dim": 7}, {"faiss": "0.1"}, {"schema": 9}, {"count": 3}],
)
def test_an_index_of_another_kind_is_refused(tmp_path, caplog, change):
    filled(tmp_path, 400).close()
    [generation] = tmp_path.glob("c.*/index/*")
    forged(generation, **change)
    store = LocalStore(tmp_path, threads=1)
    store.settle()
    assert str(generation) in caplog.text
    assert not generation.exists()
    assert recall(store, rows_of(5, seed=5)) >= (0.97, {"approximate"})
    store.close()


def test_an_index_of_other_rows_is_refused(tmp_path, caplog):
    """Whole, of the same encoder and dim, and from another collection, or from its future."""
    filled(tmp_path / "one", 400).close()
    other = LocalStore(tmp_path / "two", threads=1)
    other.create("c", WIDE, PRINT)
    put(other, rows_of(400, seed=77))
    other.settle()
    other.close()
    [mine], [theirs] = (tmp_path.glob(f"{root}/c.*/index/*") for root in ("one", "two"))
    shutil.rmtree(mine)
    shutil.copytree(theirs, mine)
    store = LocalStore(tmp_path / "one", threads=1)
    store.settle()
    assert "its row 1 has another vector" in caplog.text
    assert recall(store, rows_of(5, seed=5)) >= (0.97, {"approximate"})
    store.close()
    [generation] = tmp_path.glob("one/c.*/index/*")
    forged(generation, seq=401)
    store = LocalStore(tmp_path / "one", threads=1)
    store.settle()
    assert "covers rows up to 401, the collection has given up to 400" in caplog.text
    store.close()


def test_a_full_disk_costs_the_file_and_nothing_else(tmp_path, monkeypatch, caplog):
    def full(path, produce):
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(durable, "write", full)
        store = filled(tmp_path, 400)
    assert "No space left on device" in caplog.text
    assert store.describe("c").index_state == "approximate"
    assert generation_names(tmp_path) == []
    put(store, rows_of(400, seed=2), first=400)
    store.settle()
    assert len(generation_names(tmp_path)) == 1, "the next one has room"
    store.close()


def test_too_little_memory_leaves_a_collection_exact(tmp_path, caplog):
    store = filled(tmp_path, 400, index_memory_bytes=1_000)
    assert store.describe("c").index_state == "exact"
    assert "MEXMA_INDEX_MEMORY_MB" in caplog.text
    assert recall(store, rows_of(5, seed=5)) == (1.0, {"exact"})
    store.close()


def test_the_shape_follows_rows_and_memory():
    shape, mib = Shape.choose(1_000_000, 384, 1 << 40), 1 << 20
    assert shape.factory == "IVF4096_HNSW32,PQ192x4fs"
    assert 100 * mib < shape.bytes < 110 * mib
    assert Shape.choose(1_000_000, 384, shape.bytes - 1) is None
    assert Shape.choose(200, 3, 1 << 30).factory == "IVF5,PQ3x4fs"
    assert Shape.choose(15, 384, 1 << 30).factory == "IVF1,Flat", "4 bits need 16 rows to train on"


@pytest.mark.parametrize("equal", [1, 50])
def test_an_index_reads_as_many_lists_as_its_rows_need(equal):
    """Without clusters neighbours lie in many lists; equal rows are as good as one another."""
    faiss.omp_set_num_threads(1)
    random = np.random.default_rng(3)
    rows = random.standard_normal((4_000 // equal, WIDE)).astype(np.float32).repeat(equal, axis=0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    shape = Shape.choose(len(rows), WIDE, 1 << 30)
    built = Approximate.build(shape, np.arange(len(rows)), 0, lambda part: rows[part], bool)
    asked = rows[7::41]
    scores = asked @ rows.T
    bars = np.sort(scores)[:, -11] - 1e-5

    def recall_with(probes: int) -> float:
        found = replace(built, reach=((1.0, probes),)).candidates(asked, 52, None, 1.0)
        hits = [min((scores[n, p[p >= 0]] >= bars[n]).sum(), 11) for n, p in enumerate(found)]
        return (sum(hits) - len(asked)) / (10 * len(asked))

    if equal == 1:
        for wanted in (0.7, 0.9, RECALL):
            assert recall_with(built.probes(wanted)) > wanted - 0.03
        assert recall_with(approximate.LEAST_PROBES) < 0.9 < RECALL
        assert built.probes(0.7) < built.probes(0.9) < built.probes(RECALL) < built.probes(0.99)
        assert sorted(built.reach) == list(built.reach)
        assert built.depth > 1
    else:
        assert (built.probes(RECALL), built.depth) == (approximate.LEAST_PROBES, 1)


@pytest.mark.parametrize(
    ("case", "approximate_"),
    [
        ({}, True),
        ({"exact": True}, False),
        ({"indexed": False}, False),
        ({"matching": 50_000}, False),
        ({"matching": 50_001}, True),
        ({"documents": 10_000_000, "matching": 400_000}, False),
        ({"k": 1_000, "matching": 60_000}, False),
        ({"k": 1_000}, True),
    ],
)
def test_the_plan(monkeypatch, case, approximate_):
    monkeypatch.undo()
    usual = {"matching": 1_000_000, "documents": 1_000_000, "k": 10, "exact": False}
    assert plan(**usual | {"indexed": True} | case).approximate is approximate_


def test_recall_is_measured_on_one_search_in_so_many(tmp_path, monkeypatch):
    store = filled(tmp_path, recall_check_every=2)
    asked = rows_of(1, seed=5)
    for _ in range(3):
        store.search("c", asked, Query(), PRINT)
        store.settle()
    assert store.describe("c").recall == pytest.approx(1.0, abs=0.11)
    monkeypatch.setattr(  # an index that proposes the same 52 rows to everybody
        Approximate,
        "candidates",
        lambda self, queries, *_: np.arange(52)[None].repeat(len(queries), 0),
    )
    for _ in range(40):
        store.search("c", asked, Query(), PRINT)
        store.settle()
    assert store.describe("c").recall < 0.6
    store.close()
    gauge = RecallGauge(0)
    assert not any(gauge.is_due() for _ in range(9))
    assert gauge.recall is None


def test_hubness_notices_a_hub():
    def snapshot(rows: np.ndarray) -> Snapshot:
        units = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        count, none = len(units), np.empty(0, np.int64)
        empty = Snapshot(WIDE, ThreadBudget(1), columns=Columns())
        return empty.changed(none, np.arange(count) + 1, ["en"] * count, units, [{}] * count)

    random = np.random.default_rng(4)
    plain = random.standard_normal((600, WIDE))
    assert hubness(snapshot(plain[:199])) is None
    hubs = plain + 3.0
    hubs[:12] = 3.0 + 0.05 * random.standard_normal((12, WIDE))
    assert hubness(snapshot(hubs)) > hubness(snapshot(plain)) + 1


def test_the_manifest_says_what_the_design_asks_for(tmp_path):
    filled(tmp_path, 400).close()
    [file] = tmp_path.glob("c.*/index/*/manifest.json")
    content = json.loads(file.read_text())["content"]
    assert (content["seq"], content["count"], content["dim"]) == (400, 400, WIDE)
    assert content["fingerprint"] == PRINT
    assert (content["factory"], content["reach"][-1][1]) == ("IVF10,PQ16x4fs", 8)
    assert content["depth"] == 1
    assert {"metric", "faiss", "created_at", "files"} <= content.keys()
