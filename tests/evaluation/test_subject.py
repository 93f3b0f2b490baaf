"""The three kinds of subject: the same vectors from each, and clear words when one fails."""

from __future__ import annotations

import base64
import json
import subprocess
import sys

import httpx
import numpy as np
import pytest

from evaluation.checkpoint import CheckpointSubject
from evaluation.remote import ServiceSubject
from evaluation.subject import ArtifactSubject, VectorTable, open_subject, unit_vectors
from mexma.encoder import encode
from mexma.errors import (
    ArtifactError,
    CheckpointError,
    EngineError,
    FingerprintMismatch,
    InputError,
    NonFiniteVector,
)
from tests.conftest import ROOT, start_server, wait_until_ready
from tests.fakes import FakeEncoder

TEXTS = ["I have two cats.", "Minulla on kaksi kissaa.", "ja " * 200, "x"]
WORDS = [["Minulla", "on", "kaksi", "kissaa."], ["x"]]


def test_each_kind_is_known_by_its_name(tiny, tmp_path):
    artifact = open_subject(str(tiny / "artifact"))
    checkpoint = open_subject(str(tiny / "checkpoint"))
    assert isinstance(artifact, ArtifactSubject)
    assert isinstance(checkpoint, CheckpointSubject)
    assert artifact.about["kind"] == "artifact"
    assert len(checkpoint.about["fingerprint"]) == len(artifact.about["fingerprint"]) == 16
    with pytest.raises(InputError, match="expected a checkpoint directory, an artifact directory"):
        open_subject(str(tiny / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError):
        open_subject(str(tmp_path / "empty"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError):
        open_subject(str(tmp_path / "broken"))


def test_checkpoint_and_artifact_give_the_same_vectors_and_states(tiny):
    artifact, checkpoint = (open_subject(str(tiny / n)) for n in ("artifact", "checkpoint"))
    first, second = artifact.vectors(TEXTS), checkpoint.vectors(TEXTS)
    np.testing.assert_allclose(first, second, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-6)
    assert artifact.truncated == checkpoint.truncated == 1
    for a, b in zip(artifact.token_states(WORDS), checkpoint.token_states(WORDS), strict=True):
        np.testing.assert_allclose(a.states, b.states, atol=1e-4)
        np.testing.assert_array_equal(a.word, b.word)
    assert not open_subject(str(tiny / "plain")).has_token_states


def test_pieces_belong_to_their_words_and_are_the_pieces_of_the_sentence(tiny):
    subject = ArtifactSubject(tiny / "artifact")
    states = subject.token_states(WORDS)
    assert sorted(set(states[0].word.tolist())) == [0, 1, 2, 3]
    assert (np.diff(states[0].word) >= 0).all()
    (tokens,) = subject.encoder.tokenizer.encode([" ".join(WORDS[0])])
    assert len(states[0].states) == len(states[0].word) == len(tokens) - 2
    alone = subject.token_states(WORDS[:1])[0]  # as in the batch with another
    np.testing.assert_allclose(alone.states, states[0].states, atol=1e-4)


def test_a_prefix_is_no_word(tiny):
    with_prefix = CheckpointSubject(str(tiny / "checkpoint"), prefix="query: ")
    plain = CheckpointSubject(str(tiny / "checkpoint"))
    a, b = with_prefix.token_states(WORDS)[0], plain.token_states(WORDS)[0]
    np.testing.assert_array_equal(a.word, b.word)
    assert np.abs(a.states - b.states).max() > 1e-3
    assert with_prefix.about["fingerprint"] != plain.about["fingerprint"]


def test_vectors_are_unit_and_finite():
    out = unit_vectors(np.array([[3, 4], [0, 0]], np.float32), ["a", "b"])
    np.testing.assert_allclose(out, [[0.6, 0.8], [0, 0]])
    with pytest.raises(NonFiniteVector, match="NaN or infinity for 'b', and for 0 texts more"):
        unit_vectors(np.array([[1, 0], [np.nan, 0]], np.float32), ["a", "b"])


class Counting:
    """A subject that remembers what it was asked."""

    def __init__(self):
        self.asked: list[str] = []
        self.about, self.truncated, self.has_token_states = {}, 0, False

    def vectors(self, texts):
        self.asked += texts
        return np.array([[len(t), 1] for t in texts], np.float32)


def test_a_text_that_cannot_be_embedded_is_shown(tiny):
    table = VectorTable(ArtifactSubject(tiny / "artifact"))
    with pytest.raises(InputError, match="text '': item 1 is an empty string"):
        table.load(["x", ""])


def test_every_text_is_embedded_once():
    subject = Counting()
    table = VectorTable(subject)
    table.load(["a", "bb", "a"])
    assert table.of(["bb", "a", "a"]).tolist() == [[2, 1], [1, 1], [1, 1]]
    assert table.of(["ccc", "bb"]).tolist() == [[3, 1], [2, 1]]
    assert subject.asked == ["a", "bb", "ccc"]
    assert len(table) == 3
    with pytest.raises(InputError, match="got none"):
        VectorTable(subject).of([])


class Contract:
    """`/v1/embeddings` of a fake encoder, and its ways to fail."""

    def __init__(self):
        self.encoder = FakeEncoder()
        self.busy, self.requests, self.change_after = 0, [], None
        self.given: set[str | None] = set()
        self.models: set[str] = set()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/embeddings"
        body = json.loads(request.content)
        assert body["encoding_format"] == "base64"
        self.requests.append(body["input"])
        self.models.add(body["model"])
        self.given.add(request.headers.get("authorization"))
        if self.busy:
            self.busy -= 1
            return httpx.Response(503, headers={"retry-after": "0"}, json={})
        vectors = encode(self.encoder, body["input"])
        seen = [t.seen > len(t) for t in self.encoder.tokenizer.encode(body["input"])]
        data = [
            {"index": i, "embedding": base64.b64encode(v.tobytes()).decode()}
            | ({"truncation": {}} if cut else {})
            for i, (v, cut) in enumerate(zip(vectors, seen, strict=True))
        ]
        changed = self.change_after is not None and len(self.requests) > self.change_after
        return httpx.Response(
            200,
            headers={"x-encoder-fingerprint": "other" if changed else self.encoder.fingerprint},
            json={"data": data[::-1], "model": "fake"},  # any order, each with its index
        )

    def subject(self, url: str = "http://service/", model: str | None = None) -> ServiceSubject:
        client = httpx.Client(transport=httpx.MockTransport(self))
        return ServiceSubject(url, model=model, client=client)


def test_a_service_gives_each_text_its_vector():
    contract = Contract()
    contract.busy = 2
    subject = contract.subject()
    assert subject.about["fingerprint"] == contract.encoder.fingerprint
    assert (subject.about["name"], subject.about["dim"]) == ("fake", 16)
    texts = [f"text {i} " + "x" * (i % 7) for i in range(150)] + ["y" * 100]
    np.testing.assert_allclose(subject.vectors(texts), encode(contract.encoder, texts), atol=1e-6)
    assert subject.truncated == 1
    assert max(map(len, contract.requests)) == 64
    assert not subject.has_token_states
    with pytest.raises(InputError, match="a service gives no token states"):
        subject.token_states([["a"]])


def test_a_service_is_found_as_openai_s_clients_name_it_and_one_of_its_models_chosen():
    contract = Contract()
    for url in ("http://service/v1", "http://service/v1/"):
        contract.subject(url, model="fake").vectors(["a"])
    assert contract.models == {"fake"}
    contract.subject(model=contract.encoder.fingerprint).vectors(["a"])
    # A service takes a name that it does not know for its default's.
    with pytest.raises(InputError, match="serves no model 'fakr'; 'fake' answered"):
        contract.subject(model="fakr")


def test_a_service_that_becomes_another_is_noticed():
    contract = Contract()
    subject = contract.subject()
    contract.change_after = 2
    with pytest.raises(FingerprintMismatch, match="the service was changed during the evaluation"):
        subject.vectors([str(i) for i in range(300)])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (httpx.Response(404, text="no such page"), "expected 200, got 404: no such page"),
        (httpx.Response(200, text="<html>"), "expected embeddings in base64, got '<html>'"),
        (httpx.Response(200, json={"data": []}), "expected embeddings in base64"),
        (httpx.Response(200, json={"data": [{"embedding": [1.0]}]}), "expected embeddings in base"),
    ],
)
def test_what_is_no_service_is_refused(answer, message):
    client = httpx.Client(transport=httpx.MockTransport(lambda _: answer))
    with pytest.raises(EngineError, match=message) as caught:
        ServiceSubject("http://service", client=client)
    assert str(caught.value).startswith("http://service: ")


def test_nobody_there():
    with pytest.raises(EngineError, match="expected a service, but ConnectError"):
        open_subject("http://127.0.0.1:9")


def test_the_real_service_gives_what_its_artifact_gives(tmp_path):
    server = start_server(tmp_path, demo="false")  # the shared one embeds its demo first
    try:
        wait_until_ready(server)
        compare_with_artifact(server.url)
    finally:
        server.process.terminate()
        server.process.wait(60)


def compare_with_artifact(url: str) -> None:
    over_http, here = open_subject(url), open_subject(str(ROOT / "models/default"))
    assert over_http.about["fingerprint"] == here.about["fingerprint"]
    assert over_http.about["name"] == here.about["name"]
    np.testing.assert_allclose(over_http.vectors(TEXTS), here.vectors(TEXTS), atol=1e-5)


def test_an_artifact_is_evaluated_without_torch(tiny, tmp_path):
    data = tmp_path / "pairs.tsv"
    data.write_text("lang\tsrc\ttrg\nfi\tKiitos.\tThank you.\nfi\tHei!\tHello!\n")
    code = (
        "import sys\n"
        "from evaluation.__main__ import main\n"
        f"assert main([{str(tiny / 'plain')!r}, {str(data)!r}, '--out', {str(tmp_path)!r}]) == 0\n"
        "assert not {'torch', 'transformers', 'training', 'service'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_a_service_that_asks_for_a_key_gets_it(monkeypatch):
    monkeypatch.setenv("MEXMA_API_KEY", "mexma_1_secret")
    contract = Contract()
    contract.subject()
    assert contract.given == {"Bearer mexma_1_secret"}
