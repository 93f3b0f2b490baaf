"""What is particular to the store over Milvus: its limits, its index, and who else may be there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mexma.errors import (
    CollectionNotFound,
    FingerprintMismatch,
    InputError,
    StoreError,
    StoreFailed,
    StoreUnsupported,
)
from service.settings import Settings
from service.store.milvus import connection, ranking, store
from service.store.milvus import rows as fields
from service.store.milvus.store import MilvusStore
from service.store.protocol import Document, Query, Selection
from tests.conftest import ROOT

from ..reference import ReferenceStore
from ..test_search_against_reference import (
    DIM,
    histories,
    queries,
    query_tags,
    replay,
    rows_any,
    rows_positive,
)

PRINT = "encoder"


def random_rows(n: int, dim: int = 8) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((n, dim)).astype(np.float32)


def filled(made: MilvusStore, rows: np.ndarray, name: str = "c") -> None:
    made.create(name, rows.shape[1], PRINT)
    tags = ["en", "fi", "pt-BR"]
    documents = [Document(f"d{i}", f"text {i}", tags[i % 3], {"n": i}) for i in range(len(rows))]
    for start in range(0, len(rows), 100):
        part = slice(start, start + 100)
        made.upsert(name, documents[part], rows[part], PRINT)


few = settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@few
@given(histories(rows_any), st.lists(st.tuples(rows_any, query_tags), max_size=4), queries)
def test_searches_by_cosine_are_the_reference_s(milvus_store, monkeypatch, history, asked, query):
    """Ties and borders included: candidates are widened until they cannot change the order."""
    monkeypatch.setattr(ranking, "SLACK", 0)
    tags, vectors = [t for _, t in asked], np.array([v for v, _ in asked], np.float32)
    reference = ReferenceStore()
    milvus_store.create("c", DIM, PRINT)
    milvus_store.drop("c")
    replay(history, milvus_store, reference)
    chosen = Query(**query)
    vectors = vectors.reshape(-1, DIM)
    expected = reference.search("c", vectors, chosen, PRINT, tags)
    assert milvus_store.search("c", vectors, chosen, PRINT, tags) == expected
    assert milvus_store.describe("c").languages == reference.describe("c").languages
    selection = Selection(chosen.languages, chosen.filter)
    assert milvus_store.count("c", selection) == reference.count("c", selection)
    pages = [s.scroll("c", selection, 99).documents for s in (milvus_store, reference)]
    assert pages[0] == pages[1]
    assert milvus_store.delete_where("c", selection) == reference.delete_where("c", selection)
    assert milvus_store.describe("c").languages == reference.describe("c").languages


@few
@given(histories(rows_positive), st.tuples(rows_positive, query_tags), queries)
def test_searches_by_margin_are_the_reference_s(milvus_store, history, asked, query):
    vector, tag = np.array([asked[0]], np.float32), asked[1]
    reference = ReferenceStore()
    milvus_store.create("c", DIM, PRINT)
    milvus_store.drop("c")
    replay(history, milvus_store, reference)
    chosen = Query(**{**query, "score": "margin", "per_language": False})
    [expected] = reference.search("c", vector, chosen, PRINT, [tag])
    [found] = milvus_store.search("c", vector, chosen, PRINT, [tag])
    scores = [hit.score for hit in found]
    assert scores == sorted(scores, reverse=True)
    # Means are added in another order, so near-ties may change places.
    assert scores == pytest.approx([h.score for h in expected], rel=1e-5, abs=1e-6)
    known = {hit.id: hit for hit in expected}
    for hit in found:
        if hit.id in known:
            assert (hit.cosine, hit.mutual) == (known[hit.id].cosine, known[hit.id].mutual)


def test_more_documents_than_one_answer_holds(milvus_store, monkeypatch):
    """Scrolling and languages go on beyond what Milvus returns at once; searches say that they end."""
    monkeypatch.setattr(connection, "MAX_ROWS", 7)
    filled(milvus_store, random_rows(60))
    milvus_store.delete("c", ["d20", "d21", "d40"])
    again = [Document("d3", "again", "fi", {"n": 3})]
    milvus_store.upsert("c", again, np.ones((1, 8), np.float32), PRINT)
    order = [f"d{i}" for i in range(60) if i not in (3, 20, 21, 40)] + ["d3"]
    for limit in (1, 4, 6, 7, 25, 57, 100):
        found, cursor = [], None
        while True:
            page = milvus_store.scroll("c", Selection(), limit, cursor)
            found += [d.id for d in page.documents]
            if (cursor := page.cursor) is None:
                break
            assert len(page.documents) == limit
        assert found == order
    info = milvus_store.describe("c")
    assert (info.count, info.languages) == (57, {"en": 18, "fi": 20, "pt-BR": 19})
    assert len(milvus_store.search("c", random_rows(1), Query(k=6), PRINT)[0]) == 6
    for query in (Query(k=8), Query(score="margin", exact=True)):
        with pytest.raises(InputError, match="returns 7 documents for a query at most"):
            milvus_store.search("c", random_rows(1), query, PRINT)


def test_a_long_tie_is_in_the_order_of_writing(milvus_store):
    filled(milvus_store, np.ones((90, 8), np.float32))
    for k in (1, 5, 60):
        [hits] = milvus_store.search("c", np.ones((1, 8), np.float32), Query(k=k), PRINT)
        assert [hit.id for hit in hits] == [f"d{i}" for i in range(k)]


@pytest.mark.parametrize(
    ("document", "limit"),
    [
        (Document("b", "é" * 32_768, "en"), 65_535),
        (Document("b", "t", "en", {"k": "x" * 65_536}), 65_535),
        (Document("b", "t", "en", {"k": [*range(4_096)]}), 4_096),
        (Document("b", "t", "en", {f"k{i}": "語" * 256 for i in range(40)}), 65_535),
        (Document("b", "t", "-".join(["abcdefgh"] * 29)), 255),
    ],
)
def test_what_does_not_fit_is_refused_whole(milvus_store, document, limit):
    milvus_store.create("c", 2, PRINT)
    documents, vectors = [Document("a", "a", "en"), document], np.ones((2, 2), np.float32)
    with pytest.raises(InputError, match=f"document 1 .* {limit} .*Milvus") as caught:
        milvus_store.upsert("c", documents, vectors, PRINT)
    assert (caught.value.item, caught.value.limit) == (1, limit)
    assert milvus_store.describe("c").count == 0
    with pytest.raises(InputError, match="2 at least in Milvus"):
        milvus_store.create("thin", 1, PRINT)


def test_a_large_write_goes_in_parts(milvus_store, monkeypatch):
    sent = []
    call = connection.Connection.call

    def counted(self, method, *args, **kwargs):
        sent.append(method)
        return call(self, method, *args, **kwargs)

    monkeypatch.setattr(connection.Connection, "call", counted)
    monkeypatch.setattr(fields, "REQUEST_BYTES", 4_000)
    filled(milvus_store, random_rows(100))
    assert sent.count("upsert") > 1
    assert milvus_store.describe("c").count == 100


def test_an_approximate_index(milvus_server, milvus_store, monkeypatch):
    rows = random_rows(400)
    with closing(MilvusStore(milvus_server.uri, index="HNSW")) as graph:
        filled(graph, rows, "graph")
        filled(milvus_store, rows, "flat")
        assert graph.describe("graph").index_state == "approximate"
        assert milvus_store.describe("graph").index_state == "approximate", "as it was made"
        asked = random_rows(30)[20:]
        expected = milvus_store.search("flat", asked, Query(), PRINT)
        found = graph.explain("graph", asked, Query(), PRINT)
        assert {one.path for one in found} == {"approximate"}
        near = {(n, h.id) for n, one in enumerate(found) for h in one.hits}
        right = {(n, h.id) for n, hits in enumerate(expected) for h in hits}
        assert len(near & right) >= 0.95 * len(right)
        exactly = graph.explain("graph", asked, Query(exact=True), PRINT)
        assert [one.hits for one in exactly] == expected
        assert {one.path for one in exactly} == {"exact"}
        assert len(graph.search("graph", asked[:1], Query(k=400), PRINT)[0]) == 400
        monkeypatch.setattr(connection, "MAX_ROWS", 200)
        with pytest.raises(StoreUnsupported, match="approximate index"):
            graph.search("graph", asked, Query(exact=True), PRINT)


def test_writers_see_each_other(milvus_server, milvus_store):
    """Two services on one Milvus: what one has acknowledged, the other finds, and in its order."""
    rows = random_rows(6)
    filled(milvus_store, rows[:2])
    with closing(MilvusStore(milvus_server.uri)) as other:
        assert other.describe("c").count == 2
        new = [Document("d1", "changed", "sv"), Document("d9", "new", "sv")]
        assert other.upsert("c", new, rows[2:4], PRINT) == ["updated", "created"]
        assert milvus_store.get("c", "d1").text == "changed"
        assert milvus_store.upsert("c", new[1:], rows[3:4], PRINT) == ["updated"]
        order = [d.id for d in milvus_store.scroll("c", Selection(), 9).documents]
        assert order == ["d0", "d1", "d9"]
        assert milvus_store.describe("c").languages == {"en": 1, "sv": 2}
        other.drop("c")
    with pytest.raises(CollectionNotFound):
        milvus_store.count("c", Selection())


def test_a_clock_that_was_set_back_keeps_the_order(milvus_server, milvus_store, monkeypatch):
    rows = random_rows(2)
    filled(milvus_store, rows[:1])
    now = store.time.time_ns()
    monkeypatch.setattr(store.time, "time_ns", lambda: now - 3_600 * 10**9)
    with closing(MilvusStore(milvus_server.uri)) as later:
        later.upsert("c", [Document("later", "t", "en")], rows[1:], PRINT)
        assert [d.id for d in later.scroll("c", Selection(), 9).documents] == ["d0", "later"]


def test_an_encoder_that_changed_behind_our_back_is_refused_by_milvus(
    milvus_server, milvus_store, monkeypatch
):
    """The collection is made anew for another encoder between our look at it and our write."""
    filled(milvus_store, random_rows(2))
    stale = milvus_store._stamp("c")
    with closing(MilvusStore(milvus_server.uri)) as other:
        other.drop("c")
        other.create("c", 8, "another encoder")
        other.upsert("c", [Document("y", "t", "en")], random_rows(1), "another encoder")
        with pytest.raises(FingerprintMismatch):
            milvus_store.search("c", random_rows(1), Query(), PRINT)
        monkeypatch.setattr(milvus_store, "_stamp", lambda *_: stale)
        for use in (
            lambda: milvus_store.upsert("c", [Document("x", "t", "en")], random_rows(1), PRINT),
            lambda: milvus_store.search("c", random_rows(1), Query(), PRINT),
        ):
            with pytest.raises(StoreFailed, match=r"vector_[0-9a-f]{32}"):
                use()
        assert other.describe("c").count == 1


def test_collections_of_others_are_left_alone(milvus_store):
    client = milvus_store._milvus._connected()
    for name in ("mexma_theirs", "theirs"):
        client.create_collection(name, dimension=2)
    try:
        filled(milvus_store, random_rows(1))
        assert [info.name for info in milvus_store.list()] == ["c"]
        for use in (
            lambda: milvus_store.describe("theirs"),
            lambda: milvus_store.create("theirs", 2, PRINT),
            lambda: milvus_store.drop("theirs"),
        ):
            with pytest.raises(StoreError, match="was not made by this service"):
                use()
        assert client.has_collection("mexma_theirs")
    finally:
        for name in ("mexma_theirs", "theirs"):
            client.drop_collection(name)


def test_a_creation_that_was_cut_off_is_finished(milvus_store, monkeypatch):
    """Made, and neither indexed nor loaded; and one that somebody released later."""

    def cut_off(self, stamp):
        raise ConnectionError("cut off")

    with monkeypatch.context() as patched:
        patched.setattr(connection.Connection, "_make_ready", cut_off)
        with pytest.raises(ConnectionError):
            milvus_store.create("c", 8, PRINT)
    rows = random_rows(3)
    filled(milvus_store, rows)
    expected = [hit.id for hit in milvus_store.search("c", rows[:1], Query(), PRINT)[0]]
    assert expected[0] == "d0"
    milvus_store._milvus._connected().release_collection("mexma_c")
    [hits] = milvus_store.search("c", rows[:1], Query(), PRINT)
    assert [hit.id for hit in hits] == expected


def test_backups_are_milvus_s_own_matter(milvus_store):
    milvus_store.create("c", 2, PRINT)
    for use in (
        lambda: milvus_store.back_up("c"),
        lambda: milvus_store.backups("c"),
        lambda: milvus_store.restore("c", "x"),
        lambda: milvus_store.remove_backup("c", "x"),
    ):
        with pytest.raises(StoreUnsupported, match="milvus-backup"):
            use()
    with pytest.raises(InputError, match="collection name"):
        milvus_store.back_up("../c")


@pytest.mark.parametrize("uri", ["./data.db", "milvus:19530", "unix:/tmp/x", ""])
def test_only_addresses_are_taken(uri):
    """pymilvus would take a path for an embedded database of its own."""
    with pytest.raises(StoreFailed, match="http://"):
        MilvusStore(uri)
    if uri:
        with pytest.raises(ValueError, match="milvus_uri"):
            Settings(milvus_uri=uri)


def test_pymilvus_is_imported_only_where_it_was_chosen():
    program = """
import sys, service.__main__, service.index_command, service.store.milvus.store as store
print([m for m in ("pymilvus", "grpc", "pandas") if m in sys.modules])
sys.modules["pymilvus"] = None
try:
    store.MilvusStore("http://127.0.0.1:1")
except Exception as e:
    print(type(e).__name__, e)
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MEXMA_")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )  # fmt: skip
    loaded, said = done.stdout.strip().split("\n")
    assert loaded == "[]"
    assert re.match(r"InstallationError .*pip install -e '\.\[milvus\]'", said)
