"""Vectors as integers and as bits, in every form of an answer; what they lose on real text."""

from __future__ import annotations

import base64
import io
import re

import httpx
import numpy as np
import pytest
from openai import OpenAI

from mexma.sample import parallel_pairs, tatoeba_sample
from service.vectors import as_dtype, scales
from tests.conftest import ROOT, Server
from tests.fakes import FakeEncoder

TEXTS = ["Hello", "Привет", "你好", "👋🏽", "a" * 60]
NPY = {"accept": "application/x-npy"}
ROUTES = [("/v1/embeddings", "input"), ("/embed", "inputs")]


def floats(texts: list[str] = TEXTS) -> np.ndarray:
    return np.stack([FakeEncoder().vector(text) for text in texts])


def unit(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def matrix(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.load(io.BytesIO(response.content), allow_pickle=False)


def rows(response: httpx.Response) -> list:
    assert response.status_code == 200, response.text
    body = response.json()
    return body if isinstance(body, list) else [item["embedding"] for item in body["data"]]


@pytest.mark.parametrize("dtype", ["int8", "ubinary"])
def test_all_forms_of_an_answer_hold_the_same(client, dtype):
    expected = as_dtype(floats(), dtype)
    assert expected.dtype == {"int8": np.int8, "ubinary": np.uint8}[dtype]
    assert expected.shape == (5, {"int8": 16, "ubinary": 2}[dtype])
    for path, field in ROUTES:
        body = {field: TEXTS, "output_dtype": dtype}
        assert rows(client.post(path, json=body)) == expected.tolist()
        found = matrix(client.post(path, json=body, headers=NPY))
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    body = {"input": TEXTS, "output_dtype": dtype, "encoding_format": "base64"}
    for row, encoded in zip(expected, rows(client.post("/v1/embeddings", json=body)), strict=True):
        assert base64.b64decode(encoded) == row.tobytes()
    at_the_address = client.post("/", json={"inputs": TEXTS, "output_dtype": dtype})
    assert rows(at_the_address) == expected.tolist()


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_integers_times_their_scale_are_the_vector_and_have_its_length(client, encoding_format):
    body = {"input": TEXTS, "output_dtype": "int8", "encoding_format": encoding_format}
    for item, vector in zip(
        client.post("/v1/embeddings", json=body).json()["data"], floats(), strict=True
    ):
        sent = item["embedding"]
        if encoding_format == "base64":
            sent = np.frombuffer(base64.b64decode(sent), np.int8)
        integers = np.array(sent, np.float64)
        assert np.abs(integers).max() == 127
        np.testing.assert_allclose(np.linalg.norm(integers * item["scale"]), 1, rtol=1e-12)
        assert item["scale"] == pytest.approx(1 / np.linalg.norm(integers)), "known without it"
        step = np.abs(vector).max() / 127
        np.testing.assert_allclose(integers * item["scale"], vector, atol=0.6 * step)


def test_bits_are_the_signs_the_first_one_highest(client):
    for row, vector in zip(
        rows(client.post("/v1/embeddings", json={"input": TEXTS, "output_dtype": "ubinary"})),
        floats(),
        strict=True,
    ):
        bits = "".join(f"{byte:08b}" for byte in row)
        assert bits == "".join("1" if component > 0 else "0" for component in vector)


def test_a_vector_that_is_zero_is_no_trouble():
    zero = np.zeros((2, 8), np.float32)
    assert as_dtype(zero, "int8").tolist() == zero.tolist()
    assert scales(as_dtype(zero, "int8")).tolist() == [1, 1]
    assert as_dtype(zero, "ubinary").tolist() == [[0], [0]]


def test_without_it_answers_are_as_they_were(client):
    for path, field in ROUTES:
        plain = client.post(path, json={field: TEXTS})
        assert (
            plain.content == client.post(path, json={field: TEXTS, "output_dtype": "float"}).content
        )
        assert b"scale" not in plain.content
    bits = client.post("/v1/embeddings", json={"input": TEXTS, "output_dtype": "ubinary"})
    assert b"scale" not in bits.content


def test_a_bad_item_has_no_scale(client):
    body = {"input": ["good", "", "fine"], "partial": True, "output_dtype": "int8"}
    data = client.post("/v1/embeddings", json=body).json()["data"]
    assert [item["embedding"] is None for item in data] == [False, True, False]
    assert ["scale" in item for item in data] == [True, False, True]
    assert data[1]["error"]["code"] == "empty_text"


def test_fewer_dimensions_are_cut_before(client):
    cut = floats()[:, :8]
    cut /= np.linalg.norm(cut, axis=1, keepdims=True)
    for dtype in ("int8", "ubinary"):
        for path, field in ROUTES:
            body = {field: TEXTS, "dimensions": 8, "output_dtype": dtype}
            found = rows(client.post(path, json=body))
            np.testing.assert_allclose(
                found, as_dtype(cut, dtype), atol=1 if dtype == "int8" else 0
            )


@pytest.mark.parametrize("dimensions", [1, 7, 12])
def test_bits_that_fill_no_byte_are_refused_before_anything_is_computed(make_client, dimensions):
    encoder = FakeEncoder()
    client = make_client(encoder)
    for path, field in ROUTES:
        body = {field: TEXTS, "dimensions": dimensions, "output_dtype": "ubinary"}
        before = len(encoder.batches)
        refused = client.post(path, json=body)
        assert refused.status_code == 422
        assert len(encoder.batches) == before
        assert f"expected a multiple of 8, found {dimensions}" in refused.text
        assert client.post(path, json=body | {"output_dtype": "int8"}).status_code == 200


def test_a_model_whose_vectors_fill_no_byte_has_no_bits(make_client):
    client = make_client(FakeEncoder(dim=12))
    refused = client.post("/v1/embeddings", json={"input": "x", "output_dtype": "ubinary"})
    assert refused.status_code == 422


@pytest.mark.parametrize("dtype", ["uint8", "binary", "float32", "INT8", "", None, 8, ["int8"]])
def test_other_types_are_refused_and_those_that_there_are_named(client, dtype):
    for path, field in ROUTES:
        refused = client.post(path, json={field: "x", "output_dtype": dtype})
        assert refused.status_code == 422
        said = refused.json()["error"]
        said = said if isinstance(said, str) else said["message"]
        assert "output_dtype" in said
        assert "'float', 'int8' or 'ubinary'" in said


# The default model


def embedded(server: Server, texts: list[str], dtype: str) -> np.ndarray:
    body = {"input": texts, "output_dtype": dtype}
    return matrix(httpx.post(f"{server.url}/v1/embeddings", json=body, headers=NPY, timeout=120))


def test_integers_of_real_text_have_its_direction(server):
    texts = [s.text for s in tatoeba_sample()][:1000]
    texts += [" ".join(texts[:50]), "?", "1", "e" * 3000]
    plain, integers = embedded(server, texts, "float"), embedded(server, texts, "int8")
    assert integers.dtype == np.int8 and integers.nbytes * 4 == plain.nbytes
    least = (unit(plain) * unit(integers)).sum(1)
    assert least.min() >= 0.9999, texts[int(least.argmin())]


def test_integers_find_what_floats_find_and_bits_what_the_readme_says(server):
    """Each sentence of the sample that is not English looks for its translation among 70."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    said = re.search(
        r"`int8` finds as\s+many translations of the demo's sentences as floats \(([\d.]+) %\), "
        r"`ubinary` ([\d.]+) %",
        readme,
    )
    assert said is not None
    texts = list(dict.fromkeys(s.text for s in tatoeba_sample()))
    parts = [embedded(server, texts[i : i + 2000], "float") for i in range(0, len(texts), 2000)]
    of = dict(zip(texts, np.vstack(parts), strict=True))
    found: dict[str, list[bool]] = {"float": [], "int8": [], "ubinary": []}
    for lang in sorted({s.lang for s in tatoeba_sample()} - {"en"}):
        theirs, english = parallel_pairs(lang)
        sides = [np.stack([of[text] for text in side]) for side in (theirs, english)]
        for dtype, hits in found.items():
            queries, pool = (as_dtype(side, dtype) for side in sides)
            if dtype == "ubinary":
                nearest = np.bitwise_count(queries[:, None] ^ pool[None]).sum(2).argmin(1)
            else:
                nearest = (queries.astype(float) @ unit(pool).T).argmax(1)
            hits += [english[i] == right for i, right in zip(nearest, english, strict=True)]
    shares = {dtype: 100 * float(np.mean(hits)) for dtype, hits in found.items()}
    assert len(found["float"]) == 2870
    assert shares["int8"] == pytest.approx(shares["float"], abs=0.2)
    assert shares["float"] == pytest.approx(float(said[1]), abs=0.2)
    assert shares["ubinary"] == pytest.approx(float(said[2]), abs=0.2)


def test_the_official_client_gets_integers_where_it_is_told_not_to_decode(server):
    official = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    answer = official.embeddings.create(
        input=TEXTS,
        model="default",
        encoding_format="float",
        extra_body={"output_dtype": "int8"},
    )
    integers = embedded(server, TEXTS, "int8")
    assert [item.embedding for item in answer.data] == integers.tolist()
    given = [item.model_extra["scale"] for item in answer.data]
    assert given == pytest.approx(scales(integers).tolist())
