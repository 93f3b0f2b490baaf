"""The model is exchanged while the service answers: what must hold, whatever the new one is like."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mexma.artifact import Manifest, hash_file, open_artifact, write_manifest
from mexma.sample import tatoeba_sample
from service import reloader
from service.canaries import SENTENCES
from service.store.local import LocalStore
from tests.fakes import FakeEncoder, byte_tokenizer_json, vector_of

TEXT = "I have two cats."
NOTES = "/v1/collections/notes"


class Models:
    """Artifacts in a folder, and the encoders that were made of them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.loaded: list[weakref.ref[FakeEncoder]] = []
        self.as_loaded: Callable[[FakeEncoder], object] = lambda _: None
        self.loading, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def make(self, name: str, *, dim: int = 16) -> FakeEncoder:
        """An artifact of that name, and the encoder that it is: other dimensions, other vectors."""
        path = self.folder / name
        path.mkdir(parents=True)
        (path / "model.onnx").write_bytes(f"{name} {dim}".encode())
        (path / "tokenizer.json").write_bytes(byte_tokenizer_json())
        encoder = FakeEncoder(name=name, dim=dim)
        files = {f: hash_file(path / f) for f in ("model.onnx", "tokenizer.json")}
        encoder.manifest = Manifest(
            **{k: v for k, v in vars(encoder.manifest).items() if k != "files"}, files=files
        )
        write_manifest(path, encoder.manifest)
        return encoder

    def load(self, path: Path) -> FakeEncoder:
        artifact = open_artifact(path)
        self.loading.set()
        assert self.gate.wait(60)
        encoder = FakeEncoder(dim=artifact.manifest.dim)
        encoder.manifest = artifact.manifest
        self.loaded.append(weakref.ref(encoder))
        self.as_loaded(encoder)
        return encoder

    @property
    def last(self) -> FakeEncoder:
        found = self.loaded[-1]()
        assert found is not None
        return found


@pytest.fixture
def models(tmp_path, monkeypatch) -> Models:
    monkeypatch.setattr(reloader, "TRIAL_EVERY_S", 0.01)
    monkeypatch.setattr(reloader, "OWNED_EVERY_S", 0.01)
    return Models(tmp_path / "models")


@pytest.fixture
def old(models) -> FakeEncoder:
    return models.make("old")


@pytest.fixture
def new(models) -> FakeEncoder:
    return models.make("new", dim=24)


@pytest.fixture
def start(make_client, models, old, new):
    """Serve `old`, and let others of the folder be loaded."""

    def run(**options):
        settings = {"model": models.folder / "old", "models_dir": models.folder}
        return make_client(old, load=models.load, **(settings | options))

    return run


@pytest.fixture
def client(start):
    return start()


def call(client, verb: str, status: int = 200, **body) -> dict:
    json = body if verb == "reload" else None
    response = client.post(f"/v1/models/{verb}", json=json)
    assert response.status_code == status, response.text
    return response.json() if status == 200 else response.json()["error"]


def look(client) -> dict:
    return client.get("/v1/models/reload").json()


def served(client) -> list[tuple[str, str]]:
    return [(card["id"], card["role"]) for card in client.get("/v1/models").json()["data"]]


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def check(client, encoder: FakeEncoder, text: str = TEXT, **fields) -> None:
    """It is this encoder that answers, and every answer says so."""
    answer = client.post("/v1/embeddings", json={"input": text, **fields})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-encoder-fingerprint"] == encoder.fingerprint
    assert answer.json()["model"] == encoder.manifest.name
    found = answer.json()["data"][0]["embedding"]
    np.testing.assert_allclose(found, encoder.vector(text), atol=1e-6)


def check_default(client, encoder: FakeEncoder) -> None:
    check(client, encoder)
    answer = client.post("/embed", json={"inputs": TEXT})
    assert answer.headers["x-encoder-fingerprint"] == encoder.fingerprint
    np.testing.assert_allclose(answer.json()[0], encoder.vector(TEXT), atol=1e-6)
    assert client.get("/info").json()["model_sha"] == encoder.fingerprint
    assert served(client)[0] == (encoder.manifest.name, "default")
    labels = f'fingerprint="{encoder.fingerprint}",name="{encoder.manifest.name}"'
    lines = client.get("/metrics").text.splitlines()
    assert [x for x in lines if x.startswith("mexma_encoder_info")] == [
        f"mexma_encoder_info{{{labels}}} 1.0"
    ]


def test_the_new_model_answers_and_after_a_rollback_the_old_one(client, old, new):
    done = call(client, "reload", model="new")
    assert (done["outcome"], done["fingerprint"], done["previous"]) == (
        "reloaded", new.fingerprint, old.fingerprint,
    )  # fmt: skip
    check_default(client, new)
    assert served(client) == [("new", "default"), ("old", "kept")]
    check(client, new, model="old")  # a name means those that are chosen by it, not what is kept
    check(client, old, model=old.fingerprint)
    assert look(client)["state"] == "trial"
    assert client.get("/health/ready").status_code == 200
    done = call(client, "rollback")
    assert (done["outcome"], done["fingerprint"], done["previous"]) == (
        "rolled_back", old.fingerprint, None,
    )  # fmt: skip
    check_default(client, old)
    until(lambda: served(client) == [("old", "default")], "what was rolled back stays loaded")
    assert "no model to go back to" in call(client, "rollback", 409)["message"]
    call(client, "reload", model="new")
    check_default(client, new)
    metrics = client.get("/metrics").text
    assert 'mexma_model_reloads_total{outcome="reloaded"} 2.0' in metrics
    assert 'mexma_model_reloads_total{outcome="rolled_back"} 1.0' in metrics


def test_the_record_of_a_reload_says_which_model_came_for_which(client, models, old, new, caplog):
    caplog.set_level("INFO", "mexma.audit")
    call(client, "reload", model="new")
    call(client, "rollback")
    call(client, "reload", 422, model="nowhere")
    call(client, "reload")
    done = [vars(r) for r in caplog.records if getattr(r, "phase", "") == "done"]
    a, b = old.fingerprint, new.fingerprint
    assert [
        (r["path"], r.get("model"), r["fingerprint_before"], r["fingerprint_after"], r["status"])
        for r in done
    ] == [
        ("/v1/models/reload", "new", a, b, 200),
        ("/v1/models/rollback", None, b, a, 200),
        ("/v1/models/reload", "nowhere", a, a, 422),
        ("/v1/models/reload", str(models.folder / "old"), a, a, 200),
    ]
    assert {r["address"] for r in done} == {"testclient"}


def test_the_document_of_the_api_has_the_limits_of_the_model_that_answers(client, old, new):
    def most() -> int:
        schemas = client.get("/openapi.json").json()["components"]["schemas"]
        return schemas["SearchRequest"]["properties"]["vectors"]["anyOf"][0]["items"]["maxItems"]

    assert most() == 16
    call(client, "reload", model="new")
    assert most() == 24
    assert client.get("/v1/models/new").json()["role"] == "default"


def test_the_same_directory_is_read_again(client, models, old):
    assert call(client, "reload")["outcome"] == "unchanged"
    assert models.loaded == []
    (models.folder / "old").rename(models.folder / "before")
    changed = models.make("old", dim=24)
    assert call(client, "reload")["fingerprint"] == changed.fingerprint
    check_default(client, changed)


def test_a_model_that_is_still_loaded_is_not_loaded_again(client, models, old, new):
    call(client, "reload", model="new")
    call(client, "reload", model="old")
    assert (len(models.loaded), look(client)["previous"]) == (1, new.fingerprint)
    check_default(client, old)


# Refused: nothing changes


def damage(models: Models) -> str:
    file = models.folder / "new/model.onnx"
    file.write_bytes(b"X" + file.read_bytes()[1:])
    return "new"


def truncate(models: Models) -> str:
    file = models.folder / "new/tokenizer.json"
    file.write_bytes(file.read_bytes()[:-1])
    return "new"


def link_outside(models: Models) -> str:
    (models.folder / "new").rename(models.folder.parent / "elsewhere")
    (models.folder / "link").symlink_to(models.folder.parent / "elsewhere")
    return "link"


def outside(models: Models) -> str:
    (models.folder / "new").rename(models.folder.parent / "elsewhere")
    return "../elsewhere"


def absolute(models: Models) -> str:
    (models.folder / "new").rename(models.folder.parent / "elsewhere")
    return str(models.folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (damage, "new/model.onnx: expected SHA-256"),
        (truncate, "new/tokenizer.json: expected"),
        (lambda _: "none", "none: expected a model directory"),
        (link_outside, "below MEXMA_MODELS_DIR"),
        (outside, "below MEXMA_MODELS_DIR"),
        (absolute, "below MEXMA_MODELS_DIR"),
        (lambda _: ".", "below MEXMA_MODELS_DIR"),
        (lambda _: "new/..", "below MEXMA_MODELS_DIR"),
        (lambda _: "a\0b", "below MEXMA_MODELS_DIR"),
        (lambda _: "https://example.com/model", "expected a model directory"),
    ],
)
def test_what_is_no_sound_artifact_below_the_folder_is_refused(
    client, models, old, attack, said, caplog
):
    error = call(client, "reload", 422, model=attack(models))
    assert said in error["message"]
    assert error["code"] == "reload_refused"
    check_default(client, old)
    assert served(client) == [("old", "default")]
    found = look(client)
    assert (found["state"], found["last"]["outcome"]) == ("idle", "refused")
    assert found["last"]["reason"] == error["message"]
    assert error["message"] in caplog.text
    assert 'mexma_model_reloads_total{outcome="refused"} 1.0' in client.get("/metrics").text


def test_a_damaged_artifact_in_the_place_of_the_one_that_serves_is_refused(client, models, old):
    file = models.folder / "old/model.onnx"
    file.write_bytes(b"X" + file.read_bytes()[1:])
    assert "old/model.onnx: expected SHA-256" in call(client, "reload", 422)["message"]
    check_default(client, old)


def test_without_a_folder_no_model_may_be_named(start, old):
    client = start(models_dir=None)
    assert "MEXMA_MODELS_DIR" in call(client, "reload", 422, model="new")["message"]
    assert call(client, "reload")["outcome"] == "unchanged"


def test_an_artifact_that_changes_while_it_is_loaded_is_refused(client, models, old):
    file = models.folder / "new/model.onnx"
    models.as_loaded = lambda _: file.write_bytes(b"X" + file.read_bytes()[1:])
    assert "model.onnx: expected SHA-256" in call(client, "reload", 422, model="new")["message"]
    check_default(client, old)


def test_a_model_for_which_there_is_no_memory_is_not_loaded(client, models, old, monkeypatch):
    monkeypatch.setattr(reloader, "available_bytes", lambda: 100)
    error = call(client, "reload", 422, model="new")
    assert "0 MB are free" in error["message"]
    assert models.loaded == []
    check_default(client, old)


def test_a_service_without_a_loader_says_that_it_cannot(make_client, old):
    client = make_client(old)
    for verb in ("reload", "rollback"):
        assert call(client, verb, 501)["code"] == "reload_unsupported"


# Not proved: nothing changes either


def broken(encoder: FakeEncoder) -> None:
    encoder.broken = True


def not_finite(encoder: FakeEncoder) -> None:
    encoder.not_finite = encoder.token("Z")  # the beginning of a canary's word


def not_normalised(encoder: FakeEncoder) -> None:
    run = encoder.run
    encoder.run = lambda sequences: run(sequences) * 1.01


def of_its_batch(encoder: FakeEncoder) -> None:
    run = encoder.run

    def other(sequences):
        vectors = run(sequences)
        return vectors if len(sequences) == 1 else vectors[:, ::-1].copy()

    encoder.run = other


def of_other_dimensions(encoder: FakeEncoder) -> None:
    run = encoder.run
    encoder.run = lambda sequences: run(sequences)[:, :20] * 0 + np.eye(20)[0].astype(np.float32)


def hanging(encoder: FakeEncoder) -> None:
    encoder.gate.clear()


@pytest.mark.parametrize(
    ("misbehave", "said"),
    [
        (broken, "inference failed"),
        (not_finite, "not finite"),
        (not_normalised, "not of length 1: off by 0.0100"),
        (of_its_batch, "depends on what is in its batch"),
        (of_other_dimensions, "20 components, not 24"),
        (hanging, "MEXMA_ENGINE_TIMEOUT_S"),
    ],
)
def test_a_model_that_fails_its_proof_never_answers(start, models, old, misbehave, said):
    client = start(engine_timeout_s=0.3)
    models.as_loaded = misbehave
    assert said in call(client, "reload", 422, model="new")["message"]
    models.last.gate.set()
    check_default(client, old)
    assert client.get("/health/ready").status_code == 200
    until(lambda: gone(models), "what was refused stays loaded")
    models.as_loaded = lambda _: None
    assert call(client, "reload", model="new")["outcome"] == "reloaded"


def gone(models: Models) -> bool:
    gc.collect()
    return models.loaded[-1]() is None


def understand(encoder: FakeEncoder, share: float) -> None:
    """Give that share of the sample's sentences the vectors of their English translations."""
    english = {s.group: s.text for s in tatoeba_sample() if s.lang == "en"}
    tokenizer, dim = encoder.tokenizer, encoder.manifest.dim
    known = {}
    for s in tatoeba_sample():
        if s.group % 100 < 100 * share:
            ids = tokenizer.encode([english[s.group]])[0].ids
            known[tokenizer.encode([s.text])[0].ids.tobytes()] = vector_of(ids, dim)
    run = encoder.run

    def other(sequences):
        vectors = run(sequences)
        for i, ids in enumerate(sequences):
            vectors[i] = known.get(ids.tobytes(), vectors[i])
        return vectors

    encoder.run = other


def test_a_model_that_finds_fewer_translations_is_refused(start, models, old, new):
    understand(old, 1.0)
    client = start()
    models.as_loaded = lambda encoder: understand(encoder, 0.8)
    error = call(client, "reload", 422, model="new")
    assert "MEXMA_RELOAD_MAX_LOSS allows 2.0 points less" in error["message"]
    assert served(client) == [("old", "default")]
    models.as_loaded = lambda encoder: understand(encoder, 0.999)
    assert call(client, "reload", model="new")["outcome"] == "reloaded"


def test_a_loss_that_is_allowed_is_taken(start, models, old, new):
    understand(old, 1.0)
    client = start(reload_max_loss=1.0)
    assert call(client, "reload", model="new")["fingerprint"] == new.fingerprint


def test_any_model_that_works_is_better_than_one_that_does_not(client, models, old, new):
    old.broken = True
    call(client, "reload", model="new")
    check(client, new)
    assert client.get("/health/ready").status_code == 200


# At the same time


def test_a_second_reload_gets_409_and_the_old_model_answers_meanwhile(client, models, old, new):
    models.gate.clear()
    first: list[dict] = []
    thread = threading.Thread(target=lambda: first.append(call(client, "reload", model="new")))
    thread.start()
    assert models.loading.wait(60)
    assert look(client)["state"] == "loading"
    for verb in ("reload", "rollback"):
        assert call(client, verb, 409)["code"] == "reload_conflict"
    check_default(client, old)
    models.gate.set()
    thread.join()
    assert first[0]["outcome"] == "reloaded"
    check_default(client, new)


def test_what_has_begun_ends_with_the_model_it_began_with(start, models, old, new):
    """The old one is let go at once, and lives until its last request is answered."""
    client = start(reload_keep_s=0, reload_trial_s=0, cache_mb=16)
    client.put(NOTES)
    call(client, "reload", model="new")
    call(client, "rollback")  # both are measured: the next reload needs no engine but the new one
    old.gate.clear()
    before, answers = len(old.batches), []
    texts = [TEXT, "another text", TEXT]

    def ask(text: str) -> None:
        answers.append((text, client.post("/v1/embeddings", json={"input": text})))

    threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    until(lambda: len(old.batches) > before, "nothing runs")
    client.delete(NOTES)
    call(client, "reload", model="new")
    check(client, new)
    check(client, new, "another text")  # neither joined to what waits for the old one, nor cached
    until(lambda: served(client) == [("new", "default")], "the old one is not let go")
    old.gate.set()
    for thread in threads:
        thread.join()
    for text, answer in answers:
        assert answer.headers["x-encoder-fingerprint"] == old.fingerprint
        found = answer.json()["data"][0]["embedding"]
        np.testing.assert_allclose(found, old.vector(text), atol=1e-6)
    check(client, new)


# On trial


def wrong(encoder: FakeEncoder) -> None:
    encoder.wrong = True


@pytest.mark.parametrize(
    ("fail", "reason"), [(broken, "engine_failed"), (wrong, "engine_wrong"), (hanging, "engine_")]
)
@pytest.mark.parametrize("every", [0, 0.01])
def test_a_model_that_fails_its_trial_is_left_by_itself(
    start, models, old, new, fail, reason, every, caplog
):
    client = start(engine_timeout_s=0.3, canary_every_s=every)
    call(client, "reload", model="new")
    check_default(client, new)
    failing = models.last
    fail(failing)
    until(lambda: look(client)["fingerprint"] == old.fingerprint, "it stays")
    found = look(client)
    assert (found["state"], found["previous"]) == ("idle", None)
    assert found["last"]["outcome"] == "failed_trial"
    assert found["last"]["reason"].startswith(reason)
    assert f"failed_trial, {old.fingerprint} serves: {reason}" in caplog.text
    assert 'mexma_model_reloads_total{outcome="failed_trial"} 1.0' in client.get("/metrics").text
    failing.gate.set()
    check_default(client, old)
    assert served(client) == [("old", "default")]
    assert client.get("/health/ready").status_code == 200
    del failing
    until(lambda: gone(models), "what failed stays loaded")


def test_a_trial_ends_and_the_way_back_stays_open(start, models, old, new):
    client = start(reload_trial_s=0.05)
    call(client, "reload", model="new")
    until(lambda: look(client)["state"] == "idle", "the trial goes on")
    assert look(client)["previous"] == old.fingerprint
    call(client, "rollback")
    check_default(client, old)


# What is kept


def test_a_model_that_is_not_needed_any_more_gives_its_memory_back(start, models, old, new):
    client = start(reload_keep_s=0, reload_trial_s=0)
    call(client, "reload", model="new")
    first = models.loaded[-1]
    call(client, "reload", model="old")
    until(lambda: served(client) == [("old", "default")], "the first one is not let go")

    def freed() -> bool:
        gc.collect()
        return first() is None

    until(freed, "the first one's encoder is still there")
    check(client, models.last)
    assert "no model to go back to" in call(client, "rollback", 409)["message"]


def test_a_collection_keeps_its_encoder_until_it_is_moved(start, models, old, new):
    client = start(reload_keep_s=0, reload_trial_s=0)
    client.put(NOTES)
    document = {"id": "1", "text": TEXT, "lang": "en"}
    client.post(f"{NOTES}/documents", json={"documents": [document]})
    assert call(client, "reload", model="new")["collections"] == ["notes"]

    def search(expected: FakeEncoder) -> None:
        found = client.post(f"{NOTES}/search", json={"queries": [TEXT]})
        assert found.status_code == 200, found.text
        assert found.json()["fingerprint"] == expected.fingerprint
        assert found.json()["results"][0][0]["cosine"] == pytest.approx(1, abs=1e-5)

    search(old)
    assert client.put("/v1/collections/other").json()["fingerprint"] == new.fingerprint
    client.delete("/v1/collections/other")
    assert served(client) == [("new", "default"), ("old", "kept")]
    moving = f"{NOTES}/migration"
    assert client.post(moving, json={"model": "new"}).status_code == 200
    until(lambda: client.get(moving).json()["phase"] == "ready", "it is not embedded")
    assert client.post(f"{moving}/cut-over").status_code == 200
    search(new)
    assert served(client) == [("new", "default"), ("old", "kept")]  # the migration's way back
    assert client.post(f"{moving}/retire").status_code == 200
    until(lambda: served(client) == [("new", "default")], "the old one is not let go")
    search(new)


def test_a_collection_of_the_new_model_is_checked_before_it_answers(start, models, old, new):
    """It was made by that model, elsewhere or earlier, and had no encoder here until now."""
    store = LocalStore(models.folder.parent / "data")
    right = np.stack([new.vector(s) for s in SENTENCES])
    store.create("sound", 24, new.fingerprint, right)
    store.create("off", 24, new.fingerprint, -right)
    client = start(store=store)
    for name in ("sound", "off"):
        found = client.post(f"/v1/collections/{name}/search", json={"queries": [TEXT]})
        assert found.status_code == 409
    call(client, "reload", model="new")
    found = client.post("/v1/collections/sound/search", json={"queries": [TEXT]})
    assert found.status_code == 200
    found = client.post("/v1/collections/off/search", json={"queries": [TEXT]})
    assert (found.status_code, found.json()["error"]["code"]) == (503, "canary_mismatch")


def test_a_further_model_may_take_the_default_s_place_and_stays(make_client, models, old, new):
    client = make_client(
        old,
        further=[new],
        load=models.load,
        model=models.folder / "old",
        models_dir=models.folder,
        reload_keep_s=0,
        reload_trial_s=0,
    )
    client.put(NOTES)  # keeps the old one, for the rollback
    call(client, "reload", model="new")
    assert models.loaded == []
    assert served(client) == [("new", "default"), ("old", "kept")]
    call(client, "rollback")
    assert served(client) == [("old", "default"), ("new", "further")]
    check(client, new, model="new")
