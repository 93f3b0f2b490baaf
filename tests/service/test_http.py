"""What every route shares: bodies, ids, probes, metrics, the shape of errors."""

from __future__ import annotations

import asyncio
import threading

import pytest
from fastapi import Request

from service.metrics import Metrics
from service.middleware import ClientGone, RequestBorder, unless_gone
from tests.fakes import FakeEncoder


def post_raw(client, body: bytes, content_type: str = "application/json"):
    return client.post("/v1/embeddings", content=body, headers={"content-type": content_type})


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"input": "caf\xe9"}', "not UTF-8: byte 0xe9 at offset 14"),
        ('{"input": "x"}'.encode("utf-16"), "not UTF-8"),
        (b'{"input": "x"', "not JSON"),
        (b'{"input": "\\ud800"}', "not JSON"),
        (b'{"input": NaN}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_body_that_is_not_json_in_utf8_gets_400(client, body, says):
    response = post_raw(client, body)
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_not_declared_as_json_gets_415(client, kind):
    response = post_raw(client, b'{"input": "x"}', kind)
    assert response.status_code == 415
    assert "application/json" in response.json()["error"]["message"]


def test_an_empty_or_wrong_body_gets_422(client):
    for body in (b"", b"[]", b"7", b"null"):
        response = post_raw(client, body)
        assert response.status_code == 422, body
        assert response.json()["error"]["message"]


def test_a_large_body_gets_413(make_client):
    client = make_client(max_body_bytes=1000)
    response = post_raw(client, b'{"input": "' + b"x" * 2000 + b'"}')
    assert response.status_code == 413
    assert response.json()["error"]["limit"] == 1000
    assert "2013 bytes" in response.json()["error"]["message"]

    def chunks():
        yield b'{"input": "'
        for _ in range(100):
            yield b"x" * 100

    chunked = client.post(
        "/v1/embeddings", content=chunks(), headers={"content-type": "application/json"}
    )
    assert chunked.status_code == 413
    assert "over 1000 bytes" in chunked.json()["error"]["message"]


def test_a_slow_body_gets_408():
    sent = []

    async def app(scope, receive, send):
        raise AssertionError("the app must not be reached")

    async def receive():
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message):
        sent.append(message)

    border = RequestBorder(app, max_body_bytes=1000, body_timeout_s=0.1, metrics=Metrics())
    scope = {
        "type": "http", "path": "/v1/embeddings", "method": "POST",
        "headers": [(b"transfer-encoding", b"chunked")],
    }  # fmt: skip
    asyncio.run(border(scope, receive, send))
    assert sent[0]["status"] == 408
    assert b"did not arrive within 0.1 s" in sent[1]["body"]


def test_work_for_a_client_that_left_is_cancelled():
    async def main() -> None:
        left = asyncio.Event()
        stopped = asyncio.Event()

        async def receive():
            await left.wait()
            return {"type": "http.disconnect"}

        async def work():
            try:
                left.set()
                await asyncio.sleep(30)
            finally:
                stopped.set()

        request = Request({"type": "http", "headers": []}, receive)
        with pytest.raises(ClientGone):
            await asyncio.wait_for(unless_gone(request, work()), 10)
        assert stopped.is_set()

    asyncio.run(main())


def test_request_ids_are_given_or_taken_over(client):
    first = client.get("/health/live").headers["x-request-id"]
    second = client.get("/health/live").headers["x-request-id"]
    assert first != second
    taken = client.get("/health/live", headers={"x-request-id": "abc-1.2:3"})
    assert taken.headers["x-request-id"] == "abc-1.2:3"
    hostile = client.get("/health/live", headers={"x-request-id": "a b<script>"})
    assert hostile.headers["x-request-id"] != "a b<script>"


def test_unknown_routes_and_methods_answer_in_our_shape(client):
    missing = client.get("/v1/nothing")
    assert missing.status_code == 404
    assert "GET /v1/nothing" in missing.json()["error"]["message"]
    assert client.get("/v1/embeddings").status_code == 405
    assert client.get("/v1/embeddings").json()["error"]


def test_ready_turns_off_when_the_engine_fails_and_comes_back_by_itself(make_client):
    encoder = FakeEncoder()
    client = make_client(encoder)
    assert client.get("/health/ready").json()["status"] == "ready"
    encoder.broken = True
    assert client.post("/v1/embeddings", json={"input": "x"}).status_code == 500
    response = client.get("/health/ready")
    assert response.status_code == 503
    assert response.json()["reason"] == "engine_failed"
    assert client.get("/health/live").status_code == 200
    assert "mexma_ready 0.0" in client.get("/metrics").text
    encoder.broken = False
    assert client.get("/health/ready").json()["status"] == "ready"


def test_ready_turns_off_while_the_engine_is_stuck(make_client):
    encoder = FakeEncoder()
    client = make_client(encoder, engine_timeout_s=0.05, request_timeout_s=0.2)
    encoder.gate.clear()
    response = client.post("/v1/embeddings", json={"input": "x"})
    assert response.status_code == 504
    assert "within 0.2 s" in response.json()["error"]["message"]
    assert client.get("/health/ready").json()["reason"] == "engine_stuck"
    encoder.gate.set()
    while client.get("/health/ready").status_code != 200:
        pass
    assert client.post("/v1/embeddings", json={"input": "x"}).status_code == 200


def test_a_full_queue_gets_503_with_when_to_retry(make_client):
    encoder = FakeEncoder()
    client = make_client(encoder, max_queue_tokens=10)
    encoder.gate.clear()
    waiting = [
        threading.Thread(target=client.post, args=("/v1/embeddings",), kwargs={"json": body})
        for body in ({"input": "running"}, {"input": "waiting"})
    ]
    waiting[0].start()
    while len(encoder.batches) < 2:  # the first was the warm-up
        pass
    waiting[1].start()
    while "mexma_queue_items 1.0" not in client.get("/metrics").text:
        pass
    response = client.post("/v1/embeddings", json={"input": "one too many"})
    encoder.gate.set()
    for thread in waiting:
        thread.join()
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert int(response.headers["retry-after-ms"]) > 0
    assert response.json()["error"]["code"] == "overloaded"


def test_metrics_count_what_happened(client):
    client.post("/v1/embeddings", json={"input": ["Hello", "x" * 100]})
    client.post("/v1/embeddings", json={"input": ""})
    text = client.get("/metrics").text
    assert 'mexma_http_requests_total{route="/v1/embeddings",status="200"} 1.0' in text
    assert 'mexma_http_requests_total{route="/v1/embeddings",status="422"} 1.0' in text
    assert "mexma_truncated_items_total 1.0" in text
    assert 'mexma_stage_seconds_count{stage="inference"} 2.0' in text  # with the warm-up
    assert "fingerprint" in text


def test_a_service_of_embeddings_only_has_no_collections(make_client):
    client = make_client(collections=False, demo=True)
    assert client.get("/health/ready").status_code == 200
    assert client.post("/v1/embeddings", json={"input": "x"}).status_code == 200
    assert client.put("/v1/collections/c").status_code == 404
    assert client.get("/v1/collections/demo").status_code == 404
    assert not [
        path for path in client.get("/openapi.json").json()["paths"] if "collections" in path
    ]
