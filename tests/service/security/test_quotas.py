"""Quotas in tokens, attacked over HTTP."""

from __future__ import annotations

import threading
import time

import pytest

from mexma.errors import QuotaExceeded
from service.security.keys import new_key, write_keys
from service.security.quotas import Bucket


def test_a_bucket_grants_a_minute_s_worth_and_says_when_the_rest_comes():
    now = 0.0
    bucket = Bucket(600, clock=lambda: now)
    bucket.take(600)
    with pytest.raises(QuotaExceeded) as refused:
        bucket.take(50)
    assert refused.value.retry_after_s == pytest.approx(5)
    assert "owed" not in str(refused.value)
    now += refused.value.retry_after_s - 0.01
    with pytest.raises(QuotaExceeded):
        bucket.take(50)
    now += 0.02
    bucket.take(50)


def test_a_request_larger_than_a_minute_s_worth_is_granted_once_and_paid_for():
    now = 0.0
    bucket = Bucket(600, clock=lambda: now)
    bucket.take(1800)
    with pytest.raises(QuotaExceeded) as refused:
        bucket.take(1)
    assert refused.value.retry_after_s == pytest.approx(120.1)
    assert "an earlier request was larger, 1200 are still owed" in str(refused.value)
    assert bucket.level() == 0


def test_a_client_over_its_quota_gets_429_and_is_served_when_it_was_told(make_guarded):
    guarded = make_guarded(tokens_per_minute=6000)
    body = {"input": ["x" * 62] * 80}  # 64 tokens each: 5120
    first = guarded.ask("POST", "/v1/embeddings", "read", json=body)
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-tokens"] == "6000"
    assert 880 <= int(first.headers["x-ratelimit-remaining-tokens"]) <= 1000
    small = {"input": ["x" * 62] * 20}  # 1280
    refused = guarded.ask("POST", "/v1/embeddings", "read", json=small)
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "quota_exceeded")
    wait_ms = int(refused.headers["retry-after-ms"])
    assert 0 < wait_ms <= 4000
    assert int(refused.headers["retry-after"]) == -(-wait_ms // 1000)
    assert guarded.ask("POST", "/v1/embeddings", "write", json=small).status_code == 200
    assert 'mexma_refused_total{reason="quota"} 1.0' in guarded.ask("GET", "/metrics", "admin").text
    time.sleep(wait_ms / 1000)
    assert guarded.ask("POST", "/v1/embeddings", "read", json=small).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/embed",
        "/embed_all",
        "/v1/align",
        "/v1/mine",
        "/v1/collections/c/search",
        "/v1/collections/c/documents",
    ],
)
def test_a_quota_holds_on_every_way_to_the_engine(make_guarded, path):
    guarded = make_guarded(tokens_per_minute=100)
    assert guarded.ask("PUT", "/v1/collections/c", "admin").status_code == 200
    texts = ["x" * 62] * 2
    body = {
        "/embed": {"inputs": texts},
        "/v1/mine": {"source": texts[:1], "target": texts[1:]},
        "/embed_all": {"inputs": texts},
        "/v1/align": {"source": texts[0], "target": texts[1]},
        "/v1/collections/c/search": {"queries": texts},
        "/v1/collections/c/documents": {
            "documents": [{"id": str(i), "text": t, "lang": "en"} for i, t in enumerate(texts)]
        },
    }[path]
    assert guarded.ask("POST", path, "admin", json=body).status_code == 200
    refused = guarded.ask("POST", path, "admin", json=body)
    assert refused.status_code == 429, refused.text
    assert int(refused.headers["retry-after-ms"]) > 0


def test_a_quota_holds_for_a_client_whose_headers_say_nothing(make_guarded):
    """The service's own work is free; who looks like it is not."""
    guarded = make_guarded(tokens_per_minute=100, client_header="x-client")
    for lane, role in ((None, "read"), ("interactive", "write"), ("bulk", "admin")):
        headers = {"x-lane": lane} if lane else {}
        asked = {"json": {"input": ["x" * 62] * 2}, "headers": headers}
        assert guarded.ask("POST", "/v1/embeddings", role, **asked).status_code == 200
        assert guarded.ask("POST", "/v1/embeddings", role, **asked).status_code == 429


def test_what_the_queue_refuses_is_not_charged(make_guarded):
    guarded = make_guarded(tokens_per_minute=6000, max_queue_tokens=10)
    guarded.encoder.gate.clear()
    bodies = ({"input": "running"}, {"input": "waiting here"})
    waiting = [
        threading.Thread(
            target=guarded.ask, args=("POST", "/v1/embeddings", "read"), kwargs={"json": b}
        )
        for b in bodies
    ]
    waiting[0].start()
    while len(guarded.encoder.batches) < 2:  # the first was the warm-up
        pass
    waiting[1].start()
    while "mexma_queue_items 1.0" not in guarded.ask("GET", "/metrics", "metrics").text:
        pass
    before = int(guarded.ask("GET", "/info", "read").headers["x-ratelimit-remaining-tokens"])
    refused = guarded.ask("POST", "/v1/embeddings", "read", json={"input": "one too many"})
    guarded.encoder.gate.set()
    for thread in waiting:
        thread.join()
    assert refused.status_code == 503
    assert int(refused.headers["x-ratelimit-remaining-tokens"]) >= before


def test_keys_of_one_client_share_its_quota(make_guarded):
    guarded = make_guarded(tokens_per_minute=100)
    guarded.given["write"], key = new_key("read-client", "read", tokens_per_minute=100)
    write_keys(guarded.file, [*guarded.kept, key])
    guarded.now += 2
    body = {"input": ["x" * 62]}
    assert guarded.ask("POST", "/v1/embeddings", "read", json=body).status_code == 200
    assert guarded.ask("POST", "/v1/embeddings", "write", json=body).status_code == 429
