"""`mexma-serve` on Milvus Lite, as an operator starts it."""

from __future__ import annotations

import httpx

from tests.conftest import start_server, wait_until_ready

from .server import MilvusServer


def test_the_service_keeps_its_collections_on_milvus(milvus_server: MilvusServer, tmp_path):
    """The default model, and a token that must not reach the log (Milvus Lite asks for none)."""
    uri = milvus_server.uri.replace("http://", "http://who:hidden-in-uri@")
    server = start_server(
        tmp_path, demo=False, milvus_uri=uri, milvus_token="who:hidden", log_level="debug"
    )
    try:
        wait_until_ready(server)
        with httpx.Client(base_url=server.url, timeout=60) as client:
            at = "/v1/collections/served"
            assert client.put(at).json()["index_state"] == "exact"
            texts = {"fi": "Kissa nukkuu sohvalla.", "en": "The train to Lyon leaves at nine."}
            documents = [{"id": tag, "text": text, "lang": tag} for tag, text in texts.items()]
            assert (
                client.post(f"{at}/documents", json={"documents": documents}).json()["created"] == 2
            )
            found = client.post(
                f"{at}/search", json={"queries": ["El gato duerme en el sofá."]}
            ).json()
            assert [hit["id"] for hit in found["results"][0]] == ["fi", "en"]
            assert client.delete(at).status_code == 204
        assert not (tmp_path / "data").exists(), "nothing is kept here"
    finally:
        server.process.terminate()
        ended = server.process.wait(60)
    log = server.log.read_text()
    assert ended == 0, log
    assert f"collections in Milvus at 127.0.0.1:{milvus_server.port}\n" in log
    assert "hidden" not in log
