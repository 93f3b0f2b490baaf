"""The threads of one engine: each takes a batch, runs it, says what became of it, and takes the next.

With two of them a batch is computed while the other's vectors are handed out, its callers' next texts come
in, or its last piece is still running: with one, cores stood still meanwhile (`LOG.md`, 2026-11-26). A
batch that hangs takes its thread with it, and another takes that one's place.

Refuses to know: which sequences a batch has (lanes), who waits for them, models.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mexma.errors import EngineError
from service.engine.lanes import Entry, tokens_in
from service.priority import lower

Run = Callable[[Sequence[NDArray[np.int64]]], NDArray[np.float32]]
RunStates = Callable[[Sequence[NDArray[np.int64]]], list[NDArray[np.float32]]]
Rows = NDArray[np.float32] | list[NDArray[np.float32]]


@dataclass(slots=True)
class Outcome:
    """What became of a batch: vectors `[n, dim]`, or of one for the states of tokens a `[length, hidden]`
    for each sequence, or why there are none. engine_s: its part of the engine's time, of which each of
    those that run at once has the same."""

    batch: list[Entry]
    started: float
    seconds: float
    engine_s: float
    vectors: Rows | None = None
    error: Exception | None = None


@dataclass(eq=False, slots=True)
class _Stream:
    """One thread. owed: entries that somebody waits for until it has reported on them."""

    thread: threading.Thread | None = None
    since: float | None = None
    owed: list[Entry] = field(default_factory=list)


class Streams:
    """`count` of them.

    run: sequences (each int64 `[length]`) to vectors float32 `[n, dim]`, blocking; on several threads at
    once where count is more than 1. states: the same to the states of their tokens. take: the next
    batch, under `changed`; told how many tokens others run. None where this one has nothing to do until
    `changed` says so. report: told of each batch that ended, on its thread. changed: guards all that
    `take` looks at.
    """

    def __init__(
        self,
        run: Run,
        *,
        count: int,
        take: Callable[[int], list[Entry] | None],
        report: Callable[[Outcome], None],
        changed: threading.Condition,
        clock: Callable[[], float],
        states: RunStates | None = None,
    ):
        self.run = run
        self.states = states
        self.count = count
        self._take = take
        self._report = report
        self._changed = changed
        self._clock = clock
        self._stopping = False
        self._streams: list[_Stream] = []  # what another brings is dropped, and then it ends
        # What a batch would have had of the engine's time that had run all the while, and until when.
        self._part_s, self._part_at = 0.0, clock()

    @property
    def alive(self) -> bool:
        """Does every batch find a thread?"""
        return len(self._streams) == self.count and all(
            s.thread is not None and s.thread.is_alive() for s in self._streams
        )

    @property
    def running(self) -> int:
        """Batches that run."""
        return sum(s.since is not None for s in self._streams)

    @property
    def bulk_tokens(self) -> int:
        """Tokens of the batches of bulk work that run."""
        batches = [s.owed for s in self._streams if s.since is not None]
        return sum(tokens_in(batch) for batch in batches if batch and batch[0].lane == "bulk")

    def running_s(self) -> float:
        """How long the batch that began first of those that run has been running; 0 if none does."""
        began = [since for s in self._streams if (since := s.since) is not None]
        return self._clock() - min(began) if began else 0.0

    def start(self) -> None:
        while len(self._streams) < self.count:
            stream = _Stream()
            stream.thread = threading.Thread(
                target=self._work, args=(stream,), name="engine", daemon=True
            )
            self._streams.append(stream)
            stream.thread.start()

    def give_up(self, longer_than_s: float) -> list[Entry]:
        """Go on without the threads whose batch has been running for longer; what they owe."""
        with self._changed:
            now = self._clock()
            self._part(now)
            hang = [
                s for s in self._streams if s.since is not None and now - s.since >= longer_than_s
            ]
            dead = [s for s in self._streams if s.thread is None or not s.thread.is_alive()]
            self._streams = [s for s in self._streams if s not in hang and s not in dead]
            owed = [entry for s in hang for entry in s.owed]
        self.start()
        return owed

    def stop(self) -> None:
        """Take no more batches. Under `changed`."""
        self._stopping = True
        self._changed.notify_all()

    def join(self, timeout_s: float) -> None:
        """Wait for the threads to end: an engine that hangs must not keep the process."""
        for stream in self._streams:
            if stream.thread is not None:
                stream.thread.join(timeout_s)

    def _work(self, stream: _Stream) -> None:
        lower()
        while (batch := self._next(stream)) is not None:
            outcome = self._attempt(stream, batch, batch)
            if outcome is None:
                return
            self._report(outcome)
            if outcome.error is not None and len(batch) > 1:
                # find the guilty by running each sequence alone
                for i, entry in enumerate(batch):
                    if entry.receivers and not self._stopping:
                        alone = self._attempt(stream, [entry], batch[i:])
                        if alone is None:
                            return
                        self._report(alone)

    def _next(self, stream: _Stream) -> list[Entry] | None:
        """Wait for work; None when there will be none for this thread."""
        with self._changed:
            while not self._stopping and stream in self._streams:
                batch = self._take(self._tokens_beside(stream))
                if batch:
                    now = self._clock()
                    self._part(now)
                    stream.since, stream.owed = now, batch
                    return batch
                if batch is None:
                    self._changed.wait()
            return None

    def _tokens_beside(self, stream: _Stream) -> int:
        others = (s for s in self._streams if s is not stream and s.since is not None)
        return sum(tokens_in(s.owed) for s in others)

    def _attempt(self, stream: _Stream, batch: list[Entry], owed: list[Entry]) -> Outcome | None:
        """Run `batch`; None when this thread has been given up meanwhile."""
        with self._changed:
            if stream not in self._streams:
                return None
            started = self._clock()
            part_s = self._part(started)
            stream.since, stream.owed = started, owed
        vectors, error = self._outcome(batch)
        with self._changed:
            if stream not in self._streams:
                return None
            ended = self._clock()
            part_s = self._part(ended) - part_s
            stream.since, stream.owed = None, []
        return Outcome(batch, started, ended - started, part_s, vectors, error)

    def _part(self, now: float) -> float:
        """Before each change of what runs, under `changed`: `_part_s` until now."""
        running = self.running
        if running:
            self._part_s += (now - self._part_at) / running
        self._part_at = now
        return self._part_s

    def _outcome(self, batch: list[Entry]) -> tuple[Rows | None, Exception | None]:
        try:
            if batch[0].states:
                return self._states_of([entry.ids for entry in batch]), None
            vectors = self.run([entry.ids for entry in batch])
            if vectors.ndim != 2 or len(vectors) != len(batch):
                raise EngineError(f"expected {len(batch)} vectors, got shape {vectors.shape}")
        except Exception as error:  # noqa: BLE001 - whatever the engine raises, the next batch runs
            return None, error
        return vectors, None

    def _states_of(self, sequences: list[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        if self.states is None:
            raise EngineError("this engine gives no token states")
        states = self.states(sequences)
        if [len(s) for s in states] != [len(ids) for ids in sequences]:
            raise EngineError(
                f"expected states of {[len(ids) for ids in sequences]} tokens, got of "
                f"{[len(s) for s in states]}"
            )
        return states
