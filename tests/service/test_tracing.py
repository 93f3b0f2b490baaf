"""Traces arrive at a collector, hang together, and hold nothing that a caller wrote."""

from __future__ import annotations

import http.server
import sys
import threading
from collections.abc import Iterator

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from starlette.testclient import TestClient

from mexma.errors import InstallationError
from service.app import create_app
from service.settings import Settings
from service.store.local import LocalStore
from service.tracing import TracedStore, Tracing
from tests.fakes import FakeEncoder

SECRET = "violet"


class Collector:
    """Receives OTLP over HTTP, and keeps what came."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        received = self.bodies

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                assert self.headers["content-type"] == "application/x-protobuf"
                received.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def spans(self) -> list[Span]:
        found = []
        for body in self.bodies:
            request = ExportTraceServiceRequest.FromString(body)
            for resource in request.resource_spans:
                names = {a.key: a.value.string_value for a in resource.resource.attributes}
                assert names["service.name"] == "mexma"
                for scope in resource.scope_spans:
                    found += scope.spans
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def attributes(span: Span) -> dict[str, object]:
    return {
        a.key: a.value.string_value or a.value.int_value or a.value.bool_value
        for a in span.attributes
    }


def ask(collector: Collector, tmp_path, detector, encoder=None, sample=1.0) -> dict[str, str]:
    """Some requests to a traced app, and its end. Returns the trace ids asked for by name."""
    settings = Settings(demo=False, data_dir=tmp_path / "data")
    app = create_app(
        settings,
        encoder=encoder or FakeEncoder(),
        store=LocalStore(settings.data_dir),
        detector=detector,
        tracing=Tracing(collector.url, sample=sample),
    )
    ids = {name: f"{i:032x}" for i, name in enumerate(("embed", "search", "missing"), 1)}
    with TestClient(app) as client:
        while client.get("/health/ready").json()["reason"] == "starting":
            pass

        def headers(name: str) -> dict[str, str]:
            return {"traceparent": f"00-{ids[name]}-00f067aa0ba902b7-01", "x-request-id": name}

        body = {"input": [f"{SECRET} sentence", "b"]}
        client.post("/v1/embeddings", json=body, headers=headers("embed"))
        client.put(f"/v1/collections/{SECRET}")
        documents = [{"id": f"{SECRET}-1", "text": f"{SECRET} text"}]
        client.post(f"/v1/collections/{SECRET}/documents", json={"documents": documents})
        client.post(
            f"/v1/collections/{SECRET}/search",
            json={"queries": [f"{SECRET} query"]},
            headers=headers("search"),
        )
        client.get(f"/v1/collections/{SECRET}-not-there", headers=headers("missing"))
    return ids


def test_a_request_is_a_span_with_its_stages_under_it_within_its_time(
    collector, tmp_path, detector
):
    ids = ask(collector, tmp_path, detector)
    spans = [s for s in collector.spans() if s.trace_id.hex() == ids["embed"]]
    (root,) = [s for s in spans if s.kind == Span.SPAN_KIND_SERVER]
    assert root.name == "POST /v1/embeddings"
    assert root.parent_span_id.hex() == "00f067aa0ba902b7", "the caller's trace goes on"
    assert attributes(root) == {
        "http.request.method": "POST",
        "http.route": "/v1/embeddings",
        "http.response.status_code": 200,
        "mexma.request_id": "embed",
    }
    stages = {s.name: s for s in spans if s is not root}
    assert list(stages) == ["tokenize", "queue", "engine"]
    at = root.start_time_unix_nano
    for span in stages.values():
        assert span.parent_span_id == root.span_id
        assert attributes(span)["mexma.items"] == 2
        assert attributes(span)["mexma.tokens"] == len(f"{SECRET} sentence") + 1 + 4
        # Clocks of two kinds are compared: a millisecond is allowed.
        assert at - 1_000_000 <= span.start_time_unix_nano <= span.end_time_unix_nano
        at = span.end_time_unix_nano
    assert at <= root.end_time_unix_nano + 1_000_000


def test_calls_of_the_store_are_spans_of_the_request_that_made_them(collector, tmp_path, detector):
    ids = ask(collector, tmp_path, detector)
    spans = [s for s in collector.spans() if s.trace_id.hex() == ids["search"]]
    (root,) = [s for s in spans if s.kind == Span.SPAN_KIND_SERVER]
    assert {"tokenize", "queue", "engine", "store.describe", "store.explain"} <= {
        s.name for s in spans
    }
    assert all(s.parent_span_id == root.span_id for s in spans if s is not root)


def test_only_what_we_failed_at_is_an_error(collector, tmp_path, detector):
    encoder = FakeEncoder()
    encoder.poison = encoder.token("v")
    ids = ask(collector, tmp_path, detector, encoder)
    status = {
        s.trace_id.hex(): (attributes(s)["http.response.status_code"], s.status.code)
        for s in collector.spans()
        if s.kind == Span.SPAN_KIND_SERVER
    }
    assert status[ids["embed"]] == (500, Status.STATUS_CODE_ERROR)
    assert status[ids["missing"]] == (404, Status.STATUS_CODE_UNSET)


def test_nothing_that_a_caller_wrote_leaves_in_a_trace(collector, tmp_path, detector):
    ask(collector, tmp_path, detector)
    assert collector.bodies
    assert all(SECRET.encode() not in body for body in collector.bodies)


def test_requests_that_are_not_sampled_are_not_sent_unless_the_caller_wants(
    collector, tmp_path, detector
):
    ids = ask(collector, tmp_path, detector, sample=0.0)
    assert {s.trace_id.hex() for s in collector.spans()} == set(ids.values())


def test_a_collector_that_is_not_there_harms_nobody(tmp_path, detector):
    gone = Collector()
    gone.close()
    ask(gone, tmp_path, detector)


def test_without_the_extra_the_setting_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(InstallationError, match=r"mexma\[otel\]"):
        Tracing("http://127.0.0.1:1")


def test_a_traced_store_can_do_what_the_store_can(tmp_path):
    """Also where it is looked for without running anything, as protocols are from Python 3.12 on."""
    store = LocalStore(tmp_path / "data")
    traced = TracedStore(store)
    for name in dir(store):
        if not name.startswith("_"):
            assert hasattr(traced, name)
            assert name in vars(traced) or not callable(getattr(store, name))
    store.close()
