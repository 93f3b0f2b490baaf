"""`mexma-serve` on Milvus Lite, as an operator starts it."""

from __future__ import annotations

import re

import httpx

from mexma.encoder import OnnxEncoder
from service import index_command
from tests.conftest import ROOT, start_server, wait_until_ready
from tests.tiny import tiny_artifact

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


def test_services_go_on_after_a_collection_was_moved(milvus_server: MilvusServer, tmp_path, capsys):
    """Two of them on one collection while the guide's command moves it: one that serves both models,
    and one that serves the old one only."""
    models = [
        tiny_artifact(tmp_path / name, seed=seed, name=name).path
        for seed, name in enumerate(("old", "new"))
    ]
    old, new = (OnnxEncoder(path, threads=1).fingerprint for path in models)
    guide = (ROOT / "docs/migration.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```sh\n(.*--data http://milvus:19530 migrate.*)\n```", guide)
    program, *arguments = (
        block.replace("http://milvus:19530", milvus_server.uri)
        .replace("models/new", str(models[1]))
        .split()
    )
    assert program == ".venv/bin/mexma-index"
    servers, clients = [], []
    try:
        for name, further in (("both", {"further_models": models[1]}), ("only", {})):
            (tmp_path / name).mkdir()
            servers.append(
                start_server(
                    tmp_path / name,
                    demo=False,
                    milvus_uri=milvus_server.uri,
                    model=models[0],
                    **further,
                )
            )
        for server in servers:
            wait_until_ready(server)
            clients.append(httpx.Client(base_url=f"{server.url}/v1/collections", timeout=60))

        def put(client: httpx.Client, text: str) -> httpx.Response:
            document = {"id": text, "text": text, "lang": "en"}
            return client.post("notes/documents", json={"documents": [document]})

        def found_by(client: httpx.Client, text: str) -> tuple[str, str]:
            answer = client.post("notes/search", json={"queries": [text], "k": 1}).json()
            return answer["fingerprint"], answer["results"][0][0]["text"]

        clients[0].put("notes")
        assert put(clients[0], "Two cats.").json()["created"] == 1
        assert put(clients[1], "A train to Lyon.").json()["created"] == 1
        assert {found_by(client, "Two cats.") for client in clients} == {(old, "Two cats.")}

        index_command.main(arguments)
        assert f"2 of 2 documents embedded by {new}" in capsys.readouterr().out
        assert found_by(clients[0], "Two cats.") == (new, "Two cats.")
        assert put(clients[0], "My notes.").json()["fingerprint"] == new
        assert found_by(clients[0], "My notes.") == (new, "My notes.")
        for refused in (
            clients[1].post("notes/search", json={"queries": ["Two cats."]}),
            put(clients[1], "More."),
        ):
            assert refused.status_code == 409
            said = refused.json()["error"]["message"]
            assert old in said
            assert new in said

        index_command.main([str(models[0]) if a == str(models[1]) else a for a in arguments])
        for client in clients:
            assert found_by(client, "My notes.") == (old, "My notes.")
            assert put(client, "Again.").json()["fingerprint"] == old
        assert clients[0].get("").json()["collections"][0]["count"] == 4
        clients[0].delete("notes")
    finally:
        for server in servers:
            server.process.terminate()
        ended = [server.process.wait(60) for server in servers]
    assert ended == [0, 0], [server.log.read_text() for server in servers]
