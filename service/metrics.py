"""What Prometheus sees. One registry per app, so that two apps in a process do not mix.

`docs/metrics.md` lists every name; a test compares the two.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

# Off: a gauge beside each counter that says when it began, which doubles every scrape.
disable_created_metrics()  # type: ignore[no-untyped-call]

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
POWERS = tuple(float(2**n) for n in range(15))


# What is counted by labels that are known beforehand begins at 0: a rate sees nothing of a series that
# begins with its first event. A test compares these with what is counted.
BEGIN_AT_ZERO = {
    "batches": ("ok", "failed"),
    "engine_restarts": ("engine_stuck", "engine_wrong"),
    "refused": ("no_key", "unknown_key", "role", "cross_origin", "quota", "audit"),
    "reloads": ("reloaded", "unchanged", "refused", "rolled_back", "failed_trial"),
    "returns": ("accepted", "refused"),
    "spared_items": ("cache", "joining"),
}


class Queue(Protocol):
    """What gauges look at."""

    @property
    def queued_items(self) -> int: ...

    @property
    def queued_tokens(self) -> int: ...

    @property
    def cached_bytes(self) -> int: ...


class Metrics:
    """All counters of the service; also the batcher's observer."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        ProcessCollector(registry=r)
        self.requests = Counter(
            "mexma_http_requests", "HTTP requests answered", ["route", "status"], registry=r
        )
        self.request_seconds = Histogram(
            "mexma_http_request_seconds",
            "Time from the first byte of a request to the last of its answer",
            ["route"],
            buckets=SECONDS,
            registry=r,
        )
        self.items = Counter("mexma_embedded_items", "Texts embedded", registry=r)
        self.tokens = Counter(
            "mexma_embedded_tokens", "Tokens embedded, padding not counted", registry=r
        )
        self.truncated = Counter("mexma_truncated_items", "Texts that were cut", registry=r)
        self.language_items = Counter(
            "mexma_language_items",
            "Texts embedded by detected language, estimated from a sample",
            ["lang"],
            registry=r,
        )
        self.language_tokens = Counter(
            "mexma_language_sampled_tokens",
            "Tokens of the sampled texts, before any cut; over the characters, a language's fertility",
            ["lang"],
            registry=r,
        )
        self.language_characters = Counter(
            "mexma_language_sampled_characters",
            "Characters of the sampled texts",
            ["lang"],
            registry=r,
        )
        self.stage_seconds = Histogram(
            "mexma_stage_seconds",
            "Time of one request in tokenisation, in the queue, and in the engine's batches",
            ["stage"],
            buckets=SECONDS,
            registry=r,
        )
        self.batches = Counter("mexma_batches", "Batches run", ["outcome"], registry=r)
        self.batch_items = Histogram(
            "mexma_batch_items", "Texts in a batch", buckets=POWERS, registry=r
        )
        self.batch_tokens = Histogram(
            "mexma_batch_tokens",
            "Tokens that the engine computed for a batch",
            buckets=POWERS,
            registry=r,
        )
        self.padding_tokens = Counter(
            "mexma_padding_tokens", "Tokens of padding that the engine computed", registry=r
        )
        self.batch_seconds = Histogram(
            "mexma_batch_seconds", "Time of a batch on the engine", buckets=SECONDS, registry=r
        )
        self.engine_restarts = Counter(
            "mexma_engine_restarts",
            "Times that the watchdog started the engine anew: engine_stuck, engine_wrong",
            ["reason"],
            registry=r,
        )
        self.invariance = Gauge(
            "mexma_batch_invariance",
            "Least cosine of a text's vector in a batch to its vector alone, over the last 100 checks",
            ["fingerprint"],
            registry=r,
        )
        self.reloads = Counter(
            "mexma_model_reloads",
            "Reloads of the model: reloaded, unchanged, refused; and returns to the one before: "
            "rolled_back by an administrator, failed_trial by the watchdog",
            ["outcome"],
            registry=r,
        )
        self.spared_items = Counter(
            "mexma_spared_items",
            "Texts whose vector was in the cache, or being computed for another request already",
            ["by"],
            registry=r,
        )
        self.returns = Counter(
            "mexma_returns",
            "Requests that came back when a refusal had told them to: accepted, or refused again",
            ["outcome"],
            registry=r,
        )
        self.queue_items = Gauge("mexma_queue_items", "Texts waiting", registry=r)
        self.queue_tokens = Gauge("mexma_queue_tokens", "Tokens waiting", registry=r)
        self.cache_bytes = Gauge("mexma_cache_bytes", "Memory of cached vectors", registry=r)
        self.documents = Gauge(
            "mexma_collection_documents", "Documents stored", ["collection"], registry=r
        )
        self.index_state = Gauge(
            "mexma_collection_index",
            "1 for the collection's index state: exact, building, approximate, corrupt",
            ["collection", "state"],
            registry=r,
        )
        self.migrating = Gauge(
            "mexma_migration_documents",
            "Documents of a collection on its way to another encoder: embedded by it, left to do, "
            "and failed",
            ["collection", "state"],
            registry=r,
        )
        self.recall = Gauge(
            "mexma_collection_recall",
            "Share of the exact answer that approximate searches found, over the last 100 checks",
            ["collection"],
            registry=r,
        )
        self.hubness = Gauge(
            "mexma_collection_hubness",
            "Skewness of how often a document is among the 10 nearest of others, in a sample of "
            "1,000; 0 without hubs",
            ["collection"],
            registry=r,
        )
        self.searches = Counter(
            "mexma_searches", "Queries searched for", ["collection", "score"], registry=r
        )
        self.search_seconds = Histogram(
            "mexma_search_seconds",
            "Time of a search request in the store",
            buckets=SECONDS,
            registry=r,
        )
        self.refused = Counter(
            "mexma_refused",
            "Requests refused: no_key, unknown_key, role, cross_origin, quota, audit",
            ["reason"],
            registry=r,
        )
        self.keys_valid = Gauge(
            "mexma_api_keys_valid", "0 when the key file has changed and cannot be read", registry=r
        )
        self.keys_valid.set(1)
        self.data_bytes = Gauge(
            "mexma_data_bytes", "Size of the file system that holds MEXMA_DATA_DIR", registry=r
        )
        self.data_free_bytes = Gauge(
            "mexma_data_free_bytes", "What is free of it for this process", registry=r
        )
        self.ready = Gauge("mexma_ready", "1 when /health/ready says yes", registry=r)
        self.store_up = Gauge("mexma_store_up", "1 when the store answers", registry=r)
        self.encoder = Gauge(
            "mexma_encoder_info",
            "The encoders that are served; those kept after a reload are not among them",
            ["name", "fingerprint"],
            registry=r,
        )

        for name, values in BEGIN_AT_ZERO.items():
            for value in values:
                getattr(self, name).labels(value)

        # Looked up once: a request observes ten of these, and each look-up costs a microsecond.
        self._stages = [
            self.stage_seconds.labels(stage) for stage in ("tokenize", "queue", "inference")
        ]
        self._batch_ok = self.batches.labels("ok")
        self._cached = self.spared_items.labels("cache")
        self._joined = self.spared_items.labels("joining")
        self._routes: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._queues: list[Queue] = []
        self.queue_items.set_function(lambda: sum(q.queued_items for q in self._queues))
        self.queue_tokens.set_function(lambda: sum(q.queued_tokens for q in self._queues))
        self.cache_bytes.set_function(lambda: sum(q.cached_bytes for q in self._queues))

    def answered(self, route: str, status: int, seconds: float) -> None:
        """An HTTP request has its answer."""
        found = self._routes.get((route, status))
        if found is None:
            found = self._routes[route, status] = (
                self.requests.labels(route, status),
                self.request_seconds.labels(route),
            )
        found[0].inc()
        found[1].observe(seconds)

    def language(self, *, lang: str, items: int, tokens: int | None, characters: int) -> None:
        """A text was looked at that stands for `items`; tokens: None where it had none."""
        self.language_items.labels(lang).inc(items)
        if tokens is not None:
            self.language_tokens.labels(lang).inc(tokens)
            self.language_characters.labels(lang).inc(characters)

    def refusal(self, *, reason: str) -> None:
        """A request was not let in."""
        self.refused.labels(reason).inc()

    def relayed(self, name: str, arguments: dict[str, Any]) -> None:
        """What an HTTP worker saw: `answered`, `embedded`, `language` or `refusal`, with its arguments."""
        if name == "answered":
            self.answered(**arguments)
        elif name == "embedded":
            self.embedded(**arguments)
        elif name == "refusal":
            self.refusal(**arguments)
        elif name == "language":
            self.language(**arguments)

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)

    def embedded(
        self,
        *,
        items: int,
        tokens: int,
        truncated: int,
        tokenize_s: float,
        queue_s: float,
        inference_s: float,
    ) -> None:
        """One request's texts have their vectors."""
        self.items.inc(items)
        self.tokens.inc(tokens)
        if truncated:
            self.truncated.inc(truncated)
        for stage, seconds in zip(self._stages, (tokenize_s, queue_s, inference_s), strict=True):
            stage.observe(seconds)

    def batch_done(self, *, items: int, tokens: int, padded_tokens: int, seconds: float) -> None:
        self._batch_ok.inc()
        self.batch_items.observe(items)
        self.batch_tokens.observe(padded_tokens)
        self.padding_tokens.inc(padded_tokens - tokens)
        self.batch_seconds.observe(seconds)

    def batch_failed(self, *, items: int) -> None:
        self.batches.labels("failed").inc()

    def invariance_found(self, fingerprint: str, cosine: float) -> None:
        """Of the encoder with this fingerprint."""
        self.invariance.labels(fingerprint).set(cosine)

    def forget_invariance(self, fingerprint: str) -> None:
        """The encoder is gone."""
        with suppress(KeyError):
            self.invariance.remove(fingerprint)

    def spared(self, *, cached: int, joined: int) -> None:
        self._cached.inc(cached)
        self._joined.inc(joined)

    def returned(self, *, accepted: bool) -> None:
        self.returns.labels("accepted" if accepted else "refused").inc()

    def watch(self, queue: Queue) -> None:
        """Count what waits in `queue` when somebody asks, not at every change."""
        self._queues.append(queue)

    def unwatch(self, queue: Queue) -> None:
        """It takes nothing any more."""
        if queue in self._queues:
            self._queues.remove(queue)
