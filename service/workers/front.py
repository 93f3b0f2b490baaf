"""A worker's application: tokenises, answers the hot routes, and hands everything else on.

It has a tokenizer and no engine and no store. A request that its shortcuts do not take, errors included,
is answered by the engine's process, so the contract is the same with and without workers.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from fastapi.responses import Response
from numpy.typing import NDArray
from starlette.types import Message, Receive, Scope, Send

from mexma.artifact import Manifest
from mexma.errors import EngineAway
from mexma.text import TextTokenizer
from service import readiness
from service.departures import watched
from service.engine.embedder import Embedder
from service.http_errors import for_exception
from service.language_meter import LanguageMeter
from service.languages import LanguageDetector
from service.middleware import RequestBorder, with_cors
from service.routes import embeddings, tei
from service.schemas import EmbeddingRequest
from service.security.access import guard_of
from service.security.audit import Audit
from service.security.gate import FirstGate
from service.settings import Settings
from service.shortcut import Shortcut
from service.tei_schemas import TeiEmbedRequest
from service.tracing import start_tracing
from service.workers import liveness
from service.workers.backoff import notice
from service.workers.proxy import forward
from service.workers.remote import RelayedMetrics, RemoteBatcher

HTTP_SOCKET, ENGINE_SOCKET = "http.sock", "engine.sock"

# An engine's process whose event loop does not turn in this time hangs; to wait for its watchdog's
# word, which may take as long as a test sentence's deadline, is in vain then.
ALIVE_TIMEOUT_S = 2.0
# A probe that is not answered in this time is an answer.
PROBE_TIMEOUT_S = 8.0
# Where no engine answers, a worker says so itself after this time.
GREETING_TIMEOUT_S = 3.0


class TokenizingEncoder:
    """An encoder whose engine is elsewhere."""

    engine = "in another process"
    pads = True
    streams = 1

    def __init__(self, manifest: Manifest, tokenizer: TextTokenizer):
        self.manifest = manifest
        self.tokenizer = tokenizer

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    def run(self, sequences: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        raise NotImplementedError("the engine is in another process")

    def token_states(self, sequences: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        raise NotImplementedError("the engine is in another process")


class Front:
    """ASGI."""

    def __init__(
        self,
        settings: Settings,
        encoder: TokenizingEncoder,
        folder: Path,
        mismatch: Callable[[str], None],
        elsewhere: frozenset[str] = frozenset(),
    ):
        """folder: of the sockets of the engine's process. mismatch: see RemoteBatcher.
        elsewhere: names of models that the engine's process tokenises for itself."""
        self._folder = folder
        self._http = folder / HTTP_SOCKET
        self._remote = RemoteBatcher(
            folder / ENGINE_SOCKET,
            fingerprint=encoder.fingerprint,
            dim=encoder.manifest.dim,
            mismatch=mismatch,
        )
        metrics = RelayedMetrics()
        metrics.remote = self._remote
        self._embedder = Embedder(encoder, settings, metrics, submit=self._remote.submit)
        if settings.language_sample_every:
            self._embedder.language_meter = LanguageMeter(
                LanguageDetector(), metrics, every=settings.language_sample_every
            )
        self._tracing = start_tracing(settings)
        tei_shortcut = Shortcut(
            TeiEmbedRequest,
            partial(tei.answer, lambda: self._embedder),
            client_header=settings.client_header,
        )
        border = RequestBorder(
            self._hand_on,
            max_body_bytes=settings.max_body_bytes,
            body_timeout_s=settings.body_timeout_s,
            metrics=metrics,
            client_header=settings.client_header,
            gate=FirstGate(guard_of(settings), Audit(None), metrics),
            access_log=settings.access_log,
            tracing=self._tracing,
            shortcuts={
                "/v1/embeddings": Shortcut(
                    EmbeddingRequest,
                    partial(embeddings.answer, lambda _: self._embedder),
                    client_header=settings.client_header,
                    takes=lambda body: body.model not in elsewhere,
                ),
                "/embed": tei_shortcut,
                "/": tei_shortcut,
            },
        )
        self._border = with_cors(border, settings.cors_origins)
        self.unread = border.unread

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await self._border(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        self._remote.start()
        # One that replaces another takes requests once it can hand them on.
        await self._remote.greeted(GREETING_TIMEOUT_S)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._remote.stop()
        await self._embedder.stop()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        await send({"type": "lifespan.shutdown.complete"})

    async def _hand_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if liveness.is_asked(scope):
            # The supervisor mends an engine that hangs; to restart everything is worse.
            await liveness.alive(scope, receive, send)
            return
        probed = path in readiness.PATHS
        if probed and (said := notice(self._folder)):
            response = readiness.not_ready(path, reason="workers_failing", detail=said)
            await response(scope, receive, send)
            return
        if probed and not await self._engine_lives():
            await _engine_away(path)(scope, receive, send)
            return
        body = await _whole(scope, receive)

        async def send_on(message: Message) -> None:
            # Counted and logged there, even if the client leaves before the last byte.
            scope["answered_elsewhere"] = True
            await send(message)

        work = forward(self._http, scope, body, send_on)
        try:
            if probed:
                async with asyncio.timeout(PROBE_TIMEOUT_S):
                    await work
            else:
                await watched(scope, receive, work)
        except EngineAway as error:
            response = _engine_away(path) if probed else for_exception(path, error)
            await response(scope, receive, send)
        except TimeoutError:
            await _engine_away(path)(scope, receive, send)

    async def _engine_lives(self) -> bool:
        return self._remote.connected and await liveness.lives_soon(
            self._http, timeout_s=ALIVE_TIMEOUT_S
        )


async def _whole(scope: Scope, receive: Receive) -> bytes:
    """The body, which the border has received already, where there is one."""
    names = {name for name, _ in scope["headers"]}
    if not names & {b"content-length", b"transfer-encoding"}:
        return b""
    message = await receive()
    body: bytes = message.get("body", b"")
    return body


def _engine_away(path: str) -> Response:
    detail = (
        f"the engine's process does not answer worker {os.getpid()}; it is restarted when it dies"
    )
    return readiness.not_ready(path, reason="engine_away", detail=detail)
