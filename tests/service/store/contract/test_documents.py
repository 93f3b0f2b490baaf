"""Documents: written, read, changed, deleted, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from mexma.errors import CollectionNotFound, DocumentNotFound, InputError, UnencodableText
from service.store.protocol import Document, Query

from .given import PRINT, fill, ids, vectors


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
