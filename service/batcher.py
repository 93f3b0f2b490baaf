"""From many callers' sequences to batches on one engine, and back.

A batch is formed the moment the engine is free, from what waits then: the oldest sequence
and those nearest to it in length, up to a budget of padded tokens. Nobody waits for a timer.

Promises, each attacked in `tests/service/test_batcher.py`:
- every caller gets a result or an error, whatever happens to its neighbours in a batch: when
  a batch fails, its sequences are run again one by one, and only the guilty fail;
- a cancelled caller's sequences leave the queue, or are dropped if they are running;
- the waiting tokens are bounded; beyond that callers are refused and told when to come back.

Refuses to know: text, HTTP, models. Lives on one event loop; the engine runs in a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mexma.batching import take_batch
from mexma.errors import EngineError, NonFiniteVector, Overloaded

Run = Callable[[Sequence[NDArray[np.int64]]], NDArray[np.float32]]

# Length grouping looks at this many of the oldest waiting sequences: enough to fill any batch
# with near-equal lengths, and it bounds the sorting to well under a millisecond.
LOOKAHEAD = 512


class BatchObserver(Protocol):
    """Told of what happens, for metrics."""

    def batch_done(
        self, *, items: int, tokens: int, padded_tokens: int, seconds: float
    ) -> None: ...

    def batch_failed(self, *, items: int) -> None: ...

    def queue_changed(self, *, items: int, tokens: int) -> None: ...


@dataclass
class Job:
    """One caller's sequences on their way.

    vectors: float32 `[n, dim]`, allocated with the first result. errors: index -> error of
    the sequences that failed. queue_s: from submission until its first sequence ran;
    inference_s: time of the batches that its sequences were in.
    """

    count: int
    future: asyncio.Future[None]
    submitted: float
    vectors: NDArray[np.float32] | None = None
    errors: dict[int, EngineError] = field(default_factory=dict)
    queue_s: float | None = None
    inference_s: float = 0.0
    remaining: int = 0


@dataclass(eq=False, slots=True)
class _Waiting:
    job: Job
    index: int
    ids: NDArray[np.int64]


class Batcher:
    """The queue in front of one engine."""

    def __init__(
        self,
        run: Run,
        *,
        max_batch_tokens: int,
        max_batch_items: int,
        max_queue_tokens: int,
        observer: BatchObserver | None = None,
    ):
        """run: sequences (each int64 `[length]`) to vectors float32 `[n, dim]`, blocking."""
        self._run = run
        self._max_batch_tokens = max_batch_tokens
        self._max_batch_items = max_batch_items
        self._max_queue_tokens = max_queue_tokens
        self._observer = observer
        self._queue: dict[_Waiting, None] = {}  # ordered by arrival; O(1) removal
        self._arrived = asyncio.Event()
        self._engine = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._worker: asyncio.Task[None] | None = None
        self._running_since: float | None = None
        self.queued_tokens = 0
        self.tokens_per_s = 1000.0  # a guess until the first batch has been timed
        self.last_failure: str | None = None

    @property
    def queued_items(self) -> int:
        return len(self._queue)

    @property
    def alive(self) -> bool:
        """Is there a worker that takes batches?"""
        return self._worker is not None and not self._worker.done()

    def running_s(self) -> float:
        """How long the batch now on the engine has been running; 0 if none is."""
        since = self._running_since
        return 0.0 if since is None else time.monotonic() - since

    def start(self) -> None:
        """Begin taking batches, on the running event loop."""
        self._worker = asyncio.get_running_loop().create_task(self._work(), name="batcher")

    async def stop(self) -> None:
        """Stop taking batches; whoever still waits gets an EngineError."""
        if self._worker is not None:
            self._worker.cancel()
            with suppress(asyncio.CancelledError):
                await self._worker
        for waiting in list(self._queue):
            self._fail(waiting, EngineError("the service is shutting down"))
        self._engine.shutdown(wait=False, cancel_futures=True)

    async def submit(self, sequences: Sequence[NDArray[np.int64]]) -> Job:
        """Run `sequences` and return the finished job.

        Raises Overloaded when the queue is full. Failures of single sequences are in
        `Job.errors`, not raised. If the caller is cancelled, its sequences leave the queue.
        """
        tokens = sum(len(s) for s in sequences)
        if self._queue and self.queued_tokens + tokens > self._max_queue_tokens:
            raise Overloaded(
                f"the queue holds {self.queued_tokens} tokens and {tokens} more would exceed its "
                f"limit of {self._max_queue_tokens}; retry later",
                retry_after_s=self.queued_tokens / self.tokens_per_s,
            )
        job = Job(
            count=len(sequences),
            future=asyncio.get_running_loop().create_future(),
            submitted=time.monotonic(),
            remaining=len(sequences),
        )
        if not sequences:
            return job
        items = [_Waiting(job, index, ids) for index, ids in enumerate(sequences)]
        for item in items:
            self._queue[item] = None
        self.queued_tokens += tokens
        self._changed()
        self._arrived.set()
        try:
            await job.future
        finally:
            if job.remaining:
                for item in items:
                    self._remove(item)
                self._changed()
        return job

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            batch = self._take()
            if not batch:
                self._arrived.clear()
                continue
            await self._run_batch(loop, batch)

    def _take(self) -> list[_Waiting]:
        candidates = list(islice(self._queue, LOOKAHEAD))
        if not candidates:
            return []
        chosen = take_batch(
            [len(c.ids) for c in candidates],
            0,
            max_tokens=self._max_batch_tokens,
            max_items=self._max_batch_items,
        )
        batch = [candidates[i] for i in chosen]
        for item in batch:
            self._remove(item)
        self._changed()
        return batch

    async def _run_batch(self, loop: asyncio.AbstractEventLoop, batch: list[_Waiting]) -> None:
        started = time.monotonic()
        for item in batch:
            if item.job.queue_s is None:
                item.job.queue_s = started - item.job.submitted
        try:
            vectors = await self._on_engine(loop, batch)
        except asyncio.CancelledError:
            for item in batch:
                self._fail(item, EngineError("the service is shutting down"))
            raise
        except Exception as error:  # noqa: BLE001 - whatever the engine raises, the next batch runs
            await self._after_failure(loop, batch, error)
            return
        self.last_failure = None
        self._distribute(batch, vectors, time.monotonic() - started)

    async def _after_failure(
        self, loop: asyncio.AbstractEventLoop, batch: list[_Waiting], error: Exception
    ) -> None:
        """Find the guilty by running each sequence alone, or name it when it is alone."""
        if self._observer:
            self._observer.batch_failed(items=len(batch))
        if len(batch) > 1:
            for item in batch:
                if not item.job.future.done():
                    await self._run_batch(loop, [item])
            return
        self.last_failure = f"{type(error).__name__}: {error}"
        if not isinstance(error, EngineError):
            error = EngineError(f"inference failed: {type(error).__name__}")
        self._fail(batch[0], error)

    def _distribute(
        self, batch: list[_Waiting], vectors: NDArray[np.float32], seconds: float
    ) -> None:
        tokens = sum(len(item.ids) for item in batch)
        padded = len(batch) * max(len(item.ids) for item in batch)
        self.tokens_per_s += 0.2 * (tokens / max(seconds, 1e-6) - self.tokens_per_s)
        if self._observer:
            self._observer.batch_done(
                items=len(batch), tokens=tokens, padded_tokens=padded, seconds=seconds
            )
        for job in {id(item.job): item.job for item in batch}.values():
            job.inference_s += seconds
        for item, vector in zip(batch, vectors, strict=True):
            if np.isfinite(vector).all():
                self._deliver(item, vector)
            else:
                self._fail(item, NonFiniteVector("inference gave a vector that is not finite"))

    async def _on_engine(
        self, loop: asyncio.AbstractEventLoop, batch: list[_Waiting]
    ) -> NDArray[np.float32]:
        self._running_since = time.monotonic()
        try:
            vectors = await loop.run_in_executor(
                self._engine, self._run, [item.ids for item in batch]
            )
        finally:
            self._running_since = None
        if vectors.ndim != 2 or len(vectors) != len(batch):
            raise EngineError(f"expected {len(batch)} vectors, got shape {vectors.shape}")
        return vectors

    def _deliver(self, item: _Waiting, vector: NDArray[np.float32]) -> None:
        job = item.job
        if job.vectors is None:
            job.vectors = np.zeros((job.count, len(vector)), np.float32)
        job.vectors[item.index] = vector
        self._settle(job)

    def _fail(self, item: _Waiting, error: EngineError) -> None:
        # Each sequence has an error object of its own, so that each can name its item.
        own = type(error)(f"item {item.index}: {error}", item=item.index)
        item.job.errors[item.index] = own
        self._settle(item.job)

    def _settle(self, job: Job) -> None:
        job.remaining -= 1
        if job.remaining == 0 and not job.future.done():
            job.future.set_result(None)

    def _remove(self, item: _Waiting) -> None:
        if item in self._queue:
            del self._queue[item]
            self.queued_tokens -= len(item.ids)

    def _changed(self) -> None:
        if self._observer:
            self._observer.queue_changed(items=len(self._queue), tokens=self.queued_tokens)
