"""`/similarity`, `/tokenize` and `/`, as text-embeddings-inference's clients ask for them."""

from __future__ import annotations

import numpy as np
import pytest
from huggingface_hub import InferenceClient

from mexma.encoder import open_artifact, tokenizer_of
from service.settings import DEFAULT_MODEL
from tests.conftest import Server
from tests.fakes import FakeEncoder

PAIR = {"source_sentence": "Hello", "sentences": ["a", "Hello", "b"]}


@pytest.mark.parametrize("path", ["/similarity", "/"])
def test_similarity_is_the_cosine_to_each(client, path):
    response = client.post(path, json={"inputs": PAIR})
    assert response.status_code == 200
    encoder = FakeEncoder()
    expected = [float(encoder.vector("Hello") @ encoder.vector(t)) for t in PAIR["sentences"]]
    np.testing.assert_allclose(response.json(), expected, atol=1e-6)
    assert response.json()[1] == pytest.approx(1)
    assert response.headers["x-encoder-fingerprint"] == encoder.fingerprint


def test_similarity_cuts_where_it_is_told_to_and_says_so(client):
    inputs = {"source_sentence": "x", "sentences": ["a" + "x" * 99]}
    how = {"truncate": True, "truncation_direction": "left"}
    response = client.post("/similarity", json={"inputs": inputs, "parameters": how})
    encoder = FakeEncoder()
    expected = float(encoder.vector("x") @ encoder.vector("x" * 62))
    assert response.json() == pytest.approx([expected], abs=1e-6)
    assert '"index":1' in response.headers["x-truncation"]
    refused = client.post("/similarity", json={"inputs": inputs, "parameters": {"truncate": False}})
    assert refused.status_code == 422
    assert "item 1 has 102 tokens; the limit is 64" in refused.json()["error"]


@pytest.mark.parametrize(
    ("path", "inputs", "says"),
    [
        ("/similarity", {"source_sentence": "a"}, "inputs.sentences is missing"),
        ("/similarity", {"source_sentence": "a", "sentences": []}, "at least 1 item"),
        ("/similarity", {"source_sentence": "a", "sentences": ["b", ""]}, "item 2 is an empty"),
        ("/similarity", "a", "inputs must be a JSON object"),
        ("/tokenize", ["a", ""], "item 1 is an empty string"),
        ("/tokenize", [], "at least 1 item"),
        ("/tokenize", "x" * 131_073, "at most 131072 characters in all, found 131073"),
        ("/tokenize", ["x"] * 5_000, "items were sent; the limit is"),
        ("/", {"source_sentence": "a", "sentences": [5]}, "expected text, found 5"),
        ("/", None, "inputs"),
    ],
)
def test_errors_have_teis_shape_and_words(client, path, inputs, says):
    response = client.post(path, json={"inputs": inputs})
    assert response.status_code == 422, response.text
    assert set(response.json()) == {"error", "error_type"}
    assert says in response.json()["error"]


def test_tokens_are_those_that_are_counted(client):
    (tokens,) = client.post("/tokenize", json={"inputs": "Hé"}).json()
    usage = client.post("/v1/embeddings", json={"input": "Hé"}).json()["usage"]
    assert len(tokens) == usage["prompt_tokens"]
    assert [t["special"] for t in (tokens[0], tokens[-1])] == [True, True]
    assert tokens[0]["start"] is None
    inner = tokens[1:-1]
    assert inner[0] | {"id": 0} == {"id": 0, "text": "H", "special": False, "start": 0, "stop": 1}
    bare = client.post("/tokenize", json={"inputs": ["Hé"], "add_special_tokens": False}).json()
    assert bare == [inner]


def test_real_tokens_lie_where_they_say():
    tokenizer = tokenizer_of(open_artifact(DEFAULT_MODEL))
    texts = ["Kissa nukkuu sohvalla.", "今日は雨です。", "한국어", "e\u0301te\u0301"]
    for text, pieces in zip(texts, tokenizer.pieces(texts), strict=True):
        (ids,) = (t.ids.tolist() for t in tokenizer.encode([text]))
        assert [piece.id for piece in pieces] == ids
        inner = [piece for piece in pieces if not piece.special]
        assert all(piece.text == text[piece.start : piece.stop] for piece in inner)
        assert inner[-1].stop in (len(text), len(text) - 1)  # the mark of a composed letter


def test_huggingfaces_own_client(server: Server):
    """It is given an address and no route."""
    client = InferenceClient(server.url)
    vector = client.feature_extraction("Where is the library?")
    assert np.asarray(vector).shape == (1, 384)
    near, far = client.sentence_similarity(
        "Where is the library?", other_sentences=["Où est la bibliothèque ?", "Il pleut."]
    )
    assert near > 0.7 > far
