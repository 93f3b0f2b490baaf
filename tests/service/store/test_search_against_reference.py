"""The embedded store finds what plain loops over everything find, whatever was done before."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.store import index, nearest
from service.store.filters import parse
from service.store.local import LocalStore
from service.store.protocol import Document, Query, Selection, primary

from .reference import ReferenceStore

PRINT = "encoder"
DIM = 3
IDS = [f"d{i}" for i in range(14)]
TAGS = ["en", "en-GB", "fi", "pt-BR", "pt", "und"]

FILTERS = [
    parse({"field": "write", "gte": 2}),
    parse({"field": "id", "in": ["d0", "d3", "d5", "d7", "d9"]}),
    parse({"or": [{"field": "odd", "exists": False}, {"not": {"field": "write", "eq": 1}}]}),
    parse({"field": "id", "eq": "nobody"}),
]

rows_any = st.lists(st.integers(-2, 2), min_size=DIM, max_size=DIM).filter(any)
# For margins only: cosines of both signs can cancel to a denominator of pure rounding noise.
rows_positive = st.lists(st.integers(0, 3), min_size=DIM, max_size=DIM).filter(any)


def histories(rows):
    """Lists of writes: an upsert is a list of (id, tag, vector), a delete a list of ids."""
    one = st.tuples(st.sampled_from(IDS), st.sampled_from(TAGS), rows)
    upsert = st.lists(one, min_size=1, max_size=10)
    delete = st.lists(st.sampled_from(IDS), max_size=6)
    return st.lists(st.one_of(upsert, upsert, delete), max_size=6)


queries = st.fixed_dictionaries(
    {
        "k": st.integers(1, 20),
        "languages": st.none() | st.frozensets(st.sampled_from(["en", "pt", "pt-BR", "xx"])),
        "exclude_query_language": st.booleans(),
        "per_language": st.booleans(),
        "score_threshold": st.none() | st.sampled_from([-0.37, 0.31, 0.87, 1.13]),
        "exact": st.booleans(),
        "filter": st.none() | st.sampled_from(FILTERS),
        "mutual": st.booleans(),
    }
)
query_tags = st.none() | st.sampled_from(["en", "fi-FI", "und", "xx"])


@pytest.fixture(autouse=True)
def every_path_at_small_size(monkeypatch):
    """Block borders, compaction and widened scans happen in collections of a dozen rows."""
    monkeypatch.setattr(index, "BLOCK_ROWS", 4)
    monkeypatch.setattr(index, "COMPACT_ABOVE_DEAD", 3)
    monkeypatch.setattr(nearest, "SLACK", 0)
    monkeypatch.setattr(nearest, "GATHER_ROWS", 3)


def replay(history, *stores):
    for store in stores:
        store.create("c", DIM, PRINT)
    for n, write in enumerate(history):
        if write and isinstance(write[0], tuple):
            documents = [
                Document(
                    id, f"{id} {n} {i}", t, {"write": n, "id": id} | ({"odd": i} if i % 2 else {})
                )
                for i, (id, t, _) in enumerate(write)
            ]
            vectors = np.array([row for *_, row in write], np.float32)
            outcomes = [s.upsert("c", documents, vectors, PRINT) for s in stores]
        else:
            outcomes = [s.delete("c", write) for s in stores]
        assert outcomes[0] == outcomes[1]


def both_find(history, vectors, tags, query, compare):
    """Ask the reference, the store, and the store after a restart."""
    reference = ReferenceStore()
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(Path(folder), threads=2)
        replay(history, store, reference)
        expected = reference.search("c", vectors, query, PRINT, tags)
        found = store.search("c", vectors, query, PRINT, tags)
        compare(found, expected)
        infos = store.describe("c"), reference.describe("c")
        assert infos[0].languages == infos[1].languages
        assert infos[0].count == infos[1].count
        chosen = Selection(query.languages, query.filter)
        assert store.count("c", chosen) == reference.count("c", chosen)
        pages = store.scroll("c", chosen, 99), reference.scroll("c", chosen, 99)
        assert pages[0].documents == pages[1].documents
        alone = [
            store.search("c", v[None], query, PRINT, [t])[0]
            for v, t in zip(vectors, tags, strict=True)
        ]
        assert alone == found
        store.close()
        again = LocalStore(Path(folder), threads=1)
        assert again.search("c", vectors, query, PRINT, tags) == found
        assert again.describe("c") == infos[0]
        assert again.delete_where("c", chosen) == reference.delete_where("c", chosen)
        assert again.describe("c").languages == reference.describe("c").languages
        again.close()


many = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@many
@given(histories(rows_any), st.lists(st.tuples(rows_any, query_tags), max_size=4), queries)
def test_by_cosine(history, asked, query):
    vectors = np.array([row for row, _ in asked], np.float32).reshape(-1, DIM)

    def same(found, expected):
        assert found == expected

    both_find(history, vectors, [tag for _, tag in asked], Query(**query), same)


@many
@given(
    histories(rows_positive), st.lists(st.tuples(rows_positive, query_tags), max_size=3), queries
)
def test_by_margin(history, asked, query):
    """Up to rounding: means are taken in another order, so near-ties may change places."""
    vectors = np.array([row for row, _ in asked], np.float32).reshape(-1, DIM)

    def by_language(hits):
        groups: dict[str, list] = {}
        for hit in hits:
            groups.setdefault(primary(hit.lang) if query["per_language"] else "", []).append(hit)
        return groups

    def near(found, expected):
        for hits, wanted in zip(found, expected, strict=True):
            groups, wanted_groups = by_language(hits), by_language(wanted)
            assert groups.keys() == wanted_groups.keys()
            assert [h for g in groups.values() for h in g] == hits, "a language's hits together"
            firsts = [g[0].score for g in groups.values()]
            assert firsts == sorted(firsts, reverse=True)
            for group, wanted_group in ((groups[g], wanted_groups[g]) for g in groups):
                scores = [h.score for h in group]
                assert scores == sorted(scores, reverse=True)
                assert scores == pytest.approx([h.score for h in wanted_group], rel=1e-5, abs=1e-6)
                known = {h.id: h for h in wanted_group}
                for hit in group:
                    if hit.id in known:
                        assert hit.cosine == known[hit.id].cosine
                        assert hit.score == pytest.approx(known[hit.id].score, rel=1e-5, abs=1e-6)

    tags = [tag for _, tag in asked]
    both_find(history, vectors, tags, Query(score="margin", **query), near)


def test_many_rows_of_real_shape(tmp_path, monkeypatch):
    """Candidates come from FAISS over several blocks, with deletes; order is by float64 cosines."""
    monkeypatch.undo()
    monkeypatch.setattr(index, "BLOCK_ROWS", 300)
    random = np.random.default_rng(7)
    rows = random.standard_normal((2_000, 48)).astype(np.float32)
    rows[500:900] = rows[500]  # a tie far longer than any k
    store = LocalStore(tmp_path, threads=2)
    store.create("c", 48, PRINT)
    store.upsert("c", [Document(str(i), "t", "en") for i in range(2_000)], rows, PRINT)
    gone = set(random.choice(2_000, 700, replace=False).tolist()) | {500}
    store.delete("c", [str(i) for i in gone])
    asked = np.concatenate([random.standard_normal((30, 48)).astype(np.float32), rows[500:502]])
    found = store.search("c", asked, Query(k=25), PRINT)
    wide = rows.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    for vector, hits in zip(asked.astype(np.float64), found, strict=True):
        cosines = wide @ (vector / np.linalg.norm(vector))
        kept = [i for i in np.lexsort((np.arange(2_000), -cosines.round(7))) if i not in gone]
        assert [h.cosine for h in hits] == pytest.approx(cosines[kept[:25]].tolist(), abs=1e-6)
        assert [int(h.id) for h in hits] == kept[:25]
    store.close()


def test_margin_looks_at_ten_k_candidates_but_exact_at_all(tmp_path, monkeypatch):
    """150 near hubs and one lonely document beyond the first hundred: only `exact` finds it."""
    monkeypatch.undo()
    store = LocalStore(tmp_path, threads=2)
    store.create("c", 3, PRINT)
    crowd = [[1, 0.2 + i / 1e4, 0] for i in range(150)]
    rows = np.array([*crowd, [1, -0.5, 0]], np.float32)
    store.upsert("c", [Document(str(i), "t", "en") for i in range(151)], rows, PRINT)
    asked = np.array([[1, 0, 0]], np.float32)
    for exact, best in ((False, "0"), (True, "150")):
        query = Query(k=1, score="margin", exact=exact)
        assert [h.id for h in store.search("c", asked, query, PRINT)[0]] == [best]
    store.close()
