"""What every route shares: bodies, ids, probes, metrics, the shape of errors."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import get_args
from urllib.parse import quote

import pytest
from fastapi import Request
from fastapi.exceptions import RequestValidationError

from service.departures import ClientGone, unless_gone
from service.metrics import Metrics
from service.middleware import RequestBorder
from service.reloader import OutcomeName
from service.security import access
from service.security.access import Guard
from service.security.audit import Audit
from service.security.gate import Gate
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


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed", "/v1/collections/c/search"])
@pytest.mark.parametrize("kind", ["", "text/plain", "application/json"])
def test_a_body_that_is_not_there_is_missing_whatever_it_is_declared_as(client, path, kind):
    for headers in ({}, {"content-type": kind}) if kind else ({},):
        answer = client.post(path, headers=headers)
        assert answer.status_code == 422
        error = answer.json()["error"]
        assert (error if path == "/embed" else error["message"]) == "the body is missing"


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed", "/v1/collections/c/documents"])
def test_a_packed_body_is_refused_for_what_it_is(client, path):
    packed = gzip.compress(b'{"input": "x"}')
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = client.post(path, content=packed, headers=headers)
    assert answer.status_code == 415
    assert "found content-encoding 'gzip'" in answer.text
    assert answer.headers["accept-encoding"] == "identity"
    plain = client.post(
        "/v1/embeddings", json={"input": "x"}, headers={"content-encoding": "Identity"}
    )
    assert plain.status_code == 200


def test_what_was_expected_is_said_as_json_calls_it(client):
    client.put("/v1/collections/c")
    for path, body, says in [
        ("search", {"queries": [None]}, "queries.0: expected text, found null"),
        ("search", {"queries": "x"}, "queries: expected a list, found 'x'"),
        ("search", {"queries": ["x"], "k": True}, "k: expected a whole number, found true"),
        ("search", {"queries": ["x"], "k": 1.5}, "k: expected a whole number, found 1.5"),
        ("search", {"queries": ["x"], "exact": 1}, "exact: expected true or false, found 1"),
        ("search", {"vectors": [[{}]]}, "vectors.0.0: expected a number, found an object"),
        ("search", {"queries": ["x"], "filter": []}, "filter: expected an object, found a list"),
    ]:
        answer = client.post(f"/v1/collections/c/{path}", json=body)
        assert answer.status_code == 422
        assert answer.json()["error"]["message"] == says


def many(of: bytes, number: int = 100_000) -> bytes:
    return b"[" + b",".join([of] * number) + b"]"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/collections/c/search", b'{"queries": %s}' % many(b"1")),
        ("/v1/collections/c/search", b'{"vectors": %s}' % many(b"1")),
        ("/v1/collections/c/search", b'{"vectors": [%s]}' % many(b"{}")),
        ("/v1/collections/c/search", b'{"queries": ["x"], "languages": %s}' % many(b"1")),
        ("/v1/collections/c/documents", b'{"documents": %s}' % many(b"1")),
        ("/v1/collections/c/documents/count", b"{%s}" % many(b'"%d":0')[1:-1]),
        ("/v1/collections/c/documents", b'{"documents": [{%s}]}' % many(b'"%d":0')[1:-1]),
        ("/v1/embeddings", b"{%s}" % many(b'"%d":0')[1:-1]),
        ("/v1/models/reload", b"{%s}" % many(b'"%d":0')[1:-1]),
    ],
)
def test_a_body_wrong_in_a_hundred_thousand_places_makes_few_errors(
    client, monkeypatch, path, body
):
    if b"%d" in body:
        body = body % tuple(range(body.count(b"%d")))
    client.put("/v1/collections/c")
    made = []
    errors = RequestValidationError.errors
    monkeypatch.setattr(
        RequestValidationError, "errors", lambda self: made.append(errors(self)) or made[-1]
    )
    answer = post_raw_to(client, path, body)
    assert answer.status_code == 422
    assert sum(map(len, made)) <= 3


def post_raw_to(client, path: str, body: bytes):
    return client.post(path, content=body, headers={"content-type": "application/json"})


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

    metrics = Metrics()
    gate = Gate(Guard(None), Audit(None), metrics)
    border = RequestBorder(app, max_body_bytes=1000, body_timeout_s=0.1, metrics=metrics, gate=gate)
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
    assert "among" not in missing.json()["error"]["message"]
    for asked, there in {
        "/embeddings": "/v1/embeddings",
        "/v1/v1/embeddings": "/v1/embeddings",
        "/v1/embed": "/embed",
    }.items():
        message = client.post(asked, json={}).json()["error"]["message"]
        assert message.endswith(f"/docs lists the routes, {there} among them")
    assert client.get("/v1/embeddings").status_code == 405
    assert client.get("/v1/embeddings").json()["error"]


def test_405_names_every_method_that_the_path_has(client):
    for path, methods in {
        "/v1/collections/c": "DELETE, GET, HEAD, PUT",
        "/v1/collections/c/documents": "DELETE, POST",
        "/v1/collections/c/documents/count": "POST",
        "/v1/embeddings": "POST",
        "/docs": "GET, HEAD",
    }.items():
        answer = client.request("PATCH", path)
        assert answer.status_code == 405
        assert answer.headers.get_list("allow") == [methods]


def test_whatever_answers_get_answers_head(client):
    client.put("/v1/collections/c")
    for path in (
        "/",
        "/docs",
        "/health",
        "/health/live",
        "/info",
        "/v1/models",
        "/v1/collections/c",
    ):
        assert client.head(path).status_code == 200, path
    assert client.head("/v1/embeddings").status_code == 405
    assert client.head("/v1/collections/none").status_code == 404


def test_a_slash_too_many_is_none(client):
    """And no redirect, which would name the scheme and host that a proxy speaks to the service."""
    assert client.put("/v1/collections/c/", follow_redirects=False).status_code == 200
    body = {"input": "x"}
    assert client.post("/v1/embeddings/", json=body, follow_redirects=False).status_code == 200
    assert client.get("/health/", follow_redirects=False).status_code == 200
    assert client.get("/v1/models/fake/", follow_redirects=False).status_code == 404
    documents = [{"id": i, "text": "x"} for i in ("a", "a/", "/", "b/")]
    client.post("/v1/collections/c/documents", json={"documents": documents})
    for document in documents:
        found = client.get(f"/v1/collections/c/documents/{quote(document['id'], safe='/')}")
        assert found.json()["id"] == document["id"]
    assert client.get("/v1/models/").json() == client.get("/v1/models").json()
    assert client.get("/v1/collections/c/documents/").headers["allow"] == "DELETE, POST"
    sent = client.post("/v1/collections/c/documents/", json={"documents": documents})
    assert sent.json()["updated"] == len(documents)
    # Without an id it is a document that there is not, and never all of them.
    assert client.delete("/v1/collections/c/documents/").status_code == 404
    counted = client.get("/metrics").text
    assert 'route="/v1/embeddings",status="200"' in counted


def test_a_number_without_a_fraction_is_an_integer(client):
    body = {"input": [[5.0, 6]], "dimensions": 3.0}
    assert client.post("/v1/embeddings", json=body).status_code == 200
    assert client.post("/v1/embeddings", json=body | {"dimensions": 3.5}).status_code == 422
    assert client.post("/v1/embeddings", json=body | {"input": [5.5]}).status_code == 422
    client.put("/v1/collections/c")
    scroll = client.post("/v1/collections/c/documents/scroll", json={"limit": 1e0})
    assert scroll.status_code == 200


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
    client = make_client(encoder, engine_timeout_s=0.05, request_timeout_s=2)
    encoder.gate.clear()
    response = client.post("/v1/embeddings", json={"input": "x"})
    assert response.status_code == 504
    assert "within 2 s" in response.json()["error"]["message"]
    assert client.get("/health/ready").json()["reason"] == "engine_stuck"
    encoder.gate.set()
    while client.get("/health/ready").status_code != 200:
        pass
    assert client.post("/v1/embeddings", json={"input": "x"}).status_code == 200


def test_the_gauge_of_ready_is_right_though_nobody_asks_ready(make_client):
    encoder = FakeEncoder()
    client = make_client(encoder)
    assert "mexma_ready 1.0" in client.get("/metrics").text
    encoder.broken = True
    assert client.post("/v1/embeddings", json={"input": "x"}).status_code == 500
    assert "mexma_ready 0.0" in client.get("/metrics").text
    encoder.broken = False
    while "mexma_ready 1.0" not in client.get("/metrics").text:
        pass


@contextmanager
def one_runs_and_one_waits(client, encoder: FakeEncoder, waits: str = "waiting") -> Iterator[None]:
    """The engine stands still meanwhile."""
    encoder.gate.clear()
    ran = len(encoder.batches)
    threads = [
        threading.Thread(
            target=client.post, args=("/v1/embeddings",), kwargs={"json": {"input": text}}
        )
        for text in ("running", waits)
    ]
    threads[0].start()
    while len(encoder.batches) == ran:
        pass
    threads[1].start()
    while "mexma_queue_items 1.0" not in client.get("/metrics").text:
        pass
    try:
        yield
    finally:
        encoder.gate.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("demo", [False, True])
def test_bulk_work_right_after_the_start_runs_in_whole_batches(make_client, demo):
    """The service's own texts, the first one and canaries, are no interactive client's, for whose sake
    batches would be short."""
    client = make_client(encoder := FakeEncoder(max_tokens=512), max_batch_items=16, demo=demo)
    while client.get("/health/ready").status_code != 200:
        pass
    texts = [f"text {n:02d}" for n in range(16)]
    encoder.batches.clear()
    response = client.post("/v1/embeddings", json={"input": texts}, headers={"x-lane": "bulk"})
    assert response.status_code == 200
    assert [len(batch) for batch in encoder.batches] == [16]


def test_a_full_queue_gets_503_with_when_to_retry(make_client):
    encoder = FakeEncoder()
    client = make_client(encoder, max_queue_tokens=10)
    with one_runs_and_one_waits(client, encoder):
        response = client.post("/v1/embeddings", json={"input": "one too many"})
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert int(response.headers["retry-after-ms"]) > 0
    assert response.json()["error"]["code"] == "overloaded"


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed"])
def test_a_refused_request_is_not_read_and_is_taken_when_it_comes_back_in_time(make_client, path):
    encoder = FakeEncoder()
    client = make_client(encoder, max_queue_tokens=20)
    field = "input" if path == "/v1/embeddings" else "inputs"
    said = {"content": b"{ no JSON", "headers": {"content-type": "application/json"}}
    with one_runs_and_one_waits(client, encoder, "waiting here now."):
        batcher = client.app.state.encoders.default.batcher
        batcher.pace.observe(100_000, 10_000.0)  # ten tokens a second, so that the time is long
        refused = client.post(path, **said)
        assert refused.status_code == 503, "no room for any request: it was read before that"
        early = client.post(path, **said)
        assert early.status_code == 503
        told_ms = int(refused.headers["retry-after-ms"])
        assert 0 < int(early.headers["retry-after-ms"]) <= told_ms
        now = time.monotonic() + told_ms / 1000
        batcher._clock = lambda: now  # its time has come
        assert client.post(path, **said).status_code == 400, "it is read now"
        assert client.post(path, json={field: "someone else's"}).status_code == 503
        batcher._clock = time.monotonic


def test_hits_of_the_cache_are_answered_though_the_queue_is_full(make_client):
    encoder = FakeEncoder()
    client = make_client(encoder, max_queue_tokens=10, cache_mb=1)
    assert client.post("/v1/embeddings", json={"input": "known"}).status_code == 200
    with one_runs_and_one_waits(client, encoder):
        assert client.post("/v1/embeddings", json={"input": "unknown"}).status_code == 503
        known = client.post("/v1/embeddings", json={"input": "known"})
    assert known.status_code == 200


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
    for path in ("/v1/collections", "/v1/collections/", "/v1/collections/demo/search"):
        error = client.post(path, json={"queries": ["x"]}).json()["error"]
        assert error["code"] == "collections_off"
        assert "MEXMA_COLLECTIONS" in error["message"]
    assert "not found" in client.get("/v1/collectionses").json()["error"]["message"]
    assert not [
        path for path in client.get("/openapi.json").json()["paths"] if "collections" in path
    ]


LONG_WAY = "application/json; charset=UTF-8"  # as sound, and not among those of the shortcut


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/v1/embeddings", {"input": "Hello"}, {}),
        ("/v1/embeddings", {"input": ["Hello", "x" * 100]}, {}),
        ("/v1/embeddings", {"input": ["Hello"], "encoding_format": "base64"}, {}),
        ("/v1/embeddings", {"input": [[5, 6], [7]], "dimensions": 3}, {}),
        ("/v1/embeddings", {"input": ["Hello", ""], "partial": True}, {}),
        ("/v1/embeddings", {"input": ["Hello", ""]}, {}),
        ("/v1/embeddings", {"input": "x" * 100, "truncate": False}, {}),
        ("/v1/embeddings", {"input": "x" * 100}, {"accept": "application/x-npy"}),
        ("/v1/embeddings", {"input": "x", "dimensions": 17}, {}),
        ("/v1/embeddings", {"input": "x", "encoding_format": "int7"}, {}),
        ("/v1/embeddings", {"input": "x", "surplus": 1}, {}),
        ("/v1/embeddings", {"input": [[1], [9999]]}, {}),
        ("/v1/embeddings", {"input": ["x"] * 9}, {}),
        ("/v1/embeddings", {"input": "x"}, {"x-lane": "bulk", "x-timeout-ms": "9000"}),
        ("/v1/embeddings", {"input": "x"}, {"x-lane": "fast"}),
        ("/v1/embeddings", {"input": "x"}, {"x-timeout-ms": "soon"}),
        ("/v1/embeddings", {"input": "x"}, {"x-timeout-ms": "0"}),
        ("/v1/embeddings", {"input": "Q"}, {}),
        ("/embed", {"inputs": ["Hello", "x" * 100]}, {}),
        ("/embed", {"inputs": "Hello"}, {"accept": "application/x-npy"}),
        ("/embed", {"inputs": "a" + "x" * 99, "truncation_direction": "left"}, {}),
        ("/embed", {"inputs": "x", "normalize": False}, {}),
        ("/embed", {"inputs": ""}, {}),
        ("/embed", {"inputs": "x"}, {"x-lane": "fast"}),
        ("/embed", {"inputs": "Q"}, {}),
        ("/", {"inputs": "Hello"}, {}),
        ("/", {"inputs": ""}, {}),
    ],
)
def test_the_shortcut_and_the_long_way_answer_alike(make_client, path, body, headers):
    encoder = FakeEncoder()
    encoder.poison = encoder.token("Q")
    client = make_client(encoder, max_request_items=8)
    sent = {"content-type": "application/json"} | headers
    short = client.post(path, json=body, headers=sent)
    long = client.post(path, json=body, headers=sent | {"content-type": LONG_WAY})
    assert short.status_code == long.status_code
    assert short.content == long.content
    changing = ("x-request-id", "server-timing")
    assert {k: v for k, v in short.headers.items() if k not in changing} == {
        k: v for k, v in long.headers.items() if k not in changing
    }
    counted = client.get("/metrics").text
    status = short.status_code
    assert f'mexma_http_requests_total{{route="{path}",status="{status}"}} 2.0' in counted


def test_what_is_counted_by_known_labels_begins_at_zero():
    """Else an alert on the increase of a counter misses the first event, which may be the only one."""
    shown = Metrics().render().decode()
    for label in (
        *(f'batches_total{{outcome="{outcome}"}}' for outcome in ("ok", "failed")),
        *(f'engine_restarts_total{{reason="{r}"}}' for r in ("engine_stuck", "engine_wrong")),
        *(f'model_reloads_total{{outcome="{o}"}}' for o in get_args(OutcomeName)),
        *(f'returns_total{{outcome="{outcome}"}}' for outcome in ("accepted", "refused")),
        *(f'spared_items_total{{by="{by}"}}' for by in ("cache", "joining")),
        *(f'refused_total{{reason="{reason}"}}' for reason in reasons_of_refusals()),
    ):
        assert f"mexma_{label} 0.0" in shown


def reasons_of_refusals() -> set[str]:
    found = {"audit", "quota"}  # counted where they are found
    source = inspect.getsource(access)
    found |= set(re.findall(r'Refusal\(\s*40[13],\s*"(\w+)"', source))
    assert len(found) == 6
    return found


def test_a_lane_or_timeout_that_is_none_is_refused_and_named(client):
    wrong = [("x-lane", "fast"), ("x-timeout-ms", "x"), ("x-timeout-ms", "9" * 5000)]
    for says, value in wrong:
        headers = {says: value}
        response = client.post("/v1/embeddings", json={"input": "x"}, headers=headers)
        assert response.status_code == 422
        assert says in response.json()["error"]["message"]


def test_a_client_says_how_long_it_will_wait(make_client):
    encoder = FakeEncoder()
    client = make_client(encoder)
    encoder.gate.clear()
    response = client.post("/v1/embeddings", json={"input": "x"}, headers={"x-timeout-ms": "50"})
    encoder.gate.set()
    assert response.status_code == 504
    message = response.json()["error"]["message"]
    assert "within 0.05 s, with nothing before them" in message
    assert "less busy" not in message


def test_a_time_out_is_503_where_the_queue_outlasts_it_and_504_where_nothing_is_in_the_way(
    make_client,
):
    """Only who is told when to come back may hope for better then."""
    encoder = FakeEncoder()
    client = make_client(encoder)
    encoder.gate.clear()
    hurried = {"json": {"input": "Hello"}, "headers": {"x-timeout-ms": "1"}}
    alone = client.post("/v1/embeddings", **hurried)
    assert (alone.status_code, "retry-after" in alone.headers) == (504, False)
    encoder.gate.set()
    client.post("/v1/embeddings", json={"input": "the engine is free again"})
    encoder.gate.clear()
    batcher = client.app.state.encoders.default.batcher
    batcher._admission.pace.observe(tokens=60, seconds=60)
    with ThreadPoolExecutor() as others:
        try:
            ran = len(encoder.batches)
            others.submit(client.post, "/v1/embeddings", json={"input": "on the engine"})
            while len(encoder.batches) == ran:
                time.sleep(0.001)
            others.submit(client.post, "/v1/embeddings", json={"input": "waits"})
            while not batcher.queued_tokens:
                time.sleep(0.001)
            behind = client.post("/v1/embeddings", **hurried)
        finally:
            encoder.gate.set()
    assert behind.status_code == 503
    assert int(behind.headers["retry-after-ms"]) > 1
    assert "longer than they may" in behind.json()["error"]["message"]


def test_a_504_for_what_waited_says_that_coming_back_may_help(make_client):
    encoder = FakeEncoder()
    client = make_client(encoder)
    encoder.gate.clear()
    with ThreadPoolExecutor() as others:
        try:
            ran = len(encoder.batches)
            others.submit(client.post, "/v1/embeddings", json={"input": "on the engine"})
            while len(encoder.batches) == ran:
                time.sleep(0.001)
            behind = client.post(
                "/v1/embeddings", json={"input": "Hello"}, headers={"x-timeout-ms": "1"}
            )
        finally:
            encoder.gate.set()
    assert behind.status_code == 504
    assert "retry when the service is less busy" in behind.json()["error"]["message"]


class Recorder:
    """In the batcher's place: what it was asked for."""

    def __init__(self, client):
        self.asked = []
        self.embedder = client.app.state.encoders.default
        self.submit, self.embedder.batcher.submit = self.embedder.batcher.submit, self

    async def __call__(self, sequences, *, lane, client, deadline, claim):
        self.asked.append((lane, client))
        return await self.submit(
            sequences, lane=lane, client=client, deadline=deadline, claim=claim
        )


def test_requests_choose_their_lane_by_header_or_by_size_and_clients_are_told_apart(make_client):
    client = make_client(interactive_tokens=10)
    asked = Recorder(client).asked
    client.post("/v1/embeddings", json={"input": "short"})
    client.post("/v1/embeddings", json={"input": "ten tokens and more"})
    client.post("/v1/embeddings", json={"input": "short"}, headers={"x-lane": "bulk"})
    client.post("/embed", json={"inputs": "much longer text"}, headers={"x-lane": "interactive"})
    assert [lane for lane, _ in asked] == ["interactive", "bulk", "bulk", "interactive"]
    for key in ("one", "other"):
        bearer = {"authorization": f"Bearer {key}"}
        client.post("/v1/embeddings", json={"input": "x"}, headers=bearer)
    assert len({who for _, who in asked}) == 3
    client.put("/v1/collections/c")
    document = {"documents": [{"id": "1", "text": "x"}]}
    client.post("/v1/collections/c/documents", json=document, headers={"x-lane": "bulk"})
    query = {"queries": ["x"]}
    client.post("/v1/collections/c/search", json=query, headers={"x-lane": "bulk"})
    assert [lane for lane, _ in asked[-2:]] == ["bulk", "bulk"]


def test_the_client_may_be_named_by_a_header(make_client):
    client = make_client(client_header="x-user")
    asked = Recorder(client).asked
    for user in ("ada", "bob", "ada"):
        client.post("/v1/embeddings", json={"input": "x"}, headers={"x-user": user})
    assert [who for _, who in asked] == [b"ada", b"bob", b"ada"]


def test_the_cache_spares_the_engine_and_says_so(make_client):
    encoder = FakeEncoder()
    client = make_client(encoder, cache_mb=1)
    first = client.post("/v1/embeddings", json={"input": ["Hello", "x" * 100]})
    runs = len(encoder.batches)
    again = client.post("/v1/embeddings", json={"input": ["Hello", "x" * 100]})
    assert again.content == first.content, "receipts and usage too"
    assert len(encoder.batches) == runs
    metrics = client.get("/metrics").text
    assert 'mexma_spared_items_total{by="cache"} 2.0' in metrics
    assert "mexma_cache_bytes 0.0" not in metrics
