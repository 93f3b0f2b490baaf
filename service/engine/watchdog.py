"""A test sentence now and then: does the engine answer, in time, and what it answered at the start?

What it finds turns `/health/ready` off, with a word for machines, and on again by itself. An engine
that hangs is given up and started anew, with its model loaded again; so is one that computes
something else. `/health/ready` looks at what was found last, so a probe costs nothing and does not
wait for the engine.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from mexma.errors import MexmaError, Overloaded
from service.engine.embedder import Embedder
from service.metrics import Metrics
from service.priority import lowered
from service.store.protocol import Vectors

log = logging.getLogger(__name__)

SENTENCE = "ready?"
DEADLINE_S = 5.0
BOUND = 0.9999
"""Least cosine to the first answer: what batching is held to."""


class Problem(NamedTuple):
    """reason: for machines. detail: for people."""

    reason: str
    detail: str


class Watchdog:
    """Of one engine.

    every_s: between two looks, where it runs. stuck_s: a batch that runs longer hangs. deadline_s:
    for the test sentence.
    """

    def __init__(
        self,
        embedder: Embedder,
        metrics: Metrics,
        *,
        every_s: float,
        stuck_s: float,
        deadline_s: float = DEADLINE_S,
    ):
        self._embedder = embedder
        self.name = embedder.encoder.manifest.name
        self._restarts = metrics.engine_restarts
        self._every_s = every_s
        self._deadline_s = deadline_s
        self._stuck_s = stuck_s
        self._canary = embedder.encoder.tokenizer.encode([SENTENCE])[0].ids
        self._expected: Vectors | None = None
        self._looking = asyncio.Lock()  # two at once would start one engine anew twice
        self.problem: Problem | None = None
        self.found: Problem | None = None  # last, mended or not, until it is forgotten

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._every_s)

    async def look(self) -> None:
        """Once: find out what is wrong, and start anew what hangs or errs."""
        async with self._looking:
            await self._look()

    async def _look(self) -> None:
        found = await self._examine()
        if found is not None and found != self.problem:
            log.warning("%s: %s", found.reason, found.detail)
        elif found is None and self.problem is not None:
            log.info("the engine works again")
        self.problem = found
        self.found = found or self.found
        if found is not None and found.reason in ("engine_stuck", "engine_wrong"):
            await self._restart(found.reason)

    def forget(self) -> None:
        """What was found until now does not count in a trial."""
        self.found = None

    async def now(self) -> Problem | None:
        """What `/health/ready` says: what is known, or what asking shows after a failed batch."""
        known = self.problem or self._standing_still()
        if known is None and self._embedder.batcher.last_failure is not None:
            return await self._ask()
        return known

    async def _examine(self) -> Problem | None:
        return self._standing_still() or await self._ask()

    def _standing_still(self) -> Problem | None:
        batcher = self._embedder.batcher
        if not batcher.alive:
            return Problem("engine_stopped", "no thread takes batches")
        if batcher.running_s() > self._stuck_s:
            return Problem(
                "engine_stuck",
                f"a batch has been running for {batcher.running_s():.0f} s; the limit is "
                f"{self._stuck_s:g} s",
            )
        return None

    async def _ask(self) -> Problem | None:
        try:
            async with asyncio.timeout(self._deadline_s):
                # bulk: as interactive it would keep others' batches short for a while
                job = await self._embedder.batcher.submit(
                    [self._canary], lane="bulk", client="watchdog", fresh=True
                )
        except TimeoutError:
            return Problem(
                "engine_slow", f"a test sentence took longer than {self._deadline_s:g} s"
            )
        except Overloaded:
            return self.problem  # full is not broken
        except MexmaError as error:
            return Problem("engine_failed", str(error))
        if job.errors or job.vectors is None:
            return Problem("engine_failed", f"a test sentence failed: {job.errors.get(0)}")
        return self._compare(job.vectors)

    def _compare(self, vectors: Vectors) -> Problem | None:
        if self._expected is None:
            self._expected = vectors
        lengths = np.linalg.norm(self._expected) * np.linalg.norm(vectors)
        cosine = float((self._expected * vectors).sum() / lengths)
        if not cosine >= BOUND:
            return Problem(
                "engine_wrong",
                f"a test sentence's vector has cosine {cosine:.4f} to what it was at the start; "
                f"the bound is {BOUND}",
            )
        return None

    async def _restart(self, reason: str) -> None:
        self._restarts.labels(reason).inc()
        log.warning("the engine is started anew: %s", reason)
        renew = getattr(self._embedder.encoder, "renew", None)
        if renew is not None:
            try:
                await asyncio.to_thread(lowered, renew)
            except MexmaError as error:
                log.error("the model cannot be loaded again, the old session goes on: %s", error)
        self._embedder.batcher.restart(self._stuck_s if reason == "engine_stuck" else 0.0)


class Watchdogs:
    """One for each engine that is served.

    every_s: between two looks; 0 sends no test sentences but those that `/health/ready` asks for.
    """

    def __init__(self, metrics: Metrics, *, every_s: float, stuck_s: float):
        self._metrics, self._every_s, self._stuck_s = metrics, every_s, stuck_s
        self._of: dict[Embedder, tuple[Watchdog, asyncio.Task[None] | None]] = {}

    def of(self, embedder: Embedder) -> Watchdog:
        """The one that watches `embedder`, or one that will once it is handed to `add`."""
        if embedder in self._of:
            return self._of[embedder][0]
        return Watchdog(embedder, self._metrics, every_s=self._every_s, stuck_s=self._stuck_s)

    def add(self, embedder: Embedder, watchdog: Watchdog) -> None:
        """From now on it is asked by `/health/ready`, and looks by itself."""
        if embedder not in self._of:
            looks = asyncio.create_task(watchdog.run(), name="watchdog") if self._every_s else None
            self._of[embedder] = watchdog, looks

    async def remove(self, embedder: Embedder) -> None:
        _, looks = self._of.pop(embedder, (None, None))
        if looks is not None:
            looks.cancel()
            with suppress(asyncio.CancelledError):
                await looks

    async def stop(self) -> None:
        for embedder in [*self._of]:
            await self.remove(embedder)
