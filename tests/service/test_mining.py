"""`POST /v1/mine`: sides, places, receipts, limits, and what hostile clients send."""

from __future__ import annotations

import itertools
import random
import threading

import numpy as np
import pytest

from mexma.mining import mine
from tests.fakes import FakeEncoder

WORDS = ["Hello", "Привет", "你好", "👋🏽", "Moi", "Hallo", "a b", "a  b", "Ciao", "Hei"]


def ask(client, source, target, *, status: int = 200, headers=None, **fields):
    body = {"source": source, "target": target, **fields}
    response = client.post("/v1/mine", json=body, headers=headers)
    assert response.status_code == status, response.text
    return response.json() if status == 200 else response.json()["error"]


def vectors(texts: list[str]) -> np.ndarray:
    return np.stack([FakeEncoder().vector(text) for text in texts])


@pytest.mark.parametrize("method", ["intersection", "greedy", "union"])
@pytest.mark.parametrize(("score", "k"), [("margin", 1), ("margin", 4), ("cosine", 4)])
def test_pairs_are_those_of_the_vectors(client, method, score, k):
    source, target = WORDS[:7], [*WORDS[5:], "Hello"]
    found = ask(client, source, target, method=method, score=score, k=k)
    x, y = vectors(source), vectors(target)
    expected = mine(x, y, k=k, score=score, method=method)
    assert [(p["source"], p["target"]) for p in found["pairs"]] == [c[:2] for c in expected]
    for pair, c in zip(found["pairs"], expected, strict=True):
        assert pair["score"] == pytest.approx(c.score, rel=1e-6)
        assert pair["cosine"] == pytest.approx(float(x[c.source] @ y[c.target]), abs=1e-6)
    assert found["fingerprint"] == FakeEncoder().fingerprint
    assert found["model"] == "fake"
    tokens = sum(len(text.encode()) + 2 for text in source + target)
    assert found["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_the_default_is_mutual_best_matches_by_margin_of_4(client):
    source, target = WORDS[:7], [*WORDS[5:], "Hello"]
    given = {"score": "margin", "k": 4, "method": "intersection", "score_threshold": None}
    assert ask(client, source, target) == ask(client, source, target, **given)


def test_a_threshold_is_of_the_score_that_was_asked_for(client):
    source, target = WORDS[:7], WORDS[3:]
    for score in ("margin", "cosine"):
        everything = ask(client, source, target, score=score, method="union")["pairs"]
        at = everything[2]["score"]
        kept = ask(client, source, target, score=score, method="union", score_threshold=at)
        assert kept["pairs"] == [p for p in everything if p["score"] >= at]
        assert len(kept["pairs"]) < len(everything)


def test_equal_sentences_count_once_and_are_their_first(client):
    source, target = WORDS[:6], WORDS[4:]
    plain = ask(client, source, target)["pairs"]
    copied = ask(client, [*source, *source * 3], [*target, *target])
    assert copied["pairs"] == plain
    assert (
        copied["usage"]["total_tokens"] > 2 * ask(client, source, target)["usage"]["total_tokens"]
    )
    (only,) = ask(client, ["x"] * 9, ["x", "x"], method="union")["pairs"]
    assert (only["source"], only["target"]) == (0, 0)
    assert only["score"] == pytest.approx(1)


def test_sides_may_be_of_any_lengths(client):
    for n, m in itertools.product((1, 2, 3, 10), repeat=2):
        found = ask(client, WORDS[:n], WORDS[::-1][:m], method="union")["pairs"]
        assert {p["source"] for p in found} == set(range(n))
        assert {p["target"] for p in found} == set(range(m))
    for side in ("source", "target"):
        body = {"source": WORDS, "target": WORDS} | {side: []}
        error = ask(client, **body, status=422)
        assert error["param"] == side


def test_the_order_in_which_sentences_come_does_not_decide(client):
    source, target = list(WORDS), [f"{word}!" for word in WORDS]
    before = ask(client, source, target, method="greedy")["pairs"]
    named = {(source[p["source"]], target[p["target"]]): p["score"] for p in before}
    shuffled = random.Random(0).sample(source, len(source))
    after = ask(client, shuffled, target, method="greedy")["pairs"]
    assert {(shuffled[p["source"]], target[p["target"]]): p["score"] for p in after} == (
        pytest.approx(named)
    )


@pytest.mark.parametrize(
    ("source", "target", "side", "item", "says"),
    [
        (["a", ""], ["b"], "source", 1, "source: item 1 is an empty string"),
        (["a", "b"], ["c", "d", ""], "target", 2, "target: item 2 is an empty string"),
        (["a"], ["b", "x" * 100], "target", 1, "target: item 1 has 102 tokens; the limit is 64"),
    ],
)
def test_a_bad_sentence_is_named_by_its_side_and_its_place_there(
    client, source, target, side, item, says
):
    error = ask(client, source, target, truncate=False, status=422)
    assert says in error["message"]
    assert (error["param"], error["item"]) == (side, item)
    answer = ask(client, source, target, truncate=False, partial=True)
    other = {"source": "target", "target": "source"}[side]
    assert answer[f"{other}_errors"] == {}
    ((place, bad),) = answer[f"{side}_errors"].items()
    assert (place, bad["code"]) == (str(item), error["code"])
    assert says in bad["message"]
    assert answer["pairs"]
    assert item not in [p[side] for p in answer["pairs"]]


def test_places_are_those_of_the_lists_that_were_sent(client):
    """A bad sentence or a copy before it moves nobody."""
    answer = ask(
        client, ["", "Hei", "Hei", "Moi"], ["", "", "Moi", "Hei"], partial=True, score="cosine"
    )
    assert [(p["source"], p["target"]) for p in answer["pairs"]] == [(1, 3), (3, 2)]
    assert [p["score"] for p in answer["pairs"]] == pytest.approx([1, 1])
    nothing = ask(client, ["", ""], ["a"], partial=True)
    assert (nothing["pairs"], list(nothing["source_errors"])) == ([], ["0", "1"])


def test_cut_sentences_have_a_receipt_on_their_side(client):
    receipt = {"tokens_seen": 102, "tokens_used": 64, "cut_at": 62}
    answer = ask(client, ["a", "x" * 100], ["b", "c", "y" * 100])
    assert answer["source_truncations"] == {"1": receipt}
    assert answer["target_truncations"] == {"2": receipt}


def test_more_sentences_than_a_request_may_have_are_refused(make_client):
    client = make_client(max_request_items=5)
    assert len(ask(client, WORDS[:2], WORDS[2:5], method="union")["pairs"]) >= 3
    error = ask(client, WORDS[:2], WORDS[2:6], status=422)
    assert error["message"] == "6 items were sent; the limit is 5"
    assert (error["limit"], error["code"]) == (5, "too_many_items")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"source": "text"}, "source: expected a list, found 'text'"),
        ({"source": ["a", 7]}, "source.1: expected text, found 7"),
        ({"target": [["a"]]}, "target.0: expected text, found a list"),
        ({"target": None}, "target: expected a list, found null"),
        ({"k": 0}, "k: "),
        ({"k": 1001}, "k: "),
        ({"k": 1.5}, "k: "),
        ({"score": "ratio"}, "score: "),
        ({"method": "max"}, "method: "),
        ({"score_threshold": "1"}, "score_threshold: expected a number"),
        ({"threshold": 1}, "threshold: there is no such field"),
        ({"source": ["\ud800"]}, None),
    ],
)
def test_what_is_wrong_is_refused_and_named(client, fields, says):
    body = {"source": ["a"], "target": ["b"]} | fields
    if says is None:
        raw = b'{"source": ["\\ud800"], "target": ["b"]}'
        refused = client.post("/v1/mine", content=raw, headers={"content-type": "application/json"})
        assert refused.status_code == 400
        return
    error = ask(client, **body, status=422)
    assert error["message"].startswith(says)


def test_four_megabytes_of_numbers_are_refused_at_the_first(client):
    error = ask(client, [1] * 500_000, ["a"], status=422)
    assert error["message"] == "source.0: expected text, found 1"


def test_a_failing_engine_is_reported_on_its_side_and_the_next_request_served(make_client):
    encoder = FakeEncoder()
    encoder.poison = encoder.token("Q")
    client = make_client(encoder)
    error = ask(client, ["a"], ["b", "Q"], status=500)
    assert (error["param"], error["item"], error["type"]) == ("target", 1, "engine_error")
    answer = ask(client, ["a"], ["b", "Q"], partial=True)
    assert answer["target_errors"]["1"]["code"] == "engine_error"
    assert [(p["source"], p["target"]) for p in answer["pairs"]] == [(0, 0)]


def test_vectors_that_are_not_finite_pair_with_nothing(make_client):
    encoder = FakeEncoder()
    encoder.not_finite = encoder.token("Q")
    client = make_client(encoder)
    answer = ask(client, ["a", "Q"], ["Q", "b"], partial=True, method="union")
    assert [(p["source"], p["target"]) for p in answer["pairs"]] == [(0, 1)]
    assert answer["source_errors"]["1"]["code"] == "non_finite_vector"


def test_it_waits_no_longer_than_it_was_told_to(make_client):
    encoder = FakeEncoder()
    client = make_client(encoder)
    encoder.gate.clear()
    try:
        error = ask(client, ["a"], ["b"], headers={"x-timeout-ms": "30"}, status=504)
        assert error["code"] == "deadline_exceeded"
    finally:
        encoder.gate.set()
    ask(client, ["a"], ["b"])


def test_a_queue_without_room_says_when_to_come_back(make_client):
    encoder = FakeEncoder()
    client = make_client(encoder, max_queue_tokens=10)
    encoder.gate.clear()
    first = [
        threading.Thread(target=client.post, args=("/v1/embeddings",), kwargs={"json": body})
        for body in ({"input": "running"}, {"input": "waiting here"})
    ]
    try:
        first[0].start()
        while len(encoder.batches) < 2:  # the first was the warm-up
            pass
        first[1].start()
        while "mexma_queue_items 1.0" not in client.get("/metrics").text:
            pass
        response = client.post("/v1/mine", json={"source": ["a"], "target": ["b"]})
        assert response.status_code == 503
        assert int(response.headers["retry-after-ms"]) > 0
    finally:
        encoder.gate.set()
        for thread in first:
            thread.join()


def test_answers_say_where_the_time_went_and_are_counted(client):
    headers = {"x-request-id": "mined-1"}
    response = client.post("/v1/mine", json={"source": ["a"], "target": ["b"]}, headers=headers)
    assert response.headers["x-request-id"] == "mined-1"
    assert response.headers["x-encoder-fingerprint"] == FakeEncoder().fingerprint
    stages = [part.split(";")[0] for part in response.headers["server-timing"].split(", ")]
    assert stages == ["tokenize", "queue", "inference", "mine"]
    shown = client.get("/metrics").text
    assert 'mexma_http_requests_total{route="/v1/mine",status="200"} 1.0' in shown


def test_a_named_model_mines(make_client):
    other = FakeEncoder(name="other")
    client = make_client(further=[other])
    assert ask(client, ["a"], ["b"], model="other")["fingerprint"] == other.fingerprint
    assert ask(client, ["a"], ["b"], model="none")["fingerprint"] == FakeEncoder().fingerprint
