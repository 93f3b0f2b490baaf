"""From many callers' sequences to batches on one engine, and back.

A batch is formed the moment the engine is free, from what waits then, by a thread of the engine's own
(`streams`): it never waits for the event loop between two batches. Which sequences those are, `lanes` says.
Nobody waits for a timer.

Promises, each attacked in `tests/service/engine/test_batcher.py`:
- every caller gets a result or an error, whatever happens to its neighbours in a batch: when
  a batch fails, its sequences are run again one by one, and only the guilty fail;
- a cancelled caller's sequences leave the queue, or are dropped if they are running, and what
  is past its deadline is not run;
- callers are refused rather than kept waiting without end (`admission`), and whoever comes back
  when told to is taken before those who come for the first time (`claims`).

Refuses to know: text, HTTP, models. Callers live on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mexma.errors import DeadlineExceeded, EngineError, NonFiniteVector, Overloaded
from service.engine.admission import Admission, Asked
from service.engine.cache import VectorCache
from service.engine.cost import BatchCost, Pace
from service.engine.lanes import Entry, Lane, Lanes, entries_by_receiver, tokens_in
from service.engine.streams import Outcome, Rows, Run, RunStates, Streams

log = logging.getLogger(__name__)

# While a light interactive client is about, others' batches take at most this many times as long as
# its own would alone: it waits for one, and is computed beside half of another. At 1.3 its time at most
# doubles, and a heavy client keeps two fifths of its pace (`tests/service/engine/test_fairness.py`).
PATIENCE = 1.3


# Beside a batch that runs, another is begun for so many interactive tokens: each reads all weights. On a CPU
# it is not for bulk work, whose batches are large already: two cores that are at one place in the weights
# take less time than two at two places (`LOG.md`, 2026-11-26). On a GPU it is for bulk work, too: it would
# stand still while the next batch is formed, padded and copied.
WORTH_TOKENS = 256

# Who comes when no interactive client was about does not wait for the batch of bulk work that runs, of more
# than so many times the tokens it has while one is about, but is computed beside it: 1,024 tokens take 50 ms
# on two cores.
OVERTAKES = 4


class BatchObserver(Protocol):
    """Told of what happens, for metrics; on the event loop."""

    def batch_done(
        self, *, items: int, tokens: int, padded_tokens: int, seconds: float
    ) -> None: ...

    def batch_failed(self, *, items: int) -> None: ...

    def spared(self, *, cached: int, joined: int) -> None: ...

    def returned(self, *, accepted: bool) -> None: ...


@dataclass(eq=False)
class Job:
    """One caller's sequences on their way.

    vectors: float32 `[n, dim]`, allocated with the first result. states: in their place where those of
    tokens are asked for, each float32 `[length, hidden]`, perhaps another job's, too. errors: index ->
    error of the sequences that failed. queue_s: from submission until its first sequence ran;
    inference_s: time of the batches that its sequences were in.
    """

    count: int
    future: asyncio.Future[None]
    submitted: float
    deadline: float | None = None
    vectors: NDArray[np.float32] | None = None
    errors: dict[int, EngineError] = field(default_factory=dict)
    queue_s: float | None = None
    inference_s: float = 0.0
    remaining: int = 0
    entries: list[Entry] = field(default_factory=list)
    last_batch: object = None
    states: list[NDArray[np.float32] | None] | None = None


class Batcher:
    """The queue in front of one engine."""

    def __init__(
        self,
        run: Run,
        *,
        max_batch_tokens: int,
        max_batch_items: int,
        max_queue_tokens: int,
        max_wait_s: float = math.inf,
        pads: bool = True,
        streams: int = 1,
        bulk_beside: bool = False,
        least_quantum: int = 0,
        observer: BatchObserver | None = None,
        cache: VectorCache | None = None,
        clock: Callable[[], float] = time.monotonic,
        states: RunStates | None = None,
    ):
        """run: sequences (each int64 `[length]`) to vectors float32 `[n, dim]`, blocking; on `streams`
        threads at once. states: the same to the states of their tokens. pads: whether it computes each of
        a batch as long as the longest. bulk_beside: whether bulk work is begun beside another batch, too.
        least_quantum: tokens that a batch may have whoever is about. max_wait_s: that an interactive job
        may be about to wait."""
        self._pads = pads
        self._bulk_beside = bulk_beside
        self._least_quantum = least_quantum
        self._observer = observer
        self._cache = cache
        self._clock = clock
        self._lanes = Lanes(
            max_batch_tokens=max_batch_tokens, max_batch_items=max_batch_items, pads=pads
        )
        self._arrived = threading.Condition()  # guards the lanes
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams = Streams(
            run,
            states=states,
            count=streams,
            take=self._take,
            report=self._report,
            changed=self._arrived,
            clock=lambda: self._clock(),  # noqa: PLW0108 - a test may set the clock
        )
        self._alone_tokens = 32.0  # of an interactive request, on average
        self.cost = BatchCost()
        self._admission = Admission(
            self._lanes,
            self.cost,
            max_queue_tokens=max_queue_tokens,
            max_wait_s=max_wait_s,
            returned=self._returned,
        )
        self.last_failure: str | None = None

    @property
    def pace(self) -> Pace:
        """How fast the queue empties."""
        return self._admission.pace

    @property
    def queued_items(self) -> int:
        return self._lanes.items

    @property
    def queued_tokens(self) -> int:
        return self._lanes.tokens

    @property
    def cached_bytes(self) -> int:
        return self._cache.bytes if self._cache is not None else 0

    @property
    def alive(self) -> bool:
        """Does every batch find a thread?"""
        return self._streams.alive

    @property
    def bulk_batch_tokens(self) -> int:
        """Tokens of a batch of bulk work while no interactive client is about."""
        return self._lanes.bulk_batch_tokens

    def allow_bulk_batches(self, tokens: int) -> None:
        """Let batches of bulk work have so many tokens while no interactive client is about."""
        with self._arrived:
            self._lanes.bulk_batch_tokens = tokens

    def expect(self, tokens_per_s: float) -> None:
        """Say how fast the queue will empty, for those who are refused before its pace is known."""
        with self._arrived:
            self._admission.expected = tokens_per_s

    def running_s(self) -> float:
        """How long the batch that began first of those on the engine has been running; 0 if none is."""
        return self._streams.running_s()

    def start(self) -> None:
        """Begin taking batches, for callers on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._streams.start()

    def restart(self, longer_than_s: float = 0.0) -> None:
        """Give up what has been running for longer, which hangs, and go on with other threads.

        Its callers get an EngineError; what waits is run. A hanging thread ends when the engine
        returns, and what it brings is dropped.
        """
        given_up = self._streams.give_up(longer_than_s)
        self._fail(given_up, EngineError("the engine hung on this batch and was started anew"))

    async def stop(self) -> None:
        """Stop taking batches; whoever still waits gets an EngineError."""
        with self._arrived:
            self._stopping = True
            entries = self._lanes.clear()
            self._streams.stop()
        self._fail(entries, EngineError("the service is shutting down"))
        await asyncio.to_thread(self._streams.join, 1)

    async def submit(
        self,
        sequences: Sequence[NDArray[np.int64]],
        *,
        lane: Lane = "interactive",
        client: Hashable = None,
        deadline: float | None = None,
        claim: int | None = None,
        fresh: bool = False,
        states: bool = False,
    ) -> Job:
        """Run `sequences` and return the finished job.

        client: between whom the engine is shared evenly. deadline: a time of the clock after
        which what still waits is not run. claim: by what the same request of this client is known
        if it is refused and comes back. Raises Overloaded when the queue is full, and
        DeadlineExceeded. Failures of single sequences are in `Job.errors`, not raised. If the
        caller is cancelled, its sequences leave the queue. fresh: not from the cache. states: of
        the tokens, in `Job.states`, and no vectors; they are not kept in the cache.
        """
        job = self.enqueue(
            sequences, lane=lane, client=client, deadline=deadline, claim=claim, fresh=fresh,
            states=states,
        )  # fmt: skip
        try:
            if job.remaining:
                await job.future
        finally:
            if job.remaining:
                self.withdraw(job)
        return job

    def enqueue(
        self,
        sequences: Sequence[NDArray[np.int64]],
        *,
        lane: Lane = "interactive",
        client: Hashable = None,
        deadline: float | None = None,
        claim: int | None = None,
        fresh: bool = False,
        states: bool = False,
    ) -> Job:
        """As `submit`, without waiting: `Job.future` says when the job is finished."""
        if self._loop is None:
            raise RuntimeError("the batcher has not been started")
        now = self._clock()
        job = Job(
            len(sequences), self._loop.create_future(), now, deadline, remaining=len(sequences)
        )
        if states:
            job.states = [None] * len(sequences)
        whole = fresh or states
        wanted = range(len(sequences)) if whole else self._from_cache(job, sequences)
        joined = 0
        with self._arrived:
            tokens = sum([len(sequences[i]) for i in wanted])
            first = self._admission.admit(Asked(tokens, lane, client, deadline, claim), now)
            if self._stopping:
                raise EngineError("the service is shutting down")
            for i in reversed(wanted) if first else wanted:
                entry = self._lanes.add(
                    sequences[i], (job, i), lane=lane, client=client, now=now, first=first,
                    states=states,
                )  # fmt: skip
                job.entries.append(entry)
                joined += len(entry.receivers) > 1
            if wanted and self._wakes(tokens, now):
                self._arrived.notify()
        if lane == "interactive" and tokens:
            self._alone_tokens += 0.05 * (tokens - self._alone_tokens)
        if self._observer and (joined or self._cache):
            self._observer.spared(cached=len(sequences) - len(wanted), joined=joined)
        if not sequences:
            job.future.set_result(None)
        return job

    def withdraw(self, job: Job) -> None:
        """Nobody waits for `job` any more."""
        with self._arrived:
            for entry in job.entries:
                self._lanes.leave(entry, job)

    def _from_cache(self, job: Job, sequences: Sequence[NDArray[np.int64]]) -> Sequence[int]:
        """Answer what the cache holds; the indices of the rest."""
        if not self._cache:
            return range(len(sequences))
        wanted = []
        for i, ids in enumerate(sequences):
            found = self._cache.get(self._cache.key(ids))
            if found is None:
                wanted.append(i)
            else:
                self._deliver(job, i, found)
        return wanted

    def refusal(
        self,
        tokens: int,
        *,
        lane: Lane,
        client: Hashable,
        deadline: float | None = None,
        claim: int | None = None,
        coming: int = 0,
    ) -> Overloaded | None:
        """Why so many tokens of `client` are not taken now, None if they would be. coming: jobs that will
        be in the queue before it."""
        before = coming * self._alone_tokens
        asked = Asked(tokens, lane, client, deadline, claim, before)
        with self._arrived:
            return self._admission.refusal(asked, self._clock())

    def _returned(self, accepted: bool) -> None:
        if self._observer:
            self._observer.returned(accepted=accepted)

    # The engine's threads

    def _take(self, beside: int) -> list[Entry] | None:
        """What to run next beside so many tokens, empty when all of it was too late; None for nothing."""
        now = self._clock()
        if not self._worth_taking(now, beside=beside > 0):
            return None
        most = math.inf
        if self._streams.count > 1:  # an even share for each, so that none has nothing to do
            most = max(WORTH_TOKENS, (self._interactive_tokens + beside) / self._streams.count)
        batch = self._lanes.take(now, quantum=self._quantum(), most=most)
        late = [
            entry
            for entry in batch
            if all(job.deadline is not None and job.deadline < now for job, _ in entry.receivers)
        ]
        if late:
            self._on_loop(self._expire, late)
        others_wait = self._streams.running + 1 < self._streams.count
        if others_wait and self._worth_taking(now, beside=True):
            self._arrived.notify()
        return [entry for entry in batch if entry not in late] if late else batch

    def _worth_taking(self, now: float, *, beside: bool) -> bool:
        """Whether to run what waits, while others run or not."""
        if not beside:
            return self._lanes.items > 0
        quantum = self._quantum()
        enough = self._tokens_for_beside >= WORTH_TOKENS
        return (enough and not self._lanes.gives_way(now, quantum)) or self._overtakes(quantum)

    def _overtakes(self, quantum: float) -> bool:
        """Whether interactive work waits behind a batch of bulk work that is too large to wait for."""
        large = self._streams.bulk_tokens > OVERTAKES * quantum
        return large and self._lanes.next_lane(quantum) == "interactive"

    @property
    def _tokens_for_beside(self) -> int:
        """What waits and may be begun beside a batch that runs."""
        return self._lanes.tokens if self._bulk_beside else self._interactive_tokens

    @property
    def _interactive_tokens(self) -> int:
        return self._lanes.tokens_ahead("interactive")

    def _wakes(self, tokens: int, now: float) -> bool:
        """Whether the last `tokens` that came are what a thread has waited for."""
        running = self._streams.running
        if running in (0, self._streams.count):
            return not running
        # Else whoever took a batch has looked.
        few = self._tokens_for_beside - tokens < WORTH_TOKENS
        return few and self._worth_taking(now, beside=True)

    def _quantum(self) -> float:
        """Tokens of a batch that takes PATIENCE times as long as an interactive request alone."""
        found = self.cost.tokens_within(PATIENCE * self.cost.seconds(self._alone_tokens))
        return max(found, self._least_quantum)

    def _report(self, outcome: Outcome) -> None:
        if outcome.vectors is not None:
            with self._arrived:
                self.cost.observe(self._computed(outcome.batch), outcome.engine_s)
                if self._lanes.items:
                    self.pace.observe(tokens_in(outcome.batch), outcome.engine_s)
        self._on_loop(self._settle_batch, outcome)

    def _computed(self, batch: list[Entry]) -> int:
        """Tokens that the engine computes for a batch, padding included."""
        if not self._pads:
            return tokens_in(batch)
        return len(batch) * max([entry.length for entry in batch])

    def _on_loop(self, what: Callable[..., None], *arguments: object) -> None:
        if self._loop is None:
            return
        with suppress(RuntimeError):  # the loop has closed: nobody waits
            self._loop.call_soon_threadsafe(what, *arguments)

    # Back on the event loop

    def _settle_batch(self, outcome: Outcome) -> None:
        if outcome.vectors is not None:
            self._settle_vectors(outcome, outcome.vectors)
            return
        if self._observer:
            self._observer.batch_failed(items=len(outcome.batch))
        if len(outcome.batch) > 1:
            return  # each runs again alone
        error = outcome.error
        self.last_failure = f"{type(error).__name__}: {error}"
        log.warning("inference failed: %s", self.last_failure[:500])
        if not isinstance(error, EngineError):
            error = EngineError(f"inference failed: {type(error).__name__}")
        self._fail(outcome.batch, error)

    def _settle_vectors(self, outcome: Outcome, vectors: Rows) -> None:
        batch = outcome.batch
        self.last_failure = None
        if self._observer:
            self._observer.batch_done(
                items=len(batch),
                tokens=tokens_in(batch),
                padded_tokens=self._computed(batch),
                seconds=outcome.seconds,
            )
        states = isinstance(vectors, list)
        finite: list[bool]
        if states:
            finite = [bool(np.isfinite(one).all()) for one in vectors]
        else:
            finite = np.logical_and.reduce(np.isfinite(vectors), axis=1).tolist()
        if not all(finite):
            bad = [entry for entry, good in zip(batch, finite, strict=True) if not good]
            self._fail(bad, NonFiniteVector("inference gave a vector that is not finite"))
        with self._arrived:
            self._lanes.finish(batch)
        if self._cache and not states:
            for entry, vector, good in zip(batch, vectors, finite, strict=True):
                if good:
                    self._cache.put(self._cache.key(entry.ids), vector)
        timed: Job | None = None
        for job, index, position in entries_by_receiver(batch):
            if job is not timed:  # a job's sequences mostly lie side by side
                timed = job
                self._time(job, outcome)
            self._deliver(job, index, vectors[position])
        _release(batch)

    def _time(self, job: Job, outcome: Outcome) -> None:
        if job.last_batch is outcome:
            return
        job.last_batch = outcome
        job.inference_s += outcome.seconds
        if job.queue_s is None:
            job.queue_s = max(0.0, outcome.started - job.submitted)

    def _deliver(self, job: Job, index: int, vector: NDArray[np.float32]) -> None:
        if job.states is not None:
            job.states[index] = vector
            self._count_down(job)
            return
        if job.vectors is None:
            job.vectors = np.zeros((job.count, len(vector)), np.float32)
        job.vectors[index] = vector
        self._count_down(job)

    def _fail(self, entries: list[Entry], error: EngineError) -> None:
        with self._arrived:
            self._lanes.finish(entries)
        for job, index, _ in entries_by_receiver(entries):
            # Each sequence has an error object of its own, so that each can name its item.
            job.errors[index] = type(error)(f"item {index}: {error}", item=index)
            self._count_down(job)
        _release(entries)

    def _expire(self, entries: list[Entry]) -> None:
        with self._arrived:
            self._lanes.finish(entries)
        for job, _, _ in entries_by_receiver(entries):
            if not job.future.done():
                job.future.set_exception(
                    DeadlineExceeded("the deadline passed while the request waited")
                )
        _release(entries)

    def _count_down(self, job: Job) -> None:
        job.remaining -= 1
        if job.remaining == 0 and not job.future.done():
            job.future.set_result(None)


def _release(entries: Sequence[Entry]) -> None:
    """Of finished ones: a job and its entries know each other, and would stay until garbage is looked for."""
    for entry in entries:
        entry.receivers = []
