"""Traces over OTLP, for whoever runs a collector: where one request's time went.

A request is a span; under it lie `tokenize`, `queue` and `engine`, and a span for each call of the
store. A caller's `traceparent` (W3C Trace Context) is carried on. Off unless `MEXMA_OTLP_ENDPOINT`
is set, and then it needs the extra `otel`; without it nothing of OpenTelemetry is imported.

Spans hold counts, times, routes as they are declared and the request's id: never a text, a name
of a collection, or a key.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from mexma import __version__
from mexma.errors import InstallationError

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

    from service.settings import Settings
    from service.store.protocol import Store

HEADERS = (b"traceparent", b"tracestate")

# The trace of the request that is being answered, None when tracing is off; tasks and threads
# that are started on its behalf inherit it.
current: ContextVar[Trace | None] = ContextVar("trace", default=None)


class Tracing:
    """Where traces go."""

    def __init__(self, endpoint: str, *, sample: float = 1.0):
        """endpoint: an OTLP/HTTP collector, `http://collector:4318`. sample: the share of requests
        traced, where the caller has not decided it. Raises InstallationError without the extra."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise InstallationError(
                f"MEXMA_OTLP_ENDPOINT is set, but {error.name} is not installed: "
                "pip install 'mexma[otel]'"
            ) from error
        resource = Resource.create({"service.name": "mexma", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, sampler=ParentBasedTraceIdRatio(sample))
        exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("mexma", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, headers: Iterable[tuple[bytes, bytes]], request_id: str) -> Trace:
        """A request arrived."""
        from opentelemetry.trace import SpanKind

        carrier = {k.decode(): v.decode("latin-1") for k, v in headers if k in HEADERS}
        span = self._tracer.start_span(
            "request",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={"mexma.request_id": request_id},
        )
        return Trace(self._tracer, span)

    def close(self) -> None:
        """Send what is left, and stop."""
        self._provider.shutdown()


def start_tracing(settings: Settings) -> Tracing | None:
    """As the settings say. It has a thread: start it in the process that traces."""
    if not settings.otlp_endpoint:
        return None
    return Tracing(settings.otlp_endpoint, sample=settings.trace_sample)


class Trace:
    """One request's spans. Thread-safe, as OpenTelemetry's spans are."""

    def __init__(self, tracer: Tracer, span: Span):
        from opentelemetry.trace import set_span_in_context

        self._tracer = tracer
        self._span = span
        self._parent = set_span_in_context(span)

    def stages(self, started: float, stages: dict[str, float], **attributes: int) -> None:
        """Consecutive stages that are over. started: of the first, by the monotonic clock;
        stages: their names and seconds; attributes: on each."""
        at = time.time_ns() - round((time.monotonic() - started) * 1e9)
        for name, seconds in stages.items():
            end = at + round(seconds * 1e9)
            span = self._tracer.start_span(name, self._parent, start_time=at, attributes=attributes)
            span.end(end)
            at = end

    def call(self, name: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call `function` within a span."""
        from opentelemetry.trace import StatusCode

        span = self._tracer.start_span(name, self._parent)
        try:
            return function(*arguments, **named)
        except Exception as error:
            # The kind alone: messages name collections and documents.
            span.set_status(StatusCode.ERROR, type(error).__name__)
            raise
        finally:
            span.end()

    def end(self, method: str, route: str, status: int) -> None:
        """The request was answered."""
        from opentelemetry.trace import StatusCode

        self._span.update_name(f"{method} {route}")
        self._span.set_attributes(
            {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
            }
        )
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class TracedStore:
    """A store whose calls are spans of the request that they are made for.

    Its methods are attributes of the instance, so that checks for what a store can do find them.
    """

    def __init__(self, store: Store):
        self._store = store
        for name in dir(store):
            if not name.startswith("_") and callable(method := getattr(store, name)):
                setattr(self, name, self._traced(name, method))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @staticmethod
    def _traced(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def traced(*arguments: Any, **named: Any) -> Any:
            trace = current.get()
            if trace is None:
                return method(*arguments, **named)
            return trace.call(f"store.{name}", method, *arguments, **named)

        return traced
