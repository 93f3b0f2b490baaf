"""The demo is made once, made again for another encoder, and never at the cost of others' data."""

from __future__ import annotations

import sqlite3
import sys

import pytest

from mexma.sample import tatoeba_sample
from service import canaries
from tests.fakes import FakeEncoder

SENTENCES = tatoeba_sample()


@pytest.fixture
def start(make_client, tmp_path):
    """Start an app with a demo, on the same data each time; `stop` ends it."""

    def start(encoder=None, **settings):
        encoder = encoder or FakeEncoder(max_tokens=512)
        client = make_client(encoder, demo=True, data_dir=tmp_path / "kept", **settings)
        while reason := client.get("/health/ready").json()["reason"]:
            assert reason in ("starting", "filling_demo")
        return client

    return start


def stop(client) -> None:
    client.__exit__(None, None, None)


def demo(client) -> dict:
    """What the collection is; gauges are measured later, beside the requests."""
    described = client.get("/v1/collections/demo").json()
    return {k: v for k, v in described.items() if k not in ("hubness", "recall")}


def test_it_is_filled_at_the_first_start_and_kept_at_the_second(start):
    first = start()
    described = demo(first)
    assert described["count"] == len(SENTENCES)
    assert set(described["languages"]) == {s.lang for s in SENTENCES}
    stop(first)
    encoder = FakeEncoder(max_tokens=512)
    assert demo(start(encoder)) == described
    warm_up = 1 + len(canaries.SENTENCES)
    assert sum(map(len, encoder.batches)) == warm_up, "nothing of the demo was embedded again"


def test_another_encoder_makes_it_again(start):
    stop(start())
    other = FakeEncoder(max_tokens=512, name="another")
    assert demo(start(other))["fingerprint"] == other.fingerprint


def test_one_that_was_interrupted_is_completed(start):
    first = start()
    ids = [f"{s.group}-{s.lang}" for s in SENTENCES[1000:2000]]
    first.request("delete", "/v1/collections/demo/documents", json={"ids": ids})
    stop(first)
    assert demo(start())["count"] == len(SENTENCES)


def test_a_collection_of_that_name_with_other_documents_is_left_alone(make_client, tmp_path, start):
    mine = make_client(data_dir=tmp_path / "kept")
    mine.put("/v1/collections/demo")
    document = {"id": "mine", "text": "my own document"}
    mine.post("/v1/collections/demo/documents", json={"documents": [document]})
    stop(mine)
    client = start(FakeEncoder(max_tokens=512, name="another"))
    assert demo(client)["count"] == 1
    assert client.get("/v1/collections/demo/documents/mine").status_code == 200


def test_a_damaged_one_is_named_and_does_not_stop_the_service(start, tmp_path, caplog):
    stop(start())
    (database,) = (tmp_path / "kept").glob("demo.*/documents.sqlite")
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE documents SET text = 'changed' WHERE rid = 7")
    client = start()
    caplog.clear()
    response = client.get("/v1/collections/demo")
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "store_corrupt"
    assert "damaged" in response.json()["error"]["message"]
    for internal in (str(tmp_path), "documents.sqlite", "row 7"):  # the log's, not the caller's
        assert internal not in response.text
        assert internal in caplog.text
    assert client.post("/v1/embeddings", json={"input": "Hello"}).status_code == 200
    assert client.delete("/v1/collections/demo").status_code == 204
    stop(client)
    assert demo(start())["count"] == len(SENTENCES)


@pytest.mark.parametrize(
    ("log_format", "terminal", "bar"),
    [("text", True, True), ("text", False, False), ("json", True, False), ("json", False, False)],
)
def test_its_progress_is_a_bar_for_people_only(
    start, monkeypatch, capsys, caplog, log_format, terminal, bar
):
    caplog.set_level("INFO")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    start(log_format=log_format)
    assert ("filling the demo:" in capsys.readouterr().err) == bar
    assert "the demo is there" in caplog.messages
