"""`/v1/align`: which words say the same, in several scripts; offsets, limits, refusals."""

from __future__ import annotations

import httpx
import numpy as np
import pytest

from mexma.alignment import METHODS, similarities, word_states
from mexma.encoder import OnnxEncoder
from mexma.sample import tatoeba_sample
from mexma.text import TokenBatch
from mexma.words import words_of
from service.routes import align
from service.settings import DEFAULT_MODEL
from tests.conftest import Server
from tests.fakes import FakeEncoder

# Of each pair, words that a reader would link.
PAIRS = [
    (
        "The black cat sleeps on the red sofa.",
        "El gato negro duerme en el sofá rojo.",
        {("black", "negro"), ("cat", "gato"), ("sleeps", "duerme"), ("sofa", "sofá"), (".", ".")},
    ),
    (
        "The train to Lyon leaves at nine.",
        "リヨン行きの電車は9時に出発します。",
        {("train", "電車"), ("Lyon", "リヨン"), ("nine", "9"), (".", "。")},
    ),
    (
        "My mother bought three apples at the market yesterday.",
        "اشترت أمي ثلاث تفاحات من السوق أمس.",
        {("mother", "أمي"), ("bought", "اشترت"), ("three", "ثلاث"), ("market", "السوق")},
    ),
    (
        "I have two cats and one dog.",
        "ฉันมีแมวสองตัวและสุนัขหนึ่งตัว",
        {("I", "ฉัน"), ("two", "สอง"), ("cats", "แมว"), ("one", "หนึ่ง"), ("dog", "สุนัข")},
    ),
    (
        "Ich liebe dich 👨‍👩‍👧!! 🇫🇮 e\u0301te\u0301",
        "Minä rakastan sinua 👨‍👩‍👧!! 🇫🇮 e\u0301te\u0301",
        {("liebe", "rakastan"), ("👨‍👩‍👧", "👨‍👩‍👧"), ("🇫🇮", "🇫🇮"), ("e\u0301te\u0301",) * 2},
    ),
]


def asked(url: str, **body) -> dict:
    response = httpx.post(f"{url}/v1/align", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def linked(alignment: dict) -> set[tuple[str, str]]:
    source, target = alignment["source"], alignment["target"]
    return {(source[p["source"]]["text"], target[p["target"]]["text"]) for p in alignment["pairs"]}


def check_slices(words: list[dict], text: str) -> None:
    """Words are slices of the text as it was sent, in order, and miss only white space."""
    at = 0
    for word in words:
        assert text[word["start"] : word["end"]] == word["text"]
        assert text[at : word["start"]].strip() == ""
        at = word["end"]
    assert text[at:].strip() == ""


# The default model, over HTTP


@pytest.mark.parametrize("method", ["argmax", "itermax"])
def test_words_that_say_the_same_are_paired_in_several_scripts(server: Server, method):
    sources, targets = [p[0] for p in PAIRS], [p[1] for p in PAIRS]
    answer = asked(server.url, source=sources, target=targets, method=method)
    for (source, target, expected), one in zip(PAIRS, answer["alignments"], strict=True):
        check_slices(one["source"], source)
        check_slices(one["target"], target)
        assert expected <= linked(one), expected - linked(one)
        assert all(-1 <= p["score"] <= 1 for p in one["pairs"])
        assert "truncation" not in one
    assert answer["model"] == "mexma-small"
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0


def test_the_methods_differ_as_promised(server: Server):
    """argmax pairs each word once at most, and itermax has those pairs and more."""
    sentences = [s.text for s in tatoeba_sample() if s.lang == "en"][:40]
    others = [s.text for s in tatoeba_sample() if s.lang == "es"][:40]
    by = {
        m: asked(server.url, source=sentences, target=others, method=m)["alignments"]
        for m in ("argmax", "itermax")
    }
    default = asked(server.url, source=sentences, target=others)["alignments"]
    assert [a["pairs"] for a in default] == [a["pairs"] for a in by["itermax"]]
    more = 0
    for few, many in zip(by["argmax"], by["itermax"], strict=True):
        pairs = [{(p["source"], p["target"]) for p in a["pairs"]} for a in (few, many)]
        assert pairs[0] <= pairs[1]
        more += len(pairs[1] - pairs[0])
        for side in ("source", "target"):
            places = [p[side] for p in few["pairs"]]
            assert len(places) == len(set(places))
    assert more > 0


def test_alone_is_as_among_many(server: Server):
    answer = asked(server.url, source=[p[0] for p in PAIRS], target=[p[1] for p in PAIRS])
    for (source, target, _), among in zip(PAIRS, answer["alignments"], strict=True):
        (alone,) = asked(server.url, source=source, target=target)["alignments"]
        assert (alone["source"], alone["target"]) == (among["source"], among["target"])
        places = [[(p["source"], p["target"]) for p in a["pairs"]] for a in (alone, among)]
        assert places[0] == places[1]
        for a, b in zip(alone["pairs"], among["pairs"], strict=True):
            assert a["score"] == pytest.approx(b["score"], abs=0.005)


def test_scores_are_cosines_of_the_means_of_the_session_s_states(server: Server):
    encoder = OnnxEncoder(DEFAULT_MODEL, threads=1)
    source, target, _ = PAIRS[0]
    vectors = []
    for text in (source, target):
        (tokens,) = encoder.tokenizer.locate([text])
        states = encoder.session.token_states(TokenBatch.pad([tokens.ids], 1))[0]
        vectors.append(word_states(states, [w.tokens for w in words_of(text, tokens.spans)]))
    expected = 2 * similarities(*vectors) - 1
    (found,) = asked(server.url, source=source, target=target, method="argmax")["alignments"]
    links = {(p["source"], p["target"]): p["score"] for p in found["pairs"]}
    assert {*links} == {
        *zip(*map(list, np.nonzero(METHODS["argmax"]((expected + 1) / 2))), strict=True)
    }
    for (i, j), score in links.items():
        assert score == pytest.approx(expected[i, j], abs=0.005)


# The contract and its limits


def test_headers_and_receipts(client):
    encoder = FakeEncoder()
    text = "one two " + "x" * 90
    response = client.post("/v1/align", json={"source": ["one", text], "target": [text, "two"]})
    assert response.headers["x-encoder-fingerprint"] == encoder.fingerprint
    assert response.headers["x-request-id"]
    assert "align;dur=" in response.headers["server-timing"]
    first, second = response.json()["alignments"]
    cut = {"tokens_seen": 100, "tokens_used": 64, "cut_at": 62}
    assert first["truncation"] == {"source": None, "target": cut}
    assert second["truncation"] == {"source": cut, "target": None}
    assert [(w["start"], w["end"]) for w in first["target"]] == [(0, 3), (4, 7), (8, 62)]
    assert response.json()["fingerprint"] == encoder.fingerprint
    assert response.json()["usage"] == {"prompt_tokens": 138, "total_tokens": 138}
    assert linked(first) and all(p["score"] <= 1 for p in first["pairs"])


def test_white_space_has_no_words_and_equal_texts_are_paired_word_by_word(client):
    (none,) = client.post("/v1/align", json={"source": " \n", "target": "a b"}).json()["alignments"]
    assert (none["source"], none["pairs"]) == ([], [])
    (same,) = client.post("/v1/align", json={"source": "a b c", "target": "a b c"}).json()[
        "alignments"
    ]
    assert [(p["source"], p["target"], p["score"]) for p in same["pairs"]] == [
        (0, 0, 1), (1, 1, 1), (2, 2, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "says", "param"),
    [
        ({"source": "a"}, "target is missing", "target"),
        ({"source": "a", "target": None}, "target: expected text or a list of texts", "target"),
        ({"source": [], "target": []}, "source: expected at least one item", "source"),
        ({"source": ["a", 5], "target": "b"}, "source: item 1 must be text, found a num", "source"),
        ({"source": ["a", "b"], "target": "c"}, "found 1 and 2", None),
        ({"source": "a", "target": "b", "method": "best"}, "method", "method"),
        ({"source": "a", "target": "b", "surplus": 1}, "there is no such field", "surplus"),
        ({"source": "a", "target": ""}, "target: item 0 is an empty string", "target"),
        (
            {"source": ["a", ""], "target": ["b", "c"]},
            "source: item 1 is an empty string",
            "source",
        ),
        (
            {"source": "a", "target": "x" * 65, "truncate": False},
            "target: item 0 has 67 tokens",
            "target",
        ),
        ({"source": "a", "target": "x" * 131_073}, "at most 131072 characters in all", None),
        ({"source": ["a"] * 1025, "target": ["b"] * 1025}, "the limit is 2048 texts", None),
        ({"source": ["x" * 60] * 70, "target": ["x" * 60] * 70}, "the limit is 8192", None),
    ],
)
def test_what_is_wrong_is_said(client, body, says, param):
    response = client.post("/v1/align", json=body)
    assert response.status_code == 422, response.text
    error = response.json()["error"]
    assert says in error["message"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


def test_the_item_that_is_bad_is_one_of_its_side(make_client):
    encoder = FakeEncoder()
    client = make_client(encoder)
    bad = client.post("/v1/align", json={"source": ["a", "b"], "target": ["c", ""]})
    assert bad.json()["error"]["item"] == 1
    encoder.poison = encoder.token("Q")
    failed = client.post("/v1/align", json={"source": ["a", "b"], "target": ["Q", "c"]})
    assert failed.status_code == 500
    assert "target: item 0: " in failed.json()["error"]["message"]
    assert failed.json()["error"]["item"] == 0


def test_more_words_than_can_be_compared_are_refused(client, monkeypatch):
    monkeypatch.setattr(align, "MOST_CELLS", 11)
    body = {"source": ["a b c", "a b c"], "target": ["a b c", "a b c d"]}
    refused = client.post("/v1/align", json=body)
    assert refused.status_code == 422
    assert "source: item 1 has 3 words and its translation 4" in refused.json()["error"]["message"]


def test_a_body_that_is_not_text_in_utf8_gets_400(client):
    for body in (b'{"source": "\\ud800", "target": "a"}', b'{"source": "\xff", "target": "a"}'):
        response = client.post(
            "/v1/align", content=body, headers={"content-type": "application/json"}
        )
        assert response.status_code == 400


def test_a_served_model_is_chosen_by_name(make_client):
    other = FakeEncoder(name="other", dim=24)
    client = make_client(further=[other])
    for model, expected in (("other", "other"), (other.fingerprint, "other"), ("none", "fake")):
        answer = client.post("/v1/align", json={"source": "a", "target": "b", "model": model})
        assert answer.json()["model"] == expected
