"""Embeds in the background what a collection lacks of the vectors of its other encoder.

One task per collection that is being moved, from its start (or the service's) to its end. It asks
the store what is missing, embeds it in small batches in the bulk lane, and hands it back; the store
remembers, so nothing here has to survive. Requests go first, those to another encoder too: the
encoders have an engine each and share the cores.

Refuses to know: HTTP, how vectors are kept.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from mexma.errors import (
    DeadlineExceeded,
    EngineError,
    InputError,
    MexmaError,
    MigrationNotFound,
    NonFiniteVector,
    Overloaded,
    StoreError,
)
from service.caller import INTERNAL_AT_ONCE, INTERNAL_BULK
from service.engine.embedder import Embedded, Embedder
from service.engine.encoders import Encoders
from service.store.database import Row
from service.store.migrations import Migrations
from service.store.moving import Embed, MigrationInfo
from service.store.moving import Embedded as Vectorised

log = logging.getLogger(__name__)

BATCH_ROWS = 32
"""About a tenth of a second of the default model on two cores: what a request may have to wait."""
GIVE_WAY_S = 0.5
"""At most so long, per batch, requests to other encoders go first: busy ones slow it, none stop it."""
LOOK_AGAIN_S = 0.25
RETRY_S = 1.0
TRIES = 3
RATE_WINDOW_S = 30.0


class Migrator:
    """encoders: those that are served. migrations: the store's."""

    def __init__(self, encoders: Encoders, migrations: Migrations):
        self.migrations = migrations
        self._encoders = encoders
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._done: dict[str, deque[tuple[float, int]]] = {}
        self._blocked: dict[str, str | None] = {}

    def start(self) -> None:
        """Go on with every migration that there is, on the running event loop."""
        for name in self.migrations.names():
            self.follow(name)

    async def stop(self) -> None:
        for task in [*self._tasks.values()]:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def follow(self, name: str) -> None:
        """Begin to embed for a collection, unless that is being done."""
        running = self._tasks.get(name)
        if running is None or running.done():
            self._done[name] = deque()
            self._blocked[name] = None
            self._tasks[name] = asyncio.create_task(self._follow(name), name=f"migrate {name}")

    def blocked(self, info: MigrationInfo) -> str | None:
        """Why nothing goes on, if so."""
        if self._encoders.get(info.other) is None:
            return f"encoder {info.other} is not served; start with its model to go on"
        return self._blocked.get(info.collection)

    def documents_per_s(self, name: str) -> float | None:
        """Lately; None while nothing is embedded."""
        done, now = self._done.get(name, deque()), time.monotonic()
        while done and now - done[0][0] > RATE_WINDOW_S:
            done.popleft()
        if len(done) < 2:
            return None
        seconds = max(done[-1][0] - done[0][0], 1e-3)
        return sum(n for _, n in [*done][1:]) / seconds

    def embed_at_once(self, embedder: Embedder) -> Embed:
        """To be called from another thread, while writers wait."""
        loop = asyncio.get_running_loop()
        limit_s = 2 * embedder.settings.request_timeout_s

        def embed(texts: Sequence[str]) -> Vectorised:
            coroutine = self._embed_all(embedder, texts)
            return asyncio.run_coroutine_threadsafe(coroutine, loop).result(limit_s)

        return embed

    async def _embed_all(self, embedder: Embedder, texts: Sequence[str]) -> Vectorised:
        rows, failed = _at_once(embedder), {}
        vectors = np.zeros((len(texts), embedder.encoder.manifest.dim), np.float32)
        for start in range(0, len(texts), rows):
            part = texts[start : start + rows]
            embedded = await embedder.embed(
                part, truncate=True, partial=True, caller=INTERNAL_AT_ONCE
            )
            vectors[start : start + len(part)] = embedded.vectors
            for item, error in embedded.errors.items():
                if not _is_the_texts_fault(error):
                    raise error
                failed[start + item] = str(error)
        return Vectorised(vectors, failed)

    async def _follow(self, name: str) -> None:
        tries: dict[int, int] = {}
        try:
            while True:
                # The roles may have changed: who is to be followed is asked each time.
                info = await asyncio.to_thread(self.migrations.describe, name)
                embedder = self._encoders.get(info.other)
                rows = []
                if embedder is not None:
                    rows = await asyncio.to_thread(self.migrations.work, name, _at_once(embedder))
                if embedder is None or not rows:
                    await asyncio.sleep(LOOK_AGAIN_S)
                    continue
                await self._give_way(embedder)
                try:
                    self._blocked[name] = await self._embed(embedder, info, rows, tries)
                except (Overloaded, DeadlineExceeded, EngineError) as error:
                    self._blocked[name] = str(error)
                if self._blocked[name]:
                    await asyncio.sleep(RETRY_S)
        except MigrationNotFound:
            log.info("the migration of %s has ended", name)
        except MexmaError as error:
            self._blocked[name] = error.public
            log.error("the migration of %s cannot go on: %s", name, error)

    async def _give_way(self, embedder: Embedder) -> None:
        until = time.monotonic() + GIVE_WAY_S
        while time.monotonic() < until and any(  # noqa: ASYNC110 - a batcher tells nobody it is idle
            other.batcher.queued_items or other.batcher.running_s()
            for other in self._encoders
            if other is not embedder
        ):
            await asyncio.sleep(0.005)

    async def _embed(
        self, embedder: Embedder, info: MigrationInfo, rows: list[Row], tries: dict[int, int]
    ) -> str | None:
        """Embed rows and store them. Returns what is in the way, if anything."""
        texts = [row.text for row in rows]
        embedded = await embedder.embed(texts, truncate=True, partial=True, caller=INTERNAL_BULK)
        failed, kept = {}, len(rows)
        for item, error in sorted(embedded.errors.items()):
            rid = rows[item].rid
            if not _is_the_texts_fault(error):
                # A try counts where the engine works after it; else it may have been the engine.
                tries[rid] = tries.get(rid, 0) + 1 if await _works(embedder) else 0
                if tries[rid] < TRIES:
                    kept = item  # rows go in by number: those behind it wait with it
                    break
            failed[item] = str(error)
        await self._take(info, rows[:kept], embedded, failed)
        return str(embedded.errors[kept]) if kept < len(rows) else None

    async def _take(
        self, info: MigrationInfo, rows: list[Row], embedded: Embedded, failed: dict[int, str]
    ) -> None:
        if not rows:
            return
        vectors = Vectorised(embedded.vectors[: len(rows)], failed)
        try:
            await asyncio.to_thread(
                self.migrations.take, info.collection, info.other, rows, vectors
            )
        except InputError as error:
            raise StoreError(f"vectors of {info.other} are refused: {error}") from error
        self._done[info.collection].append((time.monotonic(), len(rows)))


def _at_once(embedder: Embedder) -> int:
    return min(BATCH_ROWS, embedder.settings.max_request_items)


def _is_the_texts_fault(error: InputError | EngineError) -> bool:
    """Whether it would fail again on a sound engine."""
    return isinstance(error, InputError | NonFiniteVector)


async def _works(embedder: Embedder) -> bool:
    try:
        await embedder.embed(["ready?"], caller=INTERNAL_BULK)
    except MexmaError:
        return False
    return True
