"""Languages: tags, filters by them, and k for each."""

from __future__ import annotations

import pytest

from mexma.errors import InputError
from service.store.protocol import Query, matches, primary

from .given import PRINT, fill, ids, vectors


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


def test_as_many_query_languages_as_queries(store):
    fill(store, {"a": ("en", [1, 0])})
    with pytest.raises((InputError, ValueError)):
        store.search("c", vectors([1, 0]), Query(), PRINT, ["en", "fi"])
