"""The application: an encoder and a store behind HTTP.

`create_app` takes the world as arguments and keeps nothing global, so a test can hand it a
fake encoder, and one process can hold two apps.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import cast

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from mexma import __version__
from mexma.encoder import Encoder
from mexma.errors import StoreUnavailable
from service import http_errors, openapi
from service.canaries import Canaries
from service.demo import offer_demo
from service.engine.encoders import Encoders
from service.engine.tuning import Tuning
from service.engine.watchdog import Watchdogs
from service.http_errors import ACCESS_ERRORS, documented
from service.language_meter import LanguageMeter
from service.languages import LanguageDetector
from service.metrics import Metrics
from service.middleware import RequestBorder, with_cors
from service.migrator import Migrator
from service.received import Refuse
from service.reloader import Reloader, owned
from service.routes import (
    align,
    collections,
    documents,
    embeddings,
    health,
    migrations,
    mining,
    models,
    page,
    search,
    snapshots,
    tei,
)
from service.schemas import EmbeddingRequest
from service.security.access import Guard
from service.security.audit import Audit
from service.security.gate import Gate
from service.settings import Settings
from service.shortcut import Shortcut
from service.state import State
from service.store.migrations import Migrating
from service.store.protocol import Store
from service.tei_schemas import TeiEmbedRequest
from service.tracing import TracedStore, Tracing
from service.unusable import warn_of_unusable
from service.workers.engine_socket import offer_engine

log = logging.getLogger(__name__)

DESCRIPTION = """Sentence embeddings for when meaning must cross languages, and search over them.

Texts in any of the model's languages become vectors in one space; a collection finds the
neighbours of a text in other languages in one call."""


class Service(FastAPI):
    """The application, inside the border that every request passes."""

    border: ASGIApp | None = None
    refuse: Refuse | None = None
    """What a request is told for which there is no room, before there is a task; see `RequestBorder`."""
    unread: Callable[[int, str], None] | None = None
    """What hears of answers to what was no request."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.border or super().__call__)(scope, receive, send)


def create_app(
    settings: Settings,
    *,
    encoder: Encoder,
    store: Store,
    detector: LanguageDetector | None = None,
    further: Sequence[Encoder] = (),
    load: Callable[[Path], Encoder] | None = None,
    tracing: Tracing | None = None,
    guard: Guard | None = None,
    audit: Audit | None = None,
    tuning: Tuning | None = None,
    engine_socket: Path | None = None,
) -> Service:
    """The service as an ASGI application.

    encoder: turns token sequences into vectors; `mexma.encoder.OnnxEncoder` or a stand-in.
    store: where collections live; the app closes it when it shuts down. detector: names the
    language of a text that comes without one. further: encoders served beside the default one,
    for collections that are theirs. load: makes an encoder of an artifact, for reloads; there are
    none without. tracing: where traces go; the app closes it, too.
    tuning: how large batches of bulk work are, where the settings do not say.
    guard: who may call; everybody without. audit: the record of administrators' acts.
    engine_socket: where HTTP workers find the default encoder's engine.
    """
    metrics = Metrics()
    guard = guard or Guard(None, origins=settings.cors_origins)
    encoders = Encoders([encoder, *further], settings, metrics, tuning=tuning)
    canaries = Canaries(encoders, store)
    migrator = Migrator(encoders, store.migrations) if isinstance(store, Migrating) else None
    watchdogs = Watchdogs(
        metrics, every_s=settings.canary_every_s, stuck_s=settings.engine_timeout_s
    )
    state = State(
        settings=settings,
        encoders=encoders,
        store=cast(Store, TracedStore(store)) if tracing else store,
        detector=detector or LanguageDetector(),
        metrics=metrics,
        canaries=canaries,
        watchdogs=watchdogs,
        reloader=Reloader(
            settings,
            encoders,
            watchdogs,
            canaries,
            metrics,
            load=None if engine_socket else load,
            owned=partial(owned, store, migrator) if settings.collections else None,
        ),
        migrator=migrator,
        starting="starting",
    )
    meter = LanguageMeter(state.detector, metrics, every=settings.language_sample_every)
    for embedder in state.encoders:
        embedder.language_meter = meter
    app = Service(
        title="mexma",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        strict_content_type=False,  # JsonRoute answers 415 itself
        lifespan=lambda _: _lifespan(state, tracing, engine_socket),
    )
    app.state.client_header = settings.client_header
    app.state.encoders = state.encoders
    app.state.collections = settings.collections
    http_errors.install(app)
    refused = documented(*ACCESS_ERRORS)
    app.include_router(models.router(state), responses=refused)  # before a model of such a name
    app.include_router(embeddings.router(state), responses=refused)
    app.include_router(mining.router(state), responses=refused)
    app.include_router(align.router(state), responses=refused)
    if settings.collections:
        for routes in (collections, documents, search, snapshots, migrations):
            app.include_router(routes.router(state), responses=refused)
    app.include_router(tei.router(state), responses=documented(*ACCESS_ERRORS, tei=True))
    app.include_router(health.router(state))
    app.include_router(page.router())
    tei_shortcut = Shortcut(
        TeiEmbedRequest,
        partial(tei.answer, lambda: state.encoders.default),
        client_header=settings.client_header,
        refusal=state.encoders.refusal,
    )
    border = RequestBorder(
        partial(FastAPI.__call__, app),
        max_body_bytes=settings.max_body_bytes,
        body_timeout_s=settings.body_timeout_s,
        access_log=settings.access_log,
        client_header=settings.client_header,
        gate=Gate(guard, audit or Audit(None), metrics),
        tracing=tracing,
        metrics=metrics,
        shortcuts={
            "/v1/embeddings": Shortcut(
                EmbeddingRequest,
                partial(embeddings.answer, state.encoders.for_request),
                client_header=settings.client_header,
                refusal=state.encoders.refusal,
            ),
            "/embed": tei_shortcut,
            "/": tei_shortcut,
        },
    )
    app.refuse, app.unread = border.refuse, border.unread
    # With HTTP workers it is they whom pages call.
    app.border = with_cors(border, () if engine_socket else settings.cors_origins)
    openapi.complete(app, state.encoders)
    return app


@asynccontextmanager
async def _lifespan(
    state: State, tracing: Tracing | None, engine_socket: Path | None
) -> AsyncIterator[None]:
    state.encoders.start()
    starting = asyncio.create_task(_start(state), name="start")
    try:
        if engine_socket is None:
            yield
        else:
            async with offer_engine(state.encoders.default, state.metrics, engine_socket):
                yield
    finally:
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
        await state.reloader.stop()
        await state.watchdogs.stop()
        if state.migrator is not None:
            await state.migrator.stop()
        await state.encoders.stop()
        await asyncio.to_thread(state.store.close)
        if tracing is not None:
            await asyncio.to_thread(tracing.close)


async def _set_watchdogs(state: State) -> None:
    for embedder in state.encoders:
        watchdog = state.watchdogs.of(embedder)
        if state.settings.canary_every_s:  # else it is asked by `/health/ready` alone
            await watchdog.look()
        state.watchdogs.add(embedder, watchdog)


async def _start(state: State) -> None:
    """What happens while the port is already open; then ready turns on, and what it does not wait for
    is said."""
    try:
        await asyncio.to_thread(state.detector.detect, "warm up")
        for embedder in state.encoders:
            await embedder.embed(["warm up"])
            await state.encoders.tune(embedder)
        if state.settings.collections:
            await state.canaries.check_all()
        if state.settings.demo and state.settings.collections:
            state.starting = "filling_demo"
            try:
                await offer_demo(state)
            except StoreUnavailable as error:
                log.error("no demo until the next start: %s", error)
    except Exception:
        state.starting = "start_failed"
        log.exception("the service could not start up and stays not ready")
        return
    if state.migrator is not None and state.settings.collections:
        state.migrator.start()
    await _set_watchdogs(state)
    state.starting = None
    for embedder in state.encoders:
        encoder = embedder.encoder
        log.info("ready: %s, fingerprint %s", encoder.manifest.name, encoder.fingerprint)
    if state.settings.collections:  # the demo, which makes itself anew, is there
        await warn_of_unusable(state)
