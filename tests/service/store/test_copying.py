"""Collections copied from the embedded store to Milvus and back, by the command and by hand."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mexma.errors import FingerprintMismatch, StoreCorrupt, StoreError
from service import index_command
from service.store import copying
from service.store.copying import copy_collection, remove_surplus, verify_copy
from service.store.filters import parse
from service.store.local import LocalStore
from service.store.milvus.store import MilvusStore
from service.store.protocol import Document, Query, Selection, Store

from .conftest import emptied
from .crash_worker import DIM, PRINT, vector_of
from .reference import ReferenceStore


def fill(store: Store, count: int = 130) -> None:
    store.create("a", DIM, PRINT)
    texts = [f"text {i}" for i in range(count)]
    documents = [Document(f"d{i}", t, ["en", "fi"][i % 2], {"n": i}) for i, t in enumerate(texts)]
    # Of no particular length: what was given comes back.
    store.upsert("a", documents, np.array([3 * vector_of(t) for t in texts]), PRINT)
    store.upsert("a", documents[7:8], vector_of("moved")[None], PRINT)


def counted(rows: int) -> None:
    """Progress that nobody looks at."""


def everything(store: Store) -> tuple[list[Document], list[list[float]]]:
    page = store.scroll("a", Selection(), 10**4, vectors=True)
    return page.documents, page.vectors.tolist()


def test_there_and_back(milvus_server, tmp_path, capsys, monkeypatch):
    """Documents, vectors, order, searches: all as before; begun twice, everything is there once."""
    monkeypatch.setattr(copying, "ROWS", 40)
    monkeypatch.delenv("MEXMA_DATA_DIR", raising=False)
    with closing(MilvusStore(milvus_server.uri)) as milvus:
        emptied(milvus)
        with closing(LocalStore(tmp_path / "here")) as local:
            fill(local)
            before = everything(local)
            asked = vector_of("asked")[None]
            ways = [
                Query(k=20),
                Query(k=20, score="margin", mutual=True),
                Query(filter=parse({"field": "n", "gte": 99}), per_language=True),
            ]
            found = [local.search("a", asked, way, PRINT) for way in ways]
        for _ in range(2):
            index_command.main(["--data", str(tmp_path / "here"), "copy", "a", milvus_server.uri])
            said = capsys.readouterr()
            assert said.out == f"a: 130 documents in {milvus_server.uri}\n"
            assert "copied: 100%" in said.err
            assert "compared: 100%" in said.err
        assert everything(milvus) == before
        for way, expected in zip(ways, found, strict=True):
            [hits] = milvus.search("a", asked, way, PRINT)
            assert [(h.id, h.cosine, h.mutual) for h in hits] == [
                (h.id, h.cosine, h.mutual) for h in expected[0]
            ]
            assert [h.score for h in hits] == pytest.approx([h.score for h in expected[0]])
    index_command.main(["--data", milvus_server.uri, "copy", "a", str(tmp_path / "back")])
    with closing(LocalStore(tmp_path / "back")) as back:
        assert everything(back) == before
        assert [back.search("a", asked, way, PRINT) for way in ways] == found
        assert back.describe("a").fingerprint == PRINT


def test_a_copy_of_another_encoder_s_is_refused(milvus_server, tmp_path):
    with closing(MilvusStore(milvus_server.uri)) as milvus:
        emptied(milvus).create("a", DIM, "another encoder")
        with closing(LocalStore(tmp_path)) as local:
            fill(local, 9)
            with pytest.raises(FingerprintMismatch):
                copy_collection(local, milvus, "a", print)


def test_at_an_address_there_are_only_copy_and_migrate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for verb in (["verify"], ["backup", "a"], ["restore", "a", "x"], ["rebuild", "a"]):
        with pytest.raises(SystemExit, match="only copy and migrate"):
            index_command.main(["--data", "http://127.0.0.1:1", *verb])
    with pytest.raises(SystemExit, match=r"Milvus at 127\.0\.0\.1:1 does not answer"):
        index_command.main(["--data", "http://127.0.0.1:1", "copy", "a", "elsewhere"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda store: store.delete("a", ["d9"]), "lacks document 'd9'"),
        (
            lambda store: store.upsert(
                "a", [Document("d7", "text 7", "fi", {"n": 7})], vector_of("x")[None], PRINT
            ),
            "another vector 'd7'",
        ),
        (
            lambda store: store.upsert(
                "a", [Document("d7", "text 7", "fi", {"n": 8})], vector_of("moved")[None], PRINT
            ),
            "another document 'd7'",
        ),
    ],
)
def test_a_copy_that_is_not_one_is_noticed(spoil, message, monkeypatch):
    monkeypatch.setattr(copying, "ROWS", 7)
    source, target = ReferenceStore(), ReferenceStore()
    fill(source)
    target.create("a", DIM, PRINT)
    target.upsert("a", [Document("own", "t", "en")], vector_of("own")[None], PRINT)
    seen: list[int] = []
    assert copy_collection(source, target, "a", seen.append) == sum(seen) == 130
    assert verify_copy(source, target, "a", seen.append) == (130, ["own"])
    assert target.get("a", "own").text == "t"
    spoil(target)
    with pytest.raises(StoreError, match=message):
        verify_copy(source, target, "a", seen.append)


def spoilt(store: Store) -> None:
    """What the copy has of its own."""
    texts = [f"late {i}" for i in range(9)]
    documents = [Document(f"late{i}", t, "sv") for i, t in enumerate(texts)]
    store.upsert("a", documents, np.array([vector_of(t) for t in texts]), PRINT)


@pytest.mark.parametrize("way", ["folder", "there", "back"])
def test_what_was_deleted_in_the_source_is_deleted_in_the_copy(
    way, milvus_server, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(copying, "ROWS", 40)
    with closing(MilvusStore(milvus_server.uri)) as milvus:
        emptied(milvus)
    at = {
        "folder": (str(tmp_path / "one"), str(tmp_path / "two")),
        "there": (str(tmp_path / "one"), milvus_server.uri),
        "back": (milvus_server.uri, str(tmp_path / "two")),
    }[way]

    def opened(place: str) -> Store:
        return MilvusStore(place) if place.startswith("http") else LocalStore(Path(place))

    def copy() -> str:
        index_command.main(["--data", at[0], "copy", "a", at[1]])
        return capsys.readouterr().out

    with closing(opened(at[0])) as source:
        fill(source)
    assert copy() == f"a: 130 documents in {at[1]}\n"
    with closing(opened(at[0])) as source:
        source.delete("a", [f"d{i}" for i in range(0, 130, 2)])
    with closing(opened(at[1])) as target:
        spoilt(target)
    assert copy() == f"a: 65 documents in {at[1]}; 74 that are not in the source were removed\n"
    with closing(opened(at[0])) as source, closing(opened(at[1])) as target:
        assert everything(target) == everything(source)
        source.delete("a", ["d1"])
    assert copy() == f"a: 64 documents in {at[1]}; 1 that is not in the source was removed\n"
    assert copy() == f"a: 64 documents in {at[1]}\n"


def test_nothing_is_removed_before_the_copy_is_whole(tmp_path, monkeypatch):
    """The source fails while it is copied, or while it is compared, or gave less than it has."""
    monkeypatch.setattr(copying, "ROWS", 40)
    here, there = tmp_path / "here", tmp_path / "there"
    with closing(LocalStore(here)) as source, closing(LocalStore(there)) as target:
        fill(source)
        fill(target)
        target.upsert("a", [Document("own", "t", "en")], vector_of("own")[None], PRINT)
    whole = LocalStore.scroll
    for good in range(8):  # pages of the source that are read before it fails: 4, and 4 again

        def scroll(self, *arguments, left=[good], **named):  # noqa: B006 - counts down
            if self.root == here:
                if not left[0]:
                    raise StoreCorrupt("a page is damaged")
                left[0] -= 1
            return whole(self, *arguments, **named)

        monkeypatch.setattr(LocalStore, "scroll", scroll)
        with pytest.raises(SystemExit, match="a page is damaged"):
            index_command.main(["--data", str(here), "copy", "a", str(there)])
        monkeypatch.setattr(LocalStore, "scroll", whole)
        with closing(LocalStore(there)) as target:
            assert target.count("a", Selection()) == 131

    def short(self, *arguments, **named):
        page = whole(self, *arguments, **named)
        return replace(page, cursor=None) if self.root == here else page

    monkeypatch.setattr(LocalStore, "scroll", short)
    with pytest.raises(SystemExit, match="40 documents of 'a' could be read, and there are 130"):
        index_command.main(["--data", str(here), "copy", "a", str(there)])
    with closing(LocalStore(there)) as target:
        assert target.count("a", Selection()) == 131


@pytest.mark.parametrize("ever", ["source", "target"])
def test_what_is_written_while_it_is_copied_is_not_removed(ever, monkeypatch):
    monkeypatch.setattr(copying, "ROWS", 7)
    stores = {"source": ReferenceStore(), "target": ReferenceStore()}
    source, target = stores["source"], stores["target"]
    fill(source)
    copy_collection(source, target, "a", counted)
    if ever == "source":
        source.delete("a", ["d9"])
    else:
        target.upsert("a", [Document("new", "t", "en")], vector_of("new")[None], PRINT)
    with pytest.raises(StoreError, match=r"'(d9|new)' of 'a' was written .* nothing was removed"):
        verify_copy(source, target, "a", counted)
    copy_collection(source, target, "a", counted)
    _, surplus = verify_copy(source, target, "a", counted)
    assert remove_surplus(target, "a", surplus, counted) == 1
    assert everything(target) == everything(source)


def test_a_copy_of_nothing_is_nothing():
    source, target = ReferenceStore(), ReferenceStore()
    fill(target)
    source.create("a", DIM, PRINT)
    copy_collection(source, target, "a", counted)
    verified, surplus = verify_copy(source, target, "a", counted)
    assert (verified, len(surplus)) == (0, 130)
    assert remove_surplus(target, "a", surplus, counted) == 130
    assert target.count("a", Selection()) == 0


def test_a_copy_onto_itself_is_refused(milvus_server, tmp_path):
    for place in (str(tmp_path), milvus_server.uri):
        with pytest.raises(SystemExit, match="is where the collection is"):
            index_command.main(["--data", place, "copy", "a", place])
