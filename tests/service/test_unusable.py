"""Collections that cannot be used as things are: said at the start, and in each refusal what leads out."""

from __future__ import annotations

import re
import sqlite3
import time

import pytest

from tests.fakes import FakeEncoder

from .store.reference import ReferenceStore

CATS = "/v1/collections/cats"
OLD, NEW = FakeEncoder(name="old"), FakeEncoder(name="new", dim=24)
DOCUMENTS = [{"id": str(i), "text": text, "lang": "en"} for i, text in enumerate("abc")]


@pytest.fixture
def old(make_client):
    client = make_client(OLD)
    client.put(CATS)
    assert client.post(f"{CATS}/documents", json={"documents": DOCUMENTS}).status_code == 200
    return client


def search(client):
    return client.post(f"{CATS}/search", json={"queries": ["a"]})


def warnings(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "service.unusable"]


def warned(caplog) -> str:
    """The one line, which comes when the service is ready already."""
    deadline = time.monotonic() + 30
    while not (lines := warnings(caplog)) and time.monotonic() < deadline:
        time.sleep(0.01)
    [line] = lines
    return line


def test_one_of_no_served_encoder_is_named_and_the_refusal_leads_out(old, make_client, caplog):
    old.__exit__(None, None, None)
    assert warnings(caplog) == []
    client = make_client(NEW)
    line = warned(caplog)
    assert "collection cats belongs" in line
    assert OLD.fingerprint in line
    assert "MEXMA_FURTHER_MODELS" in line
    assert client.get("/health/ready").status_code == 200, "the others work"
    assert client.get(CATS).json()["served"] is False
    for refused in (
        search(client),
        client.post(f"{CATS}/documents", json={"documents": DOCUMENTS}),
    ):
        assert refused.status_code == 409
        said = refused.json()["error"]["message"]
        [way] = re.findall(r"\(POST (\S+)\)", said)
        assert f"POST {way}" in line
    # What both say is true in this state.
    client.post(way, json={"model": "new"}).raise_for_status()
    client.post(f"{way}/cut-over").raise_for_status()
    assert search(client).json()["fingerprint"] == NEW.fingerprint
    assert client.get(CATS).json()["served"] is True


def test_where_nothing_can_be_moved_no_move_is_offered(make_client, caplog):
    store = ReferenceStore()
    store.create("cats", 16, "encoder-of-old")
    client = make_client(NEW, store=store)
    line = warned(caplog)
    assert "encoder-of-old" in line
    refused = search(client)
    assert refused.status_code == 409
    assert "migration" not in line + refused.text


def test_a_damaged_one_is_named_and_a_snapshot_replaces_it(old, make_client, tmp_path, caplog):
    snapshot = old.post(f"{CATS}/snapshots").json()["id"]
    old.__exit__(None, None, None)
    (database,) = (tmp_path / "data").glob("cats.*/documents.sqlite")
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE documents SET text = 'changed' WHERE rid = 2")
    client = make_client(OLD)
    line = warned(caplog)
    assert "collection cats is damaged" in line
    assert client.get("/health/ready").status_code == 200
    refused = search(client)
    assert refused.status_code == 500
    [way] = re.findall(r"\(POST (\S+)\)", refused.json()["error"]["message"])
    assert way.replace("NAME", "cats") in line
    restored = client.post(way.replace("NAME", "cats").replace("ID", snapshot)).json()
    assert (restored["count"], restored["served"]) == (3, True)
    assert search(client).status_code == 200


def test_restoring_says_that_the_encoder_of_the_snapshot_is_not_served(old, make_client):
    snapshot = old.post(f"{CATS}/snapshots").json()["id"]
    assert old.delete(CATS).status_code == 204
    old.__exit__(None, None, None)
    client = make_client(NEW)
    restored = client.post(f"{CATS}/snapshots/{snapshot}/restore")
    assert (restored.status_code, restored.json()["served"]) == (200, False)
    assert search(client).status_code == 409
    assert client.get("/v1/collections").json()["collections"][0]["served"] is False
    client.__exit__(None, None, None)
    assert make_client(NEW, further=[OLD]).get(CATS).json()["served"] is True
