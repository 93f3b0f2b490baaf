"""An encoder that is not what it was, under the same fingerprint: its collections are off."""

from __future__ import annotations

import hashlib
import logging
from contextlib import closing

import numpy as np
import pytest

from service import migrator
from service.canaries import BOUND, SENTENCES
from service.store.copying import copy_collection
from service.store.database import Database, Header
from service.store.local import LocalStore
from tests.fakes import FakeEncoder

from .store.reference import ReferenceStore

TEXTS = ["I have two cats.", "Rain.", "Katzen"]


class Drifted(FakeEncoder):
    """The same files on another machine: each vector is turned away by this angle's cosine."""

    def __init__(self, cosine: float, **arguments):
        super().__init__(**arguments)
        self.cosine = cosine

    def run(self, sequences):
        vectors = super().run(sequences)
        aside = np.roll(vectors, 1, axis=1)
        aside -= np.sum(aside * vectors, axis=1, keepdims=True) * vectors
        aside /= np.linalg.norm(aside, axis=1, keepdims=True)
        return (self.cosine * vectors + np.sqrt(1 - self.cosine**2) * aside).astype(np.float32)


@pytest.fixture
def restarted(make_client, tmp_path, monkeypatch):
    """`restarted(encoder)`: the service with this encoder, on the same data."""
    monkeypatch.setattr(migrator, "LOOK_AGAIN_S", 0.01)
    last = []

    def start(encoder, **settings):
        for client in last:
            client.__exit__(None, None, None)
        last[:] = [make_client(encoder, **{"data_dir": tmp_path / "kept", **settings})]
        return last[0]

    return start


def fill(client, name: str = "cats") -> None:
    assert client.put(f"/v1/collections/{name}").status_code == 200
    documents = [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)]
    response = client.post(f"/v1/collections/{name}/documents", json={"documents": documents})
    assert response.json()["created"] == 3


def search(client, name: str = "cats"):
    return client.post(f"/v1/collections/{name}/search", json={"queries": TEXTS[:1]})


def test_the_sentences_are_those_that_collections_hold():
    """Changing them would turn every collection off that there is."""
    digest = hashlib.sha256("\n".join(SENTENCES).encode()).hexdigest()
    assert digest[:16] == "b4ae606cac922440"


def test_a_drift_within_what_batching_is_held_to_is_none(restarted):
    fill(restarted(FakeEncoder()))
    client = restarted(Drifted(0.99995))
    assert client.get("/health/ready").json()["status"] == "ready"
    assert search(client).status_code == 200


@pytest.mark.parametrize("cosine", [0.9998, 0.9, 0.1])
def test_a_drifted_encoder_turns_its_collections_off_and_the_probe(restarted, cosine, caplog):
    caplog.set_level(logging.ERROR)
    fill(restarted(FakeEncoder()))
    client = restarted(Drifted(cosine))
    said = client.get("/health/ready")
    assert (said.status_code, said.json()["reason"]) == (503, "canary_mismatch")
    assert f"cosine {cosine:.4f}" in said.json()["detail"]
    assert "'cats'" in said.json()["detail"]
    assert "'cats' is off" in caplog.text
    write = {"documents": [{"id": "x", "text": "x"}]}
    for response in (search(client), client.post("/v1/collections/cats/documents", json=write)):
        assert response.status_code == 503
        error = response.json()["error"]
        assert error["code"] == "canary_mismatch"
        assert FakeEncoder().fingerprint in error["message"]
    assert client.get("/v1/collections/cats/documents/0").json()["text"] == TEXTS[0]
    client = restarted(FakeEncoder())
    assert client.get("/health/ready").status_code == 200, "as it was before"
    assert search(client).json()["results"][0][0]["cosine"] == pytest.approx(1, abs=1e-6)


def test_only_the_collections_of_that_encoder_are_off_and_new_ones_are_not(restarted):
    other = FakeEncoder(name="other", dim=24)
    client = restarted(FakeEncoder(), further=[other])
    fill(client)
    client.put("/v1/collections/theirs", params={"model": "other"})
    client = restarted(Drifted(0.9), further=[other])
    assert search(client).status_code == 503
    assert search(client, "theirs").status_code == 200
    fill(client, "new")
    assert search(client, "new").status_code == 200
    client.delete("/v1/collections/cats")
    fill(client)
    assert search(client).status_code == 200, "made anew"
    assert client.get("/health/ready").status_code == 200


def test_migrating_to_the_same_model_embeds_anew(restarted):
    fill(restarted(FakeEncoder()))
    client = restarted(Drifted(0.9))
    migration = "/v1/collections/cats/migration"
    begun = client.post(migration, json={"model": "fake"})
    assert begun.status_code == 200, begun.text
    assert client.post(f"{migration}/cut-over").status_code == 200
    assert search(client).json()["results"][0][0]["cosine"] == pytest.approx(1, abs=1e-6)
    assert client.get("/health/ready").status_code == 200
    assert client.post(f"{migration}/rollback").status_code == 200
    assert search(client).status_code == 503, "those are the old vectors"
    client.post(f"{migration}/cut-over")
    assert client.post(f"{migration}/retire").status_code == 200
    client = restarted(Drifted(0.9))
    assert client.get("/health/ready").status_code == 200
    again = client.post(migration, json={"model": "fake"})
    assert again.status_code == 409, "nothing is wrong with it"


def test_what_was_begun_by_another_encoder_is_not_cut_over_to(restarted):
    other = {"name": "other", "dim": 24}
    client = restarted(FakeEncoder(), further=[FakeEncoder(**other)])
    fill(client)
    client.post("/v1/collections/cats/migration", json={"model": "other"})
    client = restarted(FakeEncoder(), further=[Drifted(0.9, **other)])
    refused = client.post("/v1/collections/cats/migration/cut-over")
    assert refused.status_code == 503
    assert "cosine 0.9000" in refused.json()["error"]["message"]
    assert search(client).status_code == 200


def test_a_restored_snapshot_is_checked(restarted):
    client = restarted(FakeEncoder())
    fill(client)
    snapshot = client.post("/v1/collections/cats/snapshots").json()["id"]
    client.delete("/v1/collections/cats")
    client = restarted(Drifted(0.9))
    assert client.get("/health/ready").status_code == 200
    client.post(f"/v1/collections/cats/snapshots/{snapshot}/restore")
    assert search(client).status_code == 503


def test_a_collection_without_canaries_is_judged_by_its_documents(restarted, monkeypatch):
    """As those made before there were any: their header says nothing of them."""
    written = Database.create

    def without(path, header):
        written(path, Header(header.name, header.dim, header.fingerprint, header.created_at))

    monkeypatch.setattr(Database, "create", without)
    fill(restarted(FakeEncoder()))
    assert restarted(FakeEncoder()).get("/health/ready").status_code == 200
    client = restarted(Drifted(0.9))
    assert client.get("/health/ready").json()["reason"] == "canary_mismatch"
    assert search(client).status_code == 503


def test_a_store_that_keeps_none_is_judged_by_its_documents(make_client):
    """Another kind of store, which outlives the service as a server's would."""
    store = ReferenceStore()
    fill(make_client(FakeEncoder(), store=store))
    client = make_client(Drifted(0.9), store=store)
    assert client.get("/health/ready").json()["reason"] == "canary_mismatch"
    assert search(client).status_code == 503
    refused = client.post("/v1/collections/cats/migration", json={"model": "fake"})
    assert refused.status_code == 501


def test_canaries_go_along_with_a_copy(restarted, tmp_path):
    fill(restarted(FakeEncoder()))
    restarted(FakeEncoder(), data_dir=tmp_path / "elsewhere")
    with (
        closing(LocalStore(tmp_path / "kept")) as source,
        closing(LocalStore(tmp_path / "copy")) as target,
    ):
        copy_collection(source, target, "cats", lambda n: None)
        np.testing.assert_array_equal(target.canaries("cats"), source.canaries("cats"))
        assert source.canaries("cats").shape == (len(SENTENCES), 16)


def test_the_demo_is_made_again(restarted):
    """Its sentences are ours: nobody has to see to it before the service is ready."""

    def ready(encoder) -> None:
        client = restarted(encoder, demo=True)
        while (said := client.get("/health/ready").json())["reason"] == "filling_demo":
            pass
        assert said["status"] == "ready"

    ready(FakeEncoder())
    ready(Drifted(0.9))
    ready(Drifted(0.9))


def test_the_bound_is_that_of_batching():
    from model_export.parity import BOUNDS

    assert min(bounds.alone for bounds in BOUNDS.values()) == BOUND
