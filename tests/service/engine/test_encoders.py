"""Two encoders in one service: who answers what."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from mexma.errors import ArtifactError
from tests.fakes import FakeEncoder

TEXT = "I have two cats."


@pytest.fixture
def encoders():
    return FakeEncoder(name="old"), FakeEncoder(name="new", dim=24)


@pytest.fixture
def client(make_client, encoders):
    return make_client(encoders[0], further=encoders[1:])


def embedded(client, **fields) -> dict:
    response = client.post("/v1/embeddings", json={"input": TEXT, **fields})
    assert response.status_code == 200, response.text
    return response.json() | {"fingerprint": response.headers["x-encoder-fingerprint"]}


def test_a_request_chooses_by_name_or_fingerprint_and_any_other_name_is_the_default(
    client, encoders
):
    old, new = encoders
    for model, expected in (
        ("new", new),
        (new.fingerprint, new),
        ("old", old),
        ("text-embedding-3-small", old),
        (None, old),
    ):
        answer = embedded(client, model=model)
        assert (answer["model"], answer["fingerprint"]) == (
            expected.manifest.name,
            expected.fingerprint,
        )
        assert answer["data"][0]["embedding"] == pytest.approx(
            expected.vector(TEXT).tolist(), abs=1e-6
        )


def test_two_of_one_name_are_said(make_client, caplog):
    make_client(FakeEncoder(name="same"), further=[FakeEncoder(name="same", max_tokens=48)])
    assert [r.message for r in caplog.records if "two models are called 'same'" in r.message]


def test_both_are_listed_and_counted(client, encoders):
    cards = client.get("/v1/models").json()["data"]
    assert [(c["id"], c["fingerprint"], c["dimensions"]) for c in cards] == [
        ("old", encoders[0].fingerprint, 16),
        ("new", encoders[1].fingerprint, 24),
    ]
    metrics = client.get("/metrics").text
    for encoder in encoders:
        labels = f'fingerprint="{encoder.fingerprint}",name="{encoder.manifest.name}"'
        assert f"mexma_encoder_info{{{labels}}} 1.0" in metrics


def test_one_is_retrieved_by_its_name_or_fingerprint(client, encoders):
    old, new = client.get("/v1/models").json()["data"]
    assert client.get("/v1/models/old").json() == old
    assert client.get("/v1/models/new").json() == new
    assert client.get(f"/v1/models/{encoders[1].fingerprint}").json() == new
    for name in ("text-embedding-3-small", "intfloat/multilingual-e5-small", "x" * 500):
        answer = client.get(f"/v1/models/{name}")
        assert answer.status_code == 404
        error = answer.json()["error"]
        assert error["code"] == "model_not_found"
        assert repr(name[:80]) in error["message"]


def test_each_collection_is_answered_by_its_own(client, encoders):
    for name, model in (("a", None), ("b", "new")):
        made = client.put(f"/v1/collections/{name}", params={"model": model} if model else {})
        encoder = encoders[1 if model else 0]
        assert made.json()["fingerprint"] == encoder.fingerprint
        found = client.put(f"/v1/collections/{name}")
        assert found.json() == made.json(), "without a model whatever exists is found"
        documents = {"documents": [{"id": "1", "text": TEXT}, {"id": "2", "text": "Rain."}]}
        stored = client.post(f"/v1/collections/{name}/documents", json=documents).json()
        assert (stored["created"], stored["fingerprint"]) == (2, encoder.fingerprint)
        for asked in ({"queries": [TEXT]}, {"vectors": [encoder.vector(TEXT).tolist()]}):
            response = client.post(f"/v1/collections/{name}/search", json={"k": 1, **asked})
            [[hit]] = response.json()["results"]
            assert (hit["id"], response.json()["fingerprint"]) == ("1", encoder.fingerprint)
            assert response.headers["x-encoder-fingerprint"] == encoder.fingerprint
            assert hit["cosine"] == pytest.approx(1, abs=1e-6)
    other = client.put("/v1/collections/a", params={"model": "new"})
    assert other.status_code == 409
    unknown = client.put("/v1/collections/c", params={"model": "nobody"})
    assert unknown.status_code == 404
    assert encoders[1].fingerprint in unknown.json()["error"]["message"]


def test_vectors_that_say_whose_they_are_are_refused_elsewhere(client, encoders):
    client.put("/v1/collections/a")
    body = {"vectors": [encoders[0].vector(TEXT).tolist()]}
    asked = {**body, "fingerprint": encoders[1].fingerprint}
    response = client.post("/v1/collections/a/search", json=asked)
    assert response.status_code == 409
    for encoder in encoders:
        assert encoder.fingerprint in response.json()["error"]["message"]
    asked = {**body, "fingerprint": encoders[0].fingerprint}
    assert client.post("/v1/collections/a/search", json=asked).status_code == 200


def test_ready_is_off_when_either_fails_and_names_it(client, encoders):
    assert client.get("/health/ready").status_code == 200
    encoders[1].broken = True
    assert client.post("/v1/embeddings", json={"input": "x", "model": "new"}).status_code == 500
    assert client.post("/v1/embeddings", json={"input": "x"}).status_code == 200
    said = client.get("/health/ready").json()
    assert said["reason"] == "engine_failed"
    assert said["detail"].startswith("new: ")
    encoders[1].broken = False
    assert client.get("/health/ready").status_code == 200


def test_what_waits_is_counted_in_both_queues(client, encoders):
    def waiting() -> float:
        lines = client.get("/metrics").text.splitlines()
        [line] = [line for line in lines if line.startswith("mexma_queue_items ")]
        return float(line.split()[1])

    def ask(model: str, text: str) -> threading.Thread:
        body = {"json": {"input": text, "model": model}}
        thread = threading.Thread(target=client.post, args=("/v1/embeddings",), kwargs=body)
        thread.start()
        return thread

    def until(true: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + 60
        while not (found := true()) and time.monotonic() < deadline:
            time.sleep(0.01)
        return found

    ran = [len(encoder.batches) for encoder in encoders]
    for encoder in encoders:
        encoder.gate.clear()
    asked = [ask(model, "first") for model in ("old", "new")]
    both_run = until(lambda: all(len(e.batches) > n for e, n in zip(encoders, ran, strict=True)))
    asked += [ask(model, f"text {n}") for model in ("old", "new") for n in range(3)]
    all_wait = until(lambda: waiting() == 6)
    for encoder in encoders:
        encoder.gate.set()
    for thread in asked:
        thread.join()
    assert both_run
    assert all_wait


def test_one_encoder_twice_is_refused(make_client):
    with pytest.raises(ArtifactError, match="twice"):
        make_client(FakeEncoder(), further=[FakeEncoder()])
