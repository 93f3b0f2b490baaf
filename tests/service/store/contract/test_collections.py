"""Collections: made, described, dropped, and apart from each other."""

from __future__ import annotations

import numpy as np
import pytest

from mexma.errors import CollectionExists, CollectionNotFound, FingerprintMismatch, InputError
from service.store.protocol import Document, Query

from .given import PRINT, fill, vectors


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


def test_collections_do_not_see_each_other(store):
    fill(store, {"a": ("en", [1, 0])}, "one")
    fill(store, {"a": ("fi", [0, 1])}, "two")
    assert store.get("one", "a").lang == "en"
    assert store.delete("two", ["a"]) == ["a"]
    assert store.describe("one").count == 1


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
