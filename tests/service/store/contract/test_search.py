"""Search: which documents, in which order, with which scores."""

from __future__ import annotations

import pytest

from mexma.errors import InputError
from service.store.filters import parse
from service.store.protocol import Query, Terms

from .given import PRINT, fill, ids, vectors


@pytest.mark.parametrize(
    "bad",
    [
        {"k": 0},
        {"score": "dot"},
        {"score_threshold": float("nan")},
        {"recall": 0.4},
        {"recall": 0.991},
        {"recall": float("nan")},
    ],
)
def test_bad_queries_are_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        Query(**bad)


def test_equal_cosines_come_in_the_order_of_writing(store):
    fill(store, {id: ("en", [1, 1]) for id in "cab"})
    fill(store, {"c": ("en", [1, 1])})
    for k in (1, 2, 3):
        [hits] = store.search("c", vectors([1, 0]), Query(k=k), PRINT)
        assert ids(hits) == ["a", "b", "c"][:k]


def test_margin_demotes_a_hub(store):
    """Two documents equally near the query: the one that is near to much else comes second."""
    hub, lonely = [1, 0.5, 0], [1, -0.5, 0]
    around_hub = {f"h{i}": ("en", [1, 0.55 + i / 100, 0]) for i in range(4)}
    far = {f"f{i}": ("en", [-0.2, i / 10, 1]) for i in range(4)}
    fill(store, {"hub": ("fi", hub), "lonely": ("fi", lonely), **around_hub, **far})
    by_cosine = Query(k=2, languages=frozenset({"fi"}))
    by_margin = Query(k=2, languages=frozenset({"fi"}), score="margin")
    [plain] = store.search("c", vectors([1, 0, 0]), by_cosine, PRINT)
    [better] = store.search("c", vectors([1, 0, 0]), by_margin, PRINT)
    assert ids(plain) == ["hub", "lonely"]
    assert ids(better) == ["lonely", "hub"]
    assert [h.cosine for h in better] == [h.cosine for h in plain]
    assert better[0].score > better[1].score


def test_margin_of_a_document_alone_is_one(store):
    fill(store, {"a": ("en", [1, 1])})
    [[hit]] = store.search("c", vectors([1, 0]), Query(score="margin"), PRINT)
    assert hit.score == pytest.approx(1.0)
    assert hit.cosine == pytest.approx(0.5**0.5)


def test_the_threshold_is_in_units_of_the_score(store):
    fill(store, {"a": ("en", [1, 0]), "b": ("en", [1, 1]), "c": ("en", [0, 1])})
    [hits] = store.search("c", vectors([1, 0]), Query(score_threshold=0.5), PRINT)
    assert ids(hits) == ["a", "b"]
    [exactly] = store.search("c", vectors([1, 0]), Query(score_threshold=hits[1].score), PRINT)
    assert ids(exactly) == ["a", "b"]
    assert store.search("c", vectors([1, 0]), Query(score_threshold=1.5), PRINT) == [[]]


def test_more_wanted_than_there_is(store):
    fill(store, {id: ("en", [1, i]) for i, id in enumerate("abc")})
    assert ids(store.search("c", vectors([1, 0]), Query(k=10**9), PRINT)[0]) == ["a", "b", "c"]


def test_only_the_direction_of_a_vector_counts(store):
    fill(store, {"a": ("en", [1e-3, 0]), "b": ("en", [1e6, 1e6])})
    [hits] = store.search("c", vectors([1e4, 0]), Query(), PRINT)
    assert [(h.id, pytest.approx(h.cosine)) for h in hits] == [("a", 1.0), ("b", 0.5**0.5)]


def test_what_is_returned_is_the_callers_own(store):
    fill(store, {"a": ("en", [1, 0])})
    [[hit]] = store.search("c", vectors([1, 0]), Query(), PRINT)
    assert hit.metadata == {"n": "a"}
    [[again]] = store.search("c", vectors([1, 0]), Query(), PRINT)
    assert again == hit


def test_mutual_nearest(store):
    rows = {
        "near": ("fi", [1, 0.1]),
        "rival": ("en", [1, 0.2]),
        "far": ("en", [0, 1]),
        "lonely": ("ja", [-1, 0.3]),
    }
    fill(store, rows)

    def mutual(vector: list[float], tag: str | None, **options) -> dict[str, bool | None]:
        query = Query(mutual=True, **options)
        [hits] = store.search("c", vectors(vector), query, PRINT, [tag])
        return {hit.id: hit.mutual for hit in hits}

    asked = [1, -0.05]
    assert mutual(asked, None) == {"near": False, "rival": False, "far": False, "lonely": False}
    assert mutual(asked, "ja") == {"near": True, "rival": True, "far": False, "lonely": True}
    of_english = {"near": False, "rival": True, "far": False, "lonely": False}
    assert mutual(asked, "en-GB") == of_english
    assert mutual(asked, "en", score="margin") == of_english
    assert mutual([1, 0.1], "und", k=1) == {"near": True}
    assert mutual([1, 0.2], "en")["near"], "a document that is as near, as the query's own text is"
    assert not mutual([1, 0.21], "en", k=4)["near"]
    [hits] = store.search("c", vectors(asked), Query(), PRINT)
    assert {hit.mutual for hit in hits} == {None}


def test_explain(store):
    fill(store, {id: ("en" if id < "d" else "fi", [1, i]) for i, id in enumerate("abcde")})
    asked, some = vectors([1, 0], [0, 1]), parse({"field": "n", "in": ["b", "c"]})
    for query in (Query(), Query(score="margin", per_language=True), Query(filter=some)):
        explained = store.explain("c", asked, query, PRINT)
        assert [one.hits for one in explained] == store.search("c", asked, query, PRINT)
    [one, _] = store.explain("c", asked, Query(k=2), PRINT)
    assert (one.path, one.documents, one.matching, one.selectivity) == ("exact", 5, 5, 1.0)
    assert one.candidates == 5
    assert one.terms == [Terms(hit.cosine, None, None) for hit in one.hits]
    [one, _] = store.explain("c", asked, Query(filter=some, score="margin"), PRINT)
    assert (one.path, one.documents, one.matching) == ("filtered_exact", 5, 2)
    assert one.selectivity == pytest.approx(0.4)
    for hit, term in zip(one.hits, one.terms, strict=True):
        denominator = max((term.around_query + term.around_document) / 2, 0.05)
        assert hit.score == pytest.approx(term.cosine / denominator, rel=1e-5)
    store.create("none", 2, PRINT)
    [one] = store.explain("none", vectors([1, 0]), Query(), PRINT)
    assert (one.hits, one.matching, one.selectivity, one.terms) == ([], 0, 1.0, [])
