"""What is logged, in which form, and what never is."""

from __future__ import annotations

import asyncio
import json
import logging
import sys

import pytest

from service.logs import JsonLines, TextLines, request_id
from tests.fakes import FakeEncoder

SECRET = "violet"


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    return logging.getLogger("there").makeRecord(
        "there", logging.WARNING, __file__, 1, message, arguments, None, extra=extra
    )


def test_a_json_line_is_one_object_with_the_request_s_id():
    token = request_id.set("r-1")
    line = JsonLines().format(record("two\nlines of %s", "é", route="/embed", seconds=0.25))
    request_id.reset(token)
    assert "\n" not in line
    found = json.loads(line)
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "warning", "logger": "there", "message": "two\nlines of é",
        "request_id": "r-1", "route": "/embed", "seconds": 0.25,
    }  # fmt: skip
    assert "request_id" not in json.loads(JsonLines().format(record("outside")))


def test_an_exception_is_in_its_line():
    try:
        raise ValueError("why")
    except ValueError:
        made = record("failed")
        made.exc_info = sys.exc_info()
    found = json.loads(JsonLines().format(made))
    assert "ValueError: why" in found["exception"]


def test_a_text_line_carries_the_same():
    token = request_id.set("r-2")
    line = TextLines().format(record("request", status=500))
    request_id.reset(token)
    assert line.endswith("WARNING there: request status=500 [r-2]")


def test_requests_are_logged_when_asked_for_by_route_and_not_by_name(make_client, caplog):
    client = make_client(access_log=True)
    caplog.set_level(logging.INFO)
    client.get("/v1/collections/private", headers={"x-request-id": "mine"})
    (line,) = [r for r in caplog.records if getattr(r, "status", None) == 404]
    assert (line.method, line.route) == ("GET", "/v1/collections/{name}")
    assert "private" not in JsonLines().format(line)


@pytest.mark.parametrize("access_log", [True, False])
def test_our_failures_are_always_logged_and_refusals_are_not_failures(
    make_client, caplog, access_log
):
    encoder = FakeEncoder()
    client = make_client(encoder, access_log=access_log)
    encoder.broken = True
    assert client.post("/v1/embeddings", json={"input": "x"}).status_code == 500
    assert client.get("/health/ready").status_code == 503
    caplog.set_level(logging.INFO)
    statuses = [
        r.status for r in caplog.records if r.levelno >= logging.WARNING and hasattr(r, "status")
    ]
    assert statuses == [500]


def test_the_id_reaches_what_is_logged_on_threads():
    """The store works on threads; its lines name the request that made it speak."""

    async def main() -> dict[str, object]:
        request_id.set("thread-1")
        return json.loads(await asyncio.to_thread(JsonLines().format, record("from a thread")))

    assert asyncio.run(main())["request_id"] == "thread-1"


def test_texts_are_in_no_line_whatever_happens(make_client, caplog):
    caplog.set_level(logging.DEBUG)
    encoder = FakeEncoder()
    client = make_client(encoder, access_log=True)
    client.put(f"/v1/collections/{SECRET}")
    documents = [{"id": f"{SECRET}1", "text": f"{SECRET} text", "metadata": {SECRET: SECRET}}]
    path = f"/v1/collections/{SECRET}"
    client.post(f"{path}/documents", json={"documents": documents})
    client.post(f"{path}/search", json={"queries": [f"{SECRET} query"]})
    client.post("/v1/embeddings", json={"input": SECRET, "unknown": SECRET})
    client.post("/v1/embeddings", content=SECRET, headers={"content-type": "application/json"})
    client.post("/v1/embeddings", json={"input": SECRET * 500, "truncate": False})
    encoder.broken = True
    client.post("/v1/embeddings", json={"input": f"{SECRET} breaks"})
    client.post(f"{path}/search", json={"queries": [f"{SECRET} breaks"]})
    lines = [JsonLines().format(r) for r in caplog.records if not r.name.startswith("httpx")]
    assert len(lines) >= 8
    assert [line for line in lines if SECRET in line] == []


def test_what_a_caller_wrote_stays_on_its_line():
    forged = "/x\n2026-11-26 INFO mexma: all is well\x1b[2K\0"
    line = TextLines().format(record("audit", path=forged, status=404))
    assert line.isprintable()
    assert line.endswith("path=/x\\n2026-11-26 INFO mexma: all is well\\x1b[2K\\x00 status=404")
