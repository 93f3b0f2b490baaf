"""Selections: found, counted and deleted by metadata, and scrolled through."""

from __future__ import annotations

import pytest

from mexma.errors import InputError
from service.store.filters import parse
from service.store.protocol import Query, Selection

from .given import PRINT, fill, ids, vectors


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
