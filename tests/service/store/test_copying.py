"""Collections copied from the embedded store to Milvus and back, by the command and by hand."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from mexma.errors import FingerprintMismatch, StoreError
from service import index_command
from service.store import copying
from service.store.copying import copy_collection, verify_copy
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


def test_at_an_address_there_is_only_copy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for verb in (["verify"], ["backup", "a"], ["restore", "a", "x"], ["rebuild", "a"]):
        with pytest.raises(SystemExit, match="only copy"):
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
    assert verify_copy(source, target, "a", seen.append) == 130
    assert target.get("a", "own").text == "t"
    spoil(target)
    with pytest.raises(StoreError, match=message):
        verify_copy(source, target, "a", seen.append)
