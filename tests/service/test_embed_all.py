"""`/embed_all`: a vector for each token, to text-embeddings-inference's contract and with our limits."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from mexma.encoder import OnnxEncoder
from mexma.sample import tatoeba_sample
from mexma.text import TokenBatch
from service.settings import DEFAULT_MODEL, Settings
from service.vectors import NUMBERS_AT_ONCE, states_response
from tests.conftest import Server
from tests.fakes import FakeEncoder, vector_of
from tests.tiny import tiny_artifact

TEXTS = [
    "The cat sleeps on the sofa.",
    "Hyvää huomenta!",
    "今日は雨です。",
    "أين المكتبة؟",
    "ฉันมีแมวสองตัว",
    "मैं हिंदी बोलता हूँ।",
    "👨‍👩‍👧 e\u0301te\u0301",
    "   ",
]


def matrices(response) -> list[np.ndarray]:
    assert response.status_code == 200, response.text
    return [np.array(one, np.float32) for one in response.json()]


def states_of(encoder: FakeEncoder, text: str) -> np.ndarray:
    ids = encoder.tokenizer.encode([text])[0].ids
    return np.stack([vector_of(ids[i : i + 1], 16) for i in range(len(ids))])


# The default model, over HTTP


@pytest.fixture(scope="module")
def encoder() -> OnnxEncoder:
    return OnnxEncoder(DEFAULT_MODEL, threads=1)


def test_states_are_the_session_s_for_each_token_that_tokenize_lists(server: Server, encoder):
    found = matrices(httpx.post(f"{server.url}/embed_all", json={"inputs": TEXTS}, timeout=60))
    listed = httpx.post(f"{server.url}/tokenize", json={"inputs": TEXTS}).json()
    assert [len(one) for one in found] == [len(tokens) for tokens in listed]
    for text, one in zip(TEXTS, found, strict=True):
        (tokens,) = encoder.tokenizer.encode([text])
        expected = encoder.session.token_states(TokenBatch.pad([tokens.ids], 1))[0]
        assert one.shape == expected.shape
        assert lowest_cosine(one, expected) >= 0.9999, text
        assert (
            np.abs(np.linalg.norm(one, axis=1) / np.linalg.norm(expected, axis=1) - 1).max() < 0.01
        )


def test_their_mean_has_the_direction_of_the_text_s_vector(server: Server):
    found = matrices(httpx.post(f"{server.url}/embed_all", json={"inputs": TEXTS}, timeout=60))
    vectors = np.array(httpx.post(f"{server.url}/embed", json={"inputs": TEXTS}).json())
    means = np.stack([one.mean(0) for one in found])
    assert lowest_cosine(means, vectors) >= 0.9999


def test_alone_is_as_among_many_and_at_once_with_others(server: Server):
    texts = [s.text for s in tatoeba_sample()][:300:10]
    together = matrices(httpx.post(f"{server.url}/embed_all", json={"inputs": texts}, timeout=60))

    def alone(text: str) -> np.ndarray:
        httpx.post(f"{server.url}/embed", json={"inputs": text}, timeout=60).raise_for_status()
        (one,) = matrices(httpx.post(f"{server.url}/embed_all", json={"inputs": text}, timeout=60))
        return one

    with ThreadPoolExecutor(4) as pool:
        for one, same in zip(together, pool.map(alone, texts), strict=True):
            assert lowest_cosine(one, same) >= 0.9999


def lowest_cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / lengths).min())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "compact"])
def test_artifacts_of_each_precision_give_them(make_client, tmp_path, precision):
    tiny_artifact(tmp_path / "with", precision=precision, token_states=True)
    encoder = OnnxEncoder(tmp_path / "with", threads=1)
    client = make_client(encoder)
    found = matrices(client.post("/embed_all", json={"inputs": ["I have two cats.", "猫"]}))
    vectors = np.array(client.post("/embed", json={"inputs": ["I have two cats.", "猫"]}).json())
    assert lowest_cosine(np.stack([one.mean(0) for one in found]), vectors) >= 0.999


def test_an_artifact_exported_without_them_says_how_to_have_them(make_client, tmp_path):
    tiny_artifact(tmp_path / "without")
    client = make_client(OnnxEncoder(tmp_path / "without", threads=1))
    bodies = {"/embed_all": {"inputs": "x"}, "/v1/align": {"source": "x", "target": "y"}}
    for path, body in bodies.items():
        refused = client.post(path, json=body)
        assert refused.status_code == 501
        assert "mexma-export writes them with --token-states" in refused.text
    assert client.post("/embed", json=bodies["/embed_all"]).status_code == 200


# The contract and its limits


def test_one_text_several_and_token_ids(client):
    encoder = FakeEncoder()
    response = client.post("/embed_all", json={"inputs": "cat"})
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-encoder-fingerprint"] == encoder.fingerprint
    assert response.headers["server-timing"].startswith("tokenize;dur=")
    assert response.headers["x-request-id"]
    (one,) = matrices(response)
    np.testing.assert_array_equal(one, states_of(encoder, "cat"))  # to the last digit
    several = matrices(client.post("/embed_all", json={"inputs": ["cat", "a dog"]}))
    np.testing.assert_array_equal(several[1], states_of(encoder, "a dog"))
    ids = encoder.tokenizer.encode(["cat"])[0].ids.tolist()
    for given in (ids, [ids], ids[1:-1]):
        (same,) = matrices(client.post("/embed_all", json={"inputs": given}))
        np.testing.assert_array_equal(same, one)


def test_a_text_over_the_limit_is_cut_where_it_is_told_to_and_said_so(client):
    encoder = FakeEncoder()
    text = "a" * 30 + "b" * 60
    for side, kept in (("Right", text[:62]), ("left", text[-62:])):
        body = {"inputs": ["x", text], "truncate": True, "truncation_direction": side}
        response = client.post("/embed_all", json=body)
        np.testing.assert_array_equal(matrices(response)[1], states_of(encoder, kept))
        assert '"index":1' in response.headers["x-truncation"]
        assert response.headers["x-truncated-items"] == "1"
    refused = client.post("/embed_all", json={"inputs": ["x", text], "truncate": False})
    assert refused.status_code == 422
    assert "item 1 has 92 tokens; the limit is 64" in refused.json()["error"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "inputs is missing"),
        ({"inputs": []}, "found an empty list"),
        ({"inputs": ["a", ""]}, "item 1 is an empty string"),
        ({"inputs": ["a", 5]}, "item 1 must be text"),
        ({"inputs": {"source_sentence": "a"}}, "found an object"),
        ({"inputs": [[5, 9999]]}, "token id 9999 at position 1"),
        ({"inputs": "a", "truncation_direction": "up"}, "truncation_direction"),
        ({"inputs": "a", "prompt_name": "query"}, "prompt_name"),
        ({"inputs": ["x"] * 2049}, "2049 items were sent; the limit is 2048"),
        ({"inputs": ["x" * 60] * 140}, "the request has 8680 tokens; the limit is 8192"),
    ],
)
def test_errors_have_teis_shape_and_words(client, body, says):
    response = client.post("/embed_all", json=body)
    assert response.status_code == 422, response.text
    assert set(response.json()) == {"error", "error_type"}
    assert says in response.json()["error"]


def test_the_answer_is_the_same_written_in_parts(client, monkeypatch):
    body = {"inputs": ["cat", "d", "longer text than others"]}
    whole = client.post("/embed_all", json=body).content
    for numbers in (1, 16, 33, 64):
        monkeypatch.setattr("service.vectors.NUMBERS_AT_ONCE", numbers)
        assert client.post("/embed_all", json=body).content == whole


def test_a_token_that_is_not_finite_fails_the_request_and_names_the_item(make_client):
    encoder = FakeEncoder()
    client = make_client(encoder)
    encoder.not_finite = encoder.token("Q")
    response = client.post("/embed_all", json={"inputs": ["a", "bQ"]})
    assert response.status_code == 500
    assert response.json()["error_type"] == "Backend"
    assert "item 1" in response.json()["error"] and "not finite" in response.json()["error"]


def test_who_does_not_wait_longer_gets_504_and_who_finds_no_room_503(make_client):
    encoder = FakeEncoder()
    client = make_client(encoder, max_state_tokens=10)
    encoder.gate.clear()
    late = client.post("/embed_all", json={"inputs": "a"}, headers={"x-timeout-ms": "50"})
    assert late.status_code == 504
    asked = {"json": {"inputs": "x" * 8}}
    waiting = [
        threading.Thread(target=client.post, args=("/embed_all",), kwargs=asked) for _ in range(2)
    ]
    for thread in waiting:
        thread.start()
    room = client.app.state.encoders.default.state_room
    while room.held < 20:
        pass
    refused = client.post("/embed_all", **asked)
    assert refused.status_code == 503
    assert refused.json()["error_type"] == "Overloaded"
    assert int(refused.headers["retry-after-ms"]) > 0
    encoder.gate.set()
    for thread in waiting:
        thread.join()
    assert client.post("/embed_all", **asked).status_code == 200


def test_it_is_counted_like_other_requests(client):
    client.post("/embed_all", json={"inputs": ["ab", "c"]})
    metrics = client.get("/metrics").text
    assert 'route="/embed_all",status="200"} 1.0' in metrics
    assert Settings().max_state_tokens == 8192


def test_large_answers_are_sent_in_parts_of_bounded_size_and_said_how_long_they_are():
    sent = []

    async def send(message) -> None:
        sent.append(message)

    async def main() -> None:
        states = [np.ones((n, 384), np.float32) for n in (500, 1, 77)]
        response = await states_response(states, {"x-encoder-fingerprint": "f"})
        await response({"type": "http"}, None, send)

    asyncio.run(main())
    headers = dict(sent[0]["headers"])
    body = b"".join(message.get("body", b"") for message in sent)
    assert int(headers[b"content-length"]) == len(body)
    assert headers[b"x-encoder-fingerprint"] == b"f"
    assert [len(one) for one in json.loads(body)] == [500, 1, 77]
    assert len(sent) > 10
    assert max(len(m.get("body", b"")) for m in sent) < 20 * NUMBERS_AT_ONCE
    assert [m.get("more_body", False) for m in sent[1:]] == [True] * (len(sent) - 2) + [False]
