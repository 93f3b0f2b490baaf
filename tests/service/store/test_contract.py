"""What every store has to do. Run against each factory in `conftest.FACTORIES`."""

from __future__ import annotations

import numpy as np
import pytest

from mexma.errors import (
    BackupNotFound,
    CollectionExists,
    CollectionNotFound,
    DocumentNotFound,
    FingerprintMismatch,
    InputError,
    UnencodableText,
)
from service.store.filters import parse
from service.store.protocol import Document, Query, Selection, Terms, matches, primary

PRINT = "encoder-a"


def vectors(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


def fill(store, rows: dict[str, tuple[str, list[float]]], name: str = "c") -> list[str]:
    """Write documents given as id -> (lang, vector); the text of "a" is "text of a"."""
    dim = len(next(iter(rows.values()))[1])
    store.create(name, dim, PRINT)
    documents = [Document(id, f"text of {id}", lang, {"n": id}) for id, (lang, _) in rows.items()]
    return store.upsert(name, documents, vectors(*[v for _, v in rows.values()]), PRINT)


def ids(hits) -> list[str]:
    return [hit.id for hit in hits]


def test_tags_match_themselves_and_their_primary_subtag():
    assert primary("zh-Hant-TW") == "zh"
    assert primary("ace") == "ace"
    assert matches("pt-BR", "pt-BR")
    assert matches("pt-BR", "pt")
    assert matches("pt", "pt")
    assert not matches("pt", "pt-BR")
    assert not matches("pt-BR", "pt-PT")
    assert not matches("ptx", "pt")
    assert not matches("pt", "PT")


def test_create_describe_list_drop(store):
    assert store.list() == []
    made = store.create("b", 3, PRINT)
    assert (made.name, made.dim, made.fingerprint, made.count) == ("b", 3, PRINT, 0)
    assert (made.languages, made.index_state) == ({}, "exact")
    assert made.created_at.endswith("+00:00")
    store.create("a", 2, PRINT)
    assert [info.name for info in store.list()] == ["a", "b"]
    assert store.describe("b") == made
    store.drop("b")
    assert [info.name for info in store.list()] == ["a"]
    for use in (store.describe, store.drop):
        with pytest.raises(CollectionNotFound, match="'b'"):
            use("b")


def test_create_again_is_the_same_collection(store):
    fill(store, {"x": ("en", [1, 0])})
    assert store.create("c", 2, PRINT).count == 1
    with pytest.raises(CollectionExists, match=r"2.*3"):
        store.create("c", 3, PRINT)
    with pytest.raises(FingerprintMismatch) as caught:
        store.create("c", 2, "encoder-b")
    assert (caught.value.expected, caught.value.found) == (PRINT, "encoder-b")


def test_a_dropped_collection_can_be_made_again_and_is_empty(store):
    for _ in range(3):
        fill(store, {"x": ("en", [1, 0])})
        store.drop("c")
    assert store.create("c", 5, "encoder-b").count == 0
    assert store.search("c", np.ones((1, 5), np.float32), Query(), "encoder-b") == [[]]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", "a b", "a\n", "é", "x" * 65, "a.b", "\0"]
)
def test_names_are_from_the_allow_list(store, name):
    for use in (lambda: store.create(name, 2, PRINT), lambda: store.describe(name)):
        with pytest.raises(InputError, match="collection name"):
            use()
    with pytest.raises(InputError, match="collection name"):
        store.drop(name)


@pytest.mark.parametrize("name", ["a", "A-9_z", "-", "x" * 64])
def test_allowed_names(store, name):
    assert store.create(name, 2, PRINT).name == name


@pytest.mark.parametrize("dim", [0, -1, 16_385])
def test_dim_has_limits(store, dim):
    with pytest.raises(InputError, match="dim"):
        store.create("c", dim, PRINT)


def test_get_returns_what_was_put(store):
    text = "Zażółć\0 gęślą 🦆 جملة"
    metadata = {"a": [1, 2.5, None, True], "ü": {"b": "語"}}
    store.create("c", 2, PRINT)
    document = Document("id/with ünïcode", text, "pl", metadata)
    store.upsert("c", [document], vectors([3, 4]), PRINT)
    assert store.get("c", document.id) == document
    [[hit]] = store.search("c", vectors([3, 4]), Query(), PRINT)
    assert (hit.id, hit.text, hit.lang, hit.metadata) == (document.id, text, "pl", metadata)
    assert hit.score == hit.cosine == pytest.approx(1.0)


def test_get_of_what_is_not_there(store):
    store.create("c", 2, PRINT)
    with pytest.raises(DocumentNotFound, match="nobody"):
        store.get("c", "nobody")
    with pytest.raises(CollectionNotFound):
        store.get("d", "nobody")


def test_upsert_says_what_was_new(store):
    assert fill(store, {"a": ("en", [1, 0]), "b": ("fi", [0, 1])}) == ["created", "created"]
    assert fill(store, {"b": ("sv", [1, 1]), "c": ("fi", [0, 1])}) == ["updated", "created"]
    assert store.describe("c").languages == {"en": 1, "fi": 1, "sv": 1}
    assert store.describe("c").count == 3


def test_an_id_twice_in_one_upsert_keeps_the_last(store):
    store.create("c", 2, PRINT)
    documents = [
        Document("a", "first", "en"),
        Document("b", "b", "en"),
        Document("a", "last", "fi"),
    ]
    outcomes = store.upsert("c", documents, vectors([1, 0], [1, 0], [0, 1]), PRINT)
    assert outcomes == ["created", "created", "updated"]
    assert store.get("c", "a").text == "last"
    assert store.describe("c").languages == {"en": 1, "fi": 1}
    [hits] = store.search("c", vectors([0, 1]), Query(), PRINT)
    assert [(h.id, h.text) for h in hits] == [("a", "last"), ("b", "b")]


def test_an_update_moves_the_document(store):
    fill(store, {"a": ("en", [1, 0]), "b": ("en", [0, 1])})
    fill(store, {"a": ("en", [-1, 0])})
    [hits] = store.search("c", vectors([1, 0]), Query(), PRINT)
    assert [(h.id, h.cosine) for h in hits] == [("b", 0.0), ("a", -1.0)]


def test_delete_names_what_existed(store):
    fill(store, {id: ("en", [1, 0]) for id in "abc"})
    assert store.delete("c", ["c", "nobody", "a", "c"]) == ["c", "a"]
    assert store.delete("c", ["a"]) == []
    assert store.delete("c", []) == []
    assert ids(store.search("c", vectors([1, 0]), Query(), PRINT)[0]) == ["b"]
    with pytest.raises(DocumentNotFound):
        store.get("c", "a")


def test_nothing_in_nothing_out(store):
    store.create("c", 2, PRINT)
    empty = np.empty((0, 2), np.float32)
    assert store.upsert("c", [], empty, PRINT) == []
    assert store.search("c", empty, Query(), PRINT) == []
    for query in (Query(), Query(score="margin"), Query(per_language=True, exact=True)):
        assert store.search("c", vectors([1, 0], [0, 1]), query, PRINT) == [[], []]


def test_another_encoder_is_refused(store):
    fill(store, {"a": ("en", [1, 0])})
    document = Document("b", "b", "en")
    for use in (
        lambda: store.upsert("c", [document], vectors([1, 0]), "encoder-b"),
        lambda: store.search("c", vectors([1, 0]), Query(), "encoder-b"),
    ):
        with pytest.raises(FingerprintMismatch, match=r"encoder-a.*encoder-b") as caught:
            use()
        assert (caught.value.expected, caught.value.found) == (PRINT, "encoder-b")
    assert store.describe("c").count == 1


@pytest.mark.parametrize(
    ("bad", "item"),
    [
        (np.array([[1, 0], [np.nan, 1]], np.float32), 1),
        (np.array([[np.inf, 0], [0, 1]], np.float32), 0),
        (np.array([[1, 0], [0, 0]], np.float32), 1),
        (np.ones((2, 3), np.float32), None),
        (np.ones((2,), np.float32), None),
        (np.ones((2, 2), np.float64), None),
    ],
)
def test_bad_vectors_are_refused_whole(store, bad, item):
    fill(store, {"a": ("en", [1, 0])})
    two = [Document("a", "changed", "en"), Document("b", "b", "en")]
    for use in (
        lambda: store.upsert("c", two, bad, PRINT),
        lambda: store.search("c", bad, Query(), PRINT),
    ):
        with pytest.raises(InputError) as caught:
            use()
        assert caught.value.item == item
    assert store.describe("c").count == 1
    assert store.get("c", "a").text == "text of a"


def test_as_many_vectors_as_documents(store):
    store.create("c", 2, PRINT)
    with pytest.raises(InputError, match=r"\[1, 2\].*\[2, 2\]"):
        store.upsert("c", [Document("a", "a", "en")], vectors([1, 0], [0, 1]), PRINT)


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (Document("", "t", "en"), InputError),
        (Document("x" * 513, "t", "en"), InputError),
        (Document("b", "t", ""), InputError),
        (Document("b", "t", "en US"), InputError),
        (Document("b", "t\ud800", "en"), UnencodableText),
        (Document("\udfff", "t", "en"), UnencodableText),
        (Document("b", "t", "en", {"k": "\ud800"}), UnencodableText),
        (Document("b", "t", "en", {"k": float("nan")}), InputError),
        (Document("b", "t", "en", {"k": {1, 2}}), InputError),
    ],
)
def test_bad_documents_are_refused_whole(store, bad, kind):
    store.create("c", 2, PRINT)
    with pytest.raises(kind) as caught:
        store.upsert("c", [Document("a", "a", "en"), bad], vectors([1, 0], [0, 1]), PRINT)
    assert caught.value.item == 1
    assert store.describe("c").count == 0


def test_ids_that_cannot_exist_do_not(store):
    store.create("c", 2, PRINT)
    assert store.delete("c", ["\ud800", ""]) == []
    with pytest.raises(DocumentNotFound):
        store.get("c", "\ud800")


@pytest.mark.parametrize("bad", [{"k": 0}, {"score": "dot"}, {"score_threshold": float("nan")}])
def test_bad_queries_are_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        Query(**bad)


def test_equal_cosines_come_in_the_order_of_writing(store):
    fill(store, {id: ("en", [1, 1]) for id in "cab"})
    fill(store, {"c": ("en", [1, 1])})
    for k in (1, 2, 3):
        [hits] = store.search("c", vectors([1, 0]), Query(k=k), PRINT)
        assert ids(hits) == ["a", "b", "c"][:k]


def test_languages_filter(store):
    rows = {"a": ("pt", [1, 0]), "b": ("pt-BR", [2, 1]), "c": ("en", [1, 1]), "d": ("ptx", [1, 2])}
    fill(store, rows)

    def found(*wanted: str) -> list[str]:
        query = Query(languages=frozenset(wanted))
        return ids(store.search("c", vectors([1, 0]), query, PRINT)[0])

    assert found("pt") == ["a", "b"]
    assert found("pt-BR") == ["b"]
    assert found("en", "pt-BR") == ["b", "c"]
    assert found("xx") == []
    assert found() == []


def test_each_row_excludes_its_own_language(store):
    fill(store, {"a": ("pt-BR", [1, 0]), "b": ("en", [1, 0]), "c": ("und", [1, 0])})
    query = Query(exclude_query_language=True)
    tags = ["pt", "pt-PT", "en", None, "und", "fi"]
    rows = store.search("c", vectors(*[[1, 0]] * 6), query, PRINT, tags)
    everything = ["a", "b", "c"]
    assert [ids(r) for r in rows] == [["b", "c"]] * 2 + [["a", "c"]] + [everything] * 3
    assert ids(store.search("c", vectors([1, 0]), query, PRINT)[0]) == everything
    assert ids(store.search("c", vectors([1, 0]), Query(), PRINT, ["en"])[0]) == everything


def test_k_for_each_language(store):
    fill(
        store,
        {
            "en1": ("en", [1, 0.1]),
            "en2": ("en-GB", [1, 0.2]),
            "en3": ("en", [1, 0.3]),
            "fi1": ("fi", [1, 0]),
            "ja1": ("ja", [-1, 0]),
        },
    )
    query = Query(k=2, per_language=True)
    [hits] = store.search("c", vectors([1, 0]), query, PRINT)
    assert ids(hits) == ["fi1", "en1", "en2", "ja1"]
    query = Query(k=2, per_language=True, exclude_query_language=True, score_threshold=0)
    rows = store.search("c", vectors([1, 0], [1, 0]), query, PRINT, ["fi", "en"])
    assert [ids(r) for r in rows] == [["en1", "en2"], ["fi1"]]


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


def test_collections_do_not_see_each_other(store):
    fill(store, {"a": ("en", [1, 0])}, "one")
    fill(store, {"a": ("fi", [0, 1])}, "two")
    assert store.get("one", "a").lang == "en"
    assert store.delete("two", ["a"]) == ["a"]
    assert store.describe("one").count == 1


def test_as_many_query_languages_as_queries(store):
    fill(store, {"a": ("en", [1, 0])})
    with pytest.raises((InputError, ValueError)):
        store.search("c", vectors([1, 0]), Query(), PRINT, ["en", "fi"])


def test_what_is_returned_is_the_callers_own(store):
    fill(store, {"a": ("en", [1, 0])})
    [[hit]] = store.search("c", vectors([1, 0]), Query(), PRINT)
    assert hit.metadata == {"n": "a"}
    [[again]] = store.search("c", vectors([1, 0]), Query(), PRINT)
    assert again == hit


def test_metadata_filters(store):
    fill(store, {id: ("en" if id < "c" else "fi", [1, i]) for i, id in enumerate("abcd")})
    some = parse({"field": "n", "in": ["b", "c", "d", "x"]})
    finnish = frozenset({"fi"})
    [hits] = store.search("c", vectors([1, 0]), Query(filter=some), PRINT)
    assert ids(hits) == ["b", "c", "d"]
    [hits] = store.search("c", vectors([1, 0]), Query(filter=some, languages=finnish), PRINT)
    assert ids(hits) == ["c", "d"]
    assert store.count("c", Selection()) == 4
    assert store.count("c", Selection(filter=some)) == 3
    assert store.count("c", Selection(finnish, some)) == 2
    assert store.count("c", Selection(frozenset(), some)) == 0
    assert store.delete_where("c", Selection(finnish, some)) == 2
    assert store.delete_where("c", Selection(finnish, some)) == 0
    assert store.count("c", Selection()) == store.describe("c").count == 2
    assert ids(store.search("c", vectors([1, 0]), Query(), PRINT)[0]) == ["a", "b"]
    assert store.delete_where("c", Selection()) == 2
    assert store.describe("c").languages == {}


def test_scrolling_meets_each_document_once(store):
    fill(store, {f"d{i}": ("en" if i % 2 else "fi", [1 + i, 2]) for i in range(11)})
    fill(store, {"d3": ("en", [7, 7])})

    def scrolled(limit: int, selection: Selection) -> list[str]:
        found, cursor = [], None
        while True:
            page = store.scroll("c", selection, limit, cursor, vectors=True)
            assert len(page.documents) <= limit
            assert page.vectors.shape == (len(page.documents), 2)
            for document, vector in zip(page.documents, page.vectors, strict=True):
                number = int(document.id[1:])
                assert vector.tolist() == ([7, 7] if number == 3 else [1 + number, 2])
                assert document == store.get("c", document.id)
            found += [d.id for d in page.documents]
            if (cursor := page.cursor) is None:
                return found
            assert page.documents

    order = [f"d{i}" for i in range(11) if i != 3] + ["d3"]
    for limit in (1, 3, 10, 11, 100):
        assert scrolled(limit, Selection()) == order
        english = [id for id in order if int(id[1:]) % 2]
        assert scrolled(limit, Selection(frozenset({"en"}))) == english
    assert scrolled(5, Selection(frozenset())) == []
    assert store.scroll("c", Selection(), 5).vectors is None


def test_scrolling_while_documents_come_and_go(store):
    fill(store, {f"d{i}": ("en", [1, i]) for i in range(6)})
    page = store.scroll("c", Selection(), 3)
    store.delete("c", ["d0", "d2", "d4"])
    fill(store, {"d1": ("en", [1, 1]), "d6": ("en", [1, 6])})
    rest = store.scroll("c", Selection(), 9, page.cursor)
    assert [d.id for d in rest.documents] == ["d3", "d5", "d1", "d6"]
    assert store.scroll("c", Selection(), 9, page.cursor) == rest, "a cursor may be used again"


def test_cursors_of_elsewhere_are_refused(store):
    fill(store, {"a": ("en", [1, 0]), "b": ("en", [1, 0])})
    fill(store, {"a": ("en", [1, 0]), "b": ("en", [1, 0])}, "other")
    cursor = store.scroll("c", Selection(), 1).cursor
    with pytest.raises(InputError, match="limit"):
        store.scroll("c", Selection(), 0)
    for bad in ("", "x", "é", cursor + "A", store.scroll("other", Selection(), 1).cursor):
        with pytest.raises(InputError, match="cursor"):
            store.scroll("c", Selection(), 1, bad)
    store.drop("c")
    fill(store, {"a": ("en", [1, 0])})
    with pytest.raises(InputError, match="cursor"):
        store.scroll("c", Selection(), 1, cursor)


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


def test_metadata_nests_only_so_deep(store):
    store.create("c", 2, PRINT)

    def nested(levels: int) -> Document:
        value: object = 1
        for _ in range(levels):
            value = [value]
        return Document("a", "a", "en", {"k": value})

    store.upsert("c", [nested(62)], vectors([1, 0]), PRINT)
    with pytest.raises(InputError, match="64 levels"):
        store.upsert("c", [nested(70_000)], vectors([1, 0]), PRINT)


def test_backups_hold_what_was_there(store):
    fill(store, {"a": ("en", [1, 0]), "b": ("fi", [0, 1])})
    assert store.backups("c") == []
    backup = store.back_up("c")
    assert (backup.collection, backup.count, backup.dim) == ("c", 2, 2)
    assert backup.fingerprint == PRINT
    cursor = store.scroll("c", Selection(), 1).cursor
    store.delete("c", ["a"])
    fill(store, {"b": ("sv", [1, 1]), "d": ("en", [1, 0])})
    assert store.restore("c", backup.id).count == 2
    assert store.describe("c").languages == {"en": 1, "fi": 1}
    [hits] = store.search("c", vectors([0, 1]), Query(), PRINT)
    assert [(h.id, h.lang) for h in hits] == [("b", "fi"), ("a", "en")]
    with pytest.raises(InputError, match="cursor"):
        store.scroll("c", Selection(), 1, cursor)
    fill(store, {"e": ("en", [1, 0])})
    assert store.describe("c").count == 3
    store.drop("c")
    assert store.backups("c") == [backup]
    assert store.restore("c", backup.id).count == 2
    store.remove_backup("c", backup.id)
    assert store.backups("c") == []


def test_backups_of_what_is_not_there(store):
    with pytest.raises(CollectionNotFound):
        store.back_up("c")
    store.create("c", 2, PRINT)
    for use in (store.restore, store.remove_backup):
        with pytest.raises(BackupNotFound, match="nothing"):
            use("c", "nothing")
    with pytest.raises(InputError, match="collection name"):
        store.backups("../c")
