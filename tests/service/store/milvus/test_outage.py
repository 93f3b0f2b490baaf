"""Milvus goes away and comes back: what callers are told, what is kept, and that it goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
from starlette.testclient import TestClient

from mexma.errors import StoreUnavailable
from service.app import create_app
from service.languages import LanguageDetector
from service.settings import Settings
from service.store.milvus.store import MilvusStore
from service.store.protocol import Document, Query, Selection
from tests.fakes import FakeEncoder

from ..crash_worker import DIM, PRINT, vector_of
from .server import MilvusServer


@pytest.fixture
def server(tmp_path) -> Iterator[MilvusServer]:
    """A server of this test's own, not started."""
    made = MilvusServer(tmp_path / "milvus")
    yield made
    made.kill()


def put(store: MilvusStore, *ids: str) -> list[str]:
    documents = [Document(id, f"text of {id}", "en") for id in ids]
    return store.upsert("c", documents, np.array([vector_of(d.text) for d in documents]), PRINT)


def test_acknowledged_writes_survive_a_kill_and_the_store_goes_on(server):
    """While Milvus is away every operation says so; nothing is restarted but Milvus."""
    asked = vector_of("asked")[None]
    with closing(MilvusStore(server.uri, timeout_s=2)) as store:
        uses = [
            store.list,
            lambda: store.create("c", DIM, PRINT),
            lambda: store.describe("c"),
            lambda: put(store, "b"),
            lambda: store.delete("c", ["a"]),
            lambda: store.delete_where("c", Selection()),
            lambda: store.get("c", "a"),
            lambda: store.count("c", Selection()),
            lambda: store.scroll("c", Selection(), 1),
            lambda: store.search("c", asked, Query(), PRINT),
            lambda: store.drop("c"),
        ]
        with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{server.port} does not answer"):
            store.list()  # before there was any connection
        server.start()
        store.create("c", DIM, PRINT)
        assert put(store, "a") == ["created"]
        before = store.search("c", asked, Query(), PRINT)
        server.kill()
        for use in uses:
            with pytest.raises(StoreUnavailable) as caught:
                use()
            assert caught.value.retry_after_s > 0
        server.start()
        assert store.search("c", asked, Query(), PRINT) == before
        assert put(store, "b") == ["created"]
        assert store.describe("c").count == 2


def test_a_write_is_repeated_after_a_kill_and_there_once(server):
    """Killed in the middle of a stream of writes: the one that failed is sent again as it was."""
    server.start()
    with closing(MilvusStore(server.uri, timeout_s=2)) as store:
        store.create("c", DIM, PRINT)
        acknowledged, failed = [], []
        enough = threading.Event()

        def write() -> None:
            for n in range(10**6):
                ids = [f"d{n}-{i}" for i in range(5)]
                try:
                    put(store, *ids)
                except StoreUnavailable:
                    failed.extend(ids)
                    return
                acknowledged.extend(ids)
                if n == 20:
                    enough.set()

        writer = threading.Thread(target=write)
        writer.start()
        assert enough.wait(60)
        server.kill()
        writer.join()
        server.start()
        assert len(failed) == 5
        outcomes = put(store, *failed)
        assert len(set(outcomes)) == 1, "the write in flight happened whole or not at all"
        documents = store.scroll("c", Selection(), 10**4, vectors=True)
        assert [d.id for d in documents.documents] == acknowledged + failed
        for document, vector in zip(documents.documents, documents.vectors, strict=True):
            assert np.array_equal(vector, vector_of(document.text))


def test_a_server_that_hangs_holds_one_thread(server):
    """One call waits for it; all others are refused meanwhile, whatever else has to be done."""
    server.start()
    with closing(MilvusStore(server.uri, timeout_s=3)) as store:
        store.create("c", DIM, PRINT)
        put(store, "a")
        server.hang()
        with pytest.raises(StoreUnavailable):
            store.count("c", Selection())

        def wait() -> None:
            with pytest.raises(StoreUnavailable):
                store.list()

        waiting = threading.Thread(target=wait)
        waiting.start()
        while not store._milvus._probe.locked():
            pass
        for _ in range(30):
            with pytest.raises(StoreUnavailable, match="being tried"):
                store.get("c", "a")
        assert waiting.is_alive()
        waiting.join()
        server.hang(False)
        assert store.get("c", "a").text == "text of a"


def test_many_calls_under_a_kill_all_say_the_same(server):
    server.start()
    with closing(MilvusStore(server.uri, timeout_s=2)) as store:
        store.create("c", DIM, PRINT)
        put(store, "a")
        store.search("c", vector_of("asked")[None], Query(), PRINT)
        begun = threading.Barrier(9)

        def search_until_it_fails() -> Exception:
            begun.wait()
            while True:
                try:
                    store.search("c", vector_of("asked")[None], Query(), PRINT)
                except Exception as error:  # noqa: BLE001 - it is looked at
                    return error

        with ThreadPoolExecutor(8) as pool:
            searches = [pool.submit(search_until_it_fails) for _ in range(8)]
            begun.wait()
            server.kill()
            errors = [search.result() for search in searches]
        assert {type(error) for error in errors} == {StoreUnavailable}, errors
        server.start()
        assert store.count("c", Selection()) == 1


def test_over_http(server, tmp_path, caplog):
    """503 with Retry-After while it is away, 501 for what it cannot do; embedding goes on."""
    settings = Settings(demo=True, milvus_uri=server.uri, milvus_timeout_s=2)
    store = MilvusStore(server.uri, timeout_s=2)
    app = create_app(settings, encoder=FakeEncoder(), store=store, detector=LanguageDetector())
    document = {"documents": [{"id": "a", "text": "two cats", "lang": "en"}]}
    with TestClient(app) as client:
        while client.get("/health/ready").json()["reason"] in ("starting", "filling_demo"):
            pass
        assert client.get("/health/ready").status_code == 200, "no demo, and ready"
        for answer in (
            client.get("/v1/collections"),
            client.put("/v1/collections/c"),
            client.post("/v1/collections/c/documents", json=document),
            client.post("/v1/collections/c/search", json={"queries": ["cats"]}),
        ):
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["code"] == "store_unavailable"
            assert answer.json()["error"]["message"] == "the store's server does not answer; retry"
        lines = [r.getMessage() for r in caplog.records if r.name.endswith("milvus.connection")]
        assert len(lines) == 1, "an outage is said once"
        assert lines[0].startswith(f"Milvus at 127.0.0.1:{server.port} does not answer")
        assert client.post("/v1/embeddings", json={"input": "a", "model": "m"}).status_code == 200
        metrics = client.get("/metrics")
        assert metrics.status_code == 200
        assert "mexma_store_up 0.0" in metrics.text
        server.start()
        caplog.set_level("INFO")
        assert client.put("/v1/collections/c").status_code == 200
        assert f"Milvus at 127.0.0.1:{server.port} answers again" in caplog.text
        assert client.post("/v1/collections/c/documents", json=document).json()["created"] == 1
        body = {"queries": ["two cats"], "score": "margin", "per_language": True, "explain": True}
        [[hit]] = client.post("/v1/collections/c/search", json=body).json()["results"]
        assert (hit["id"], round(hit["cosine"], 5)) == ("a", 1)
        refused = client.post("/v1/collections/c/snapshots")
        assert (refused.status_code, refused.json()["error"]["code"]) == (501, "store_unsupported")
        assert "mexma-index copy" in refused.json()["error"]["message"]
        metrics = client.get("/metrics").text
        assert "mexma_store_up 1.0" in metrics
        assert 'mexma_collection_documents{collection="c"} 1.0' in metrics
