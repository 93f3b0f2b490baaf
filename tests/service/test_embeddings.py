"""`/v1/embeddings`, `/embed` and their neighbours, against both contracts."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest

from tests.fakes import FakeEncoder

TEXTS = ["Hello", "Привет", "你好", "👋🏽", "a" * 60]


def vectors_of(response, key="embedding") -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.array([item[key] for item in response.json()["data"]], np.float32)


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_each_text_gets_its_vector(client, encoding_format):
    response = client.post(
        "/v1/embeddings", json={"input": TEXTS, "encoding_format": encoding_format}
    )
    body = response.json()
    assert body["object"] == "list"
    assert body["model"] == "fake"
    for i, (text, item) in enumerate(zip(TEXTS, body["data"], strict=True)):
        assert (item["object"], item["index"]) == ("embedding", i)
        found = item["embedding"]
        if encoding_format == "base64":
            found = np.frombuffer(base64.b64decode(found), "<f4")
        np.testing.assert_array_equal(
            np.array(found, np.float32), FakeEncoder().vector(text), err_msg=text
        )
    tokens = sum(len(t.encode()) + 2 for t in TEXTS)
    assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_all_four_input_forms_agree(client):
    encoder = FakeEncoder()
    ids = encoder.tokenizer.encode(["Hello"])[0].ids.tolist()
    expected = encoder.vector("Hello")
    for form in ("Hello", ["Hello"], ids, [ids], ids[1:-1]):
        vectors = vectors_of(client.post("/v1/embeddings", json={"input": form}))
        np.testing.assert_array_equal(vectors[0], expected, err_msg=repr(form))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("", "item 0 is an empty string"),
        (["good", ""], "item 1 is an empty string"),
        ([], "at least one item"),
        (None, "found null"),
        (7, "found a number"),
        (["good", 7], "item 1 must be text"),
        (["good", None], "item 1 must be text"),
        ([[]], "item 0 is an empty list"),
        ([[5, "x"]], "item 0, position 1: expected a token id (an integer), found text"),
        ([[5, True]], "item 0, position 1: expected a token id (an integer), found a boolean"),
        ([5, 9999], "item 0 holds token id 9999 at position 1; this tokenizer's ids are 0 to 258"),
        ([[4], [-1]], "item 1 holds token id -1"),
        ({"text": "x"}, "found an object"),
    ],
)
def test_a_bad_input_is_refused_and_named(client, given, says):
    response = client.post("/v1/embeddings", json={"input": given})
    assert response.status_code == 422
    error = response.json()["error"]
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"
    assert {"param", "code"} <= set(error)


def test_a_missing_field_is_named(client):
    error = client.post("/v1/embeddings", json={"model": "x"}).json()["error"]
    assert error["param"] == "input"


def test_too_many_items(make_client):
    client = make_client(max_request_items=3)
    error = client.post("/v1/embeddings", json={"input": ["x"] * 4})
    assert error.status_code == 422
    assert error.json()["error"]["message"] == "4 items were sent; the limit is 3"
    assert error.json()["error"]["limit"] == 3


def test_long_texts_are_cut_with_a_receipt(client):
    body = client.post("/v1/embeddings", json={"input": ["short", "x" * 100]}).json()
    assert "truncation" not in body["data"][0]
    receipt = {"tokens_seen": 102, "tokens_used": 64, "cut_at": 62}
    assert body["data"][1]["truncation"] == receipt
    np.testing.assert_array_equal(
        np.array(body["data"][1]["embedding"], np.float32), FakeEncoder().vector("x" * 62)
    )


def test_the_receipt_counts_characters_not_bytes(client):
    text = "я" * 100  # two bytes, so two tokens, each
    body = client.post("/v1/embeddings", json={"input": [text]}).json()
    assert body["data"][0]["truncation"]["cut_at"] == 31


@pytest.mark.parametrize("where", ["request", "service"])
def test_truncation_can_be_refused(make_client, where):
    client = make_client(auto_truncate=where == "request")
    body = {"input": ["short", "x" * 100]} | ({"truncate": False} if where == "request" else {})
    response = client.post("/v1/embeddings", json=body)
    assert response.status_code == 422
    error = response.json()["error"]
    assert "item 1 has 102 tokens; the limit is 64" in error["message"]
    assert (error["item"], error["limit"], error["code"]) == (1, 64, "text_too_long")


def test_partial_answers_the_good_items(client):
    body = {"input": ["good", "", "x" * 100, "fine"], "truncate": False, "partial": True}
    data = client.post("/v1/embeddings", json=body).json()["data"]
    assert [d["embedding"] is None for d in data] == [False, True, True, False]
    assert data[1]["error"]["code"] == "empty_text"
    assert "item 2 has 102 tokens" in data[2]["error"]["message"]
    expected = FakeEncoder().vector("fine")
    np.testing.assert_array_equal(np.array(data[3]["embedding"], np.float32), expected)


def test_dimensions_cut_and_normalise_again(client):
    body = {"input": "Hello", "dimensions": 4}
    vector = vectors_of(client.post("/v1/embeddings", json=body))[0]
    cut = FakeEncoder().vector("Hello")[:4]
    np.testing.assert_allclose(vector, cut / np.linalg.norm(cut), rtol=1e-6)
    refused = client.post("/v1/embeddings", json={"input": "Hello", "dimensions": 17})
    assert refused.status_code == 422
    assert "have 16" in refused.json()["error"]["message"]


def test_npy_where_asked(client):
    headers = {"accept": "application/x-npy"}
    for path, field in (("/v1/embeddings", "input"), ("/embed", "inputs")):
        response = client.post(path, json={field: TEXTS}, headers=headers)
        matrix = np.load(io.BytesIO(response.content), allow_pickle=False)
        assert matrix.dtype == np.float32
        np.testing.assert_array_equal(matrix, np.stack([*map(FakeEncoder().vector, TEXTS)]))


def test_a_misspelt_field_is_refused_and_named(client):
    response = client.post("/v1/embeddings", json={"input": "x", "truncat": False})
    assert response.status_code == 422
    assert response.json()["error"]["message"] == (
        "truncat: there is no such field; /docs lists them"
    )


def test_a_body_without_a_place_for_receipts_has_them_in_headers(client):
    headers = {"accept": "application/x-npy"}
    response = client.post("/v1/embeddings", json={"input": "x" * 100}, headers=headers)
    assert response.headers["x-truncated-items"] == "1"
    assert '"cut_at":62' in response.headers["x-truncation"]


@pytest.mark.parametrize("dtype", ["float", "int8"])
def test_a_matrix_with_bad_items_says_which(client, dtype):
    """A row that is none cannot be taken for a vector, and the reason is in a header."""
    asked = {"input": ["fine", "", "fine"], "partial": True, "output_dtype": dtype}
    response = client.post(
        "/v1/embeddings", json=asked, headers={"accept": "application/x-npy"}
    ).raise_for_status()
    matrix = np.load(io.BytesIO(response.content), allow_pickle=False)
    assert np.isnan(matrix[1]).all() if dtype == "float" else not matrix[1].any()
    assert (matrix[0] == matrix[2]).all() and matrix[0].any()
    assert response.headers["x-failed-items"] == "1"
    [error] = json.loads(response.headers["x-item-errors"])
    body = client.post("/v1/embeddings", json=asked).json()
    assert error == {"index": 1, **body["data"][1]["error"]}
    many = asked | {"input": [""] * 30 + ["fine"]}
    headers = client.post(
        "/v1/embeddings", json=many, headers={"accept": "application/x-npy"}
    ).headers
    assert (headers["x-failed-items"], len(json.loads(headers["x-item-errors"]))) == ("30", 10)


def test_a_failing_engine_is_reported_and_the_next_request_served(make_client):
    encoder = FakeEncoder()
    encoder.poison = encoder.token("Q")
    client = make_client(encoder)
    response = client.post("/v1/embeddings", json={"input": ["fine", "Q"]})
    assert response.status_code == 500
    assert response.json()["error"]["item"] == 1
    assert "poisoned" not in response.text, "inner messages may hold text"
    assert client.post("/v1/embeddings", json={"input": ["fine"]}).status_code == 200


def test_answers_say_where_the_time_went_and_which_encoder(client):
    response = client.post("/v1/embeddings", json={"input": "Hello"})
    assert response.headers["x-encoder-fingerprint"] == FakeEncoder().fingerprint
    stages = [part.split(";")[0] for part in response.headers["server-timing"].split(", ")]
    assert stages == ["tokenize", "queue", "inference"]


def test_embed_follows_tei(client):
    for inputs in ("Hello", ["Hello"]):
        found = client.post("/embed", json={"inputs": inputs}).json()
        np.testing.assert_array_equal(np.array(found, np.float32), [FakeEncoder().vector("Hello")])
    left = client.post(
        "/embed", json={"inputs": "a" + "x" * 99, "truncation_direction": "Left", "truncate": True}
    )
    np.testing.assert_array_equal(
        np.array(left.json()[0], np.float32), FakeEncoder().vector("x" * 62)
    )
    assert left.headers["x-truncated-items"] == "1"
    assert left.headers["x-truncation"] == (
        '[{"index":0,"tokens_seen":102,"tokens_used":64,"cut_at":38}]'
    )


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"inputs": ["good", ""]}, "item 1 is an empty string"),
        ({"inputs": "x" * 100, "truncate": False}, "the limit is 64"),
        ({"inputs": "x", "prompt_name": "query"}, "prompt_name: expected null, found 'query'"),
        ({}, "inputs"),
    ],
)
def test_embed_errors_have_teis_shape(client, body, says):
    response = client.post("/embed", json=body)
    assert response.status_code == 422
    assert set(response.json()) == {"error", "error_type"}
    assert says in response.json()["error"]
    assert response.json()["error_type"] == "Validation"


def test_clients_that_know_only_the_address_find_it_there(client):
    """huggingface_hub's `InferenceClient(url)` posts to the address it is given, Haystack's sends
    `normalize` false unless told otherwise."""
    there = client.post("/", json={"inputs": ["a", "b"], "normalize": False, "truncate": True})
    assert there.status_code == 200
    assert there.json() == client.post("/embed", json={"inputs": ["a", "b"]}).json()
    assert np.allclose(np.linalg.norm(there.json(), axis=1), 1)
    assert set(client.post("/", json={}).json()) == {"error", "error_type"}
    assert client.get("/").headers["content-type"].startswith("text/html")


def test_info_follows_tei(client):
    info = client.get("/info").json()
    assert info["model_id"] == "fake"
    assert info["model_sha"] == FakeEncoder().fingerprint
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert info["max_input_length"] == 64


def test_health_follows_tei(make_client):
    encoder = FakeEncoder()
    client = make_client(encoder)
    well = client.get("/health")
    assert (well.status_code, well.content) == (200, b"")
    encoder.broken = True
    client.post("/embed", json={"inputs": "x"})
    ill = client.get("/health")
    assert ill.status_code == 503
    assert int(ill.headers["retry-after"]) >= 1
    assert ill.json()["error_type"] == "Unhealthy"
    assert "engine_failed" in ill.json()["error"]
    assert client.get("/health/ready").json()["reason"] == "engine_failed"
    encoder.broken = False
    assert client.get("/health").status_code == 200


def test_models_lists_the_served_one(client):
    (card,) = client.get("/v1/models").json()["data"]
    assert (card["id"], card["dimensions"], card["max_tokens"]) == ("fake", 16, 64)
