"""Probes that tell the truth, and the metrics."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress

from fastapi import APIRouter
from fastapi.responses import Response

from mexma.errors import StoreError, StoreUnavailable
from service import readiness
from service.http_errors import ACCESS_ERRORS, TeiErrorBody, documented
from service.schemas import Live, Ready
from service.state import State

STARTING = {
    "filling_demo": "the demo's sentences are being embedded, once; other collections work",
    "start_failed": "start-up raised an error; the log says which",
}


def router(state: State) -> APIRouter:
    """The routes, bound to one app's state."""
    routes = APIRouter(tags=["operations"])

    @routes.get("/health/live", response_model=Live)
    async def live() -> Live:
        """The process answers. Restart it when this does not; nothing else is a reason to."""
        return Live()

    @routes.get(
        "/health/ready",
        response_model=Ready,
        responses={503: {"model": Ready, "description": "Do not send traffic; reason says why"}},
    )
    async def ready() -> Response | Ready:
        """Whether to send traffic: started, the engine is not stuck, and its last batch worked.

        A test sentence now and then finds out what no client has tried. After a failed batch the
        probe runs one itself, so that the service comes back without waiting for either.
        """
        return await refusal(readiness.PATH) or Ready(status="ready")

    @routes.get(
        "/health",
        response_class=Response,
        tags=["text-embeddings-inference"],
        responses={
            200: {"description": "Send traffic", "content": {}},
            503: {"model": TeiErrorBody, "description": "Do not send traffic"},
        },
    )
    async def health() -> Response:
        """As `/health/ready`, for who knows text-embeddings-inference: 200 without a body, or 503."""
        return await refusal(readiness.TEI_PATH) or Response()

    async def refusal(path: str) -> Response | None:
        reason, detail = await _why_not(state)
        state.metrics.ready.set(reason is None)
        return None if reason is None else readiness.not_ready(path, reason=reason, detail=detail)

    @routes.get(
        "/metrics",
        response_class=Response,
        responses={
            200: {
                "description": "Prometheus exposition",
                "content": {"text/plain": {"schema": {"type": "string"}}},
            },
            **documented(*ACCESS_ERRORS),
        },
    )
    async def show_metrics() -> Response:
        """Prometheus metrics."""
        metrics = state.metrics
        metrics.ready.set((await _why_not(state))[0] is None)  # where nobody else asks
        try:
            infos = await asyncio.to_thread(state.store.list)
        except StoreUnavailable:
            infos = []  # the other metrics are the more needed now
            metrics.store_up.set(0)
        else:
            metrics.store_up.set(1)
        with suppress(OSError):  # a disk that is gone is the store's to report
            disk = shutil.disk_usage(state.settings.data_dir)
            metrics.data_bytes.set(disk.total)
            metrics.data_free_bytes.set(disk.free)
        per_collection = (metrics.documents, metrics.index_state, metrics.recall, metrics.hubness)
        for gauge in (*per_collection, metrics.migrating):
            gauge.clear()  # of collections that are gone
        await asyncio.to_thread(_count_migrations, state)
        for info in infos:
            metrics.documents.labels(info.name).set(info.count)
            metrics.index_state.labels(info.name, info.index_state).set(1)
            if info.recall is not None:
                metrics.recall.labels(info.name).set(info.recall)
            if info.hubness is not None:
                metrics.hubness.labels(info.name).set(info.hubness)
        return Response(state.metrics.render(), media_type=state.metrics.content_type)

    return routes


def _count_migrations(state: State) -> None:
    if state.migrator is None:
        return
    for name in state.migrator.migrations.names():
        with suppress(StoreError):  # ended in this moment
            info = state.migrator.migrations.describe(name)
            gauge, failed = state.metrics.migrating, len(info.failed)
            gauge.labels(name, "embedded").set(info.embedded)
            gauge.labels(name, "failed").set(failed)
            gauge.labels(name, "left").set(info.documents - info.embedded - failed)


async def _why_not(state: State) -> tuple[str | None, str | None]:
    if state.starting:
        return state.starting, STARTING.get(state.starting, "the service is starting")
    if off := state.canaries.off():
        return "canary_mismatch", "; ".join(off.values())
    for embedder in state.encoders:
        if state.encoders.role(embedder) == "kept":
            continue  # it may have been exchanged because it is broken
        watchdog = state.watchdogs.of(embedder)
        if (problem := await watchdog.now()) is not None:
            which = f"{watchdog.name}: " if len(state.encoders) > 1 else ""
            return problem.reason, f"{which}{problem.detail}"
    return None, None
