"""The worker's side: a batcher that is in another process.

Whatever happens to the engine's process, no caller hangs: what it had is refused with EngineAway, and so is
what comes until there is a new one.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import socket
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from mexma.errors import DeadlineExceeded, EngineAway, EngineError, NonFiniteVector, Overloaded
from service.engine.batcher import Job
from service.engine.lanes import Lane
from service.metrics import Metrics
from service.workers.arena import Arena, Layout, Regions
from service.workers.wire import DONE, JOB, REFUSED, Frames, Kind, Submission

log = logging.getLogger(__name__)

ARENA_BYTES = 64 * 2**20
RETRY_S = 0.1
FLUSH_S = 0.1
# Kept while there is nobody to tell.
MAX_OBSERVED = 10_000
ERRORS = {e.__name__: e for e in (EngineError, NonFiniteVector)}


@dataclass(slots=True)
class _Sent:
    job: Job
    layout: Layout
    offset: int


class _Connection(Frames):
    def __init__(self, owner: RemoteBatcher):
        super().__init__()
        self._owner = owner

    def received(self, kind: Kind, payload: bytes) -> None:
        self._owner.received(kind, payload)

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.lost(self)


class RemoteBatcher:
    """`Batcher.submit`, answered by the process that listens at a Unix socket."""

    def __init__(self, path: Path, *, fingerprint: str, dim: int, mismatch: Callable[[str], None]):
        """mismatch: called with a sentence when that process serves another encoder."""
        self._path = path
        self._fingerprint, self._dim = fingerprint, dim
        self._mismatch = mismatch
        self._connection: _Connection | None = None
        self._ready = False
        self._greeted = asyncio.Event()
        self._arena = Arena.create(ARENA_BYTES)
        self._regions = Regions(ARENA_BYTES)
        self._sent: dict[int, _Sent] = {}
        self._numbers = itertools.count()
        self._reconnecting: asyncio.Task[None] | None = None
        self._observed: list[tuple[str, dict[str, Any]]] = []

    def start(self) -> None:
        """Connect, on the running event loop, and again whenever the connection is lost."""
        self._reconnecting = asyncio.get_running_loop().create_task(self._connect())

    async def greeted(self, timeout_s: float) -> None:
        """Wait until the engine's process has answered for the first time, at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._greeted.wait()

    async def stop(self) -> None:
        """Send what was observed, and close."""
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            with suppress(asyncio.CancelledError):
                await self._reconnecting
        self._flush()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @property
    def connected(self) -> bool:
        return self._ready

    async def submit(
        self,
        sequences: Sequence[NDArray[np.int64]],
        *,
        lane: Lane = "interactive",
        client: Hashable = b"",
        deadline: float | None = None,
        claim: int | None = None,
    ) -> Job:
        """As `Batcher.submit`; raises EngineAway besides."""
        loop = asyncio.get_running_loop()
        job = Job(len(sequences), loop.create_future(), time.monotonic(), deadline)
        if not sequences:
            return job
        connection = self._connection
        if connection is None or not self._ready:
            raise EngineAway("the engine's process is being restarted; retry", retry_after_s=1)
        layout = Layout(0, len(sequences), sum(map(len, sequences)), self._dim)
        offset = self._regions.take(layout.size)
        if offset is None:
            raise Overloaded(
                f"this worker's requests hold {ARENA_BYTES - self._regions.free} of "
                f"{ARENA_BYTES} bytes shared with the engine, and {layout.size} more are wanted",
                retry_after_s=1,
            )
        layout = Layout(offset, layout.count, layout.tokens, self._dim)
        self._arena.write_ids(layout, sequences)
        number = next(self._numbers)
        self._sent[number] = _Sent(job, layout, offset)
        submission = Submission(
            number, offset, layout.count, layout.tokens, lane,
            math.nan if deadline is None else deadline, claim or 0,
            client if isinstance(client, bytes) else repr(client).encode(),
        )  # fmt: skip
        connection.send(Kind.SUBMIT, submission.pack())
        try:
            await job.future
        except asyncio.CancelledError:
            # the region stays taken until the other side says that it is done with it
            connection.send(Kind.CANCEL, JOB.pack(number))
            raise
        return job

    def observe(self, name: str, arguments: dict[str, Any]) -> None:
        """Tell the other process's metrics, soon."""
        if not self._observed:
            asyncio.get_running_loop().call_later(FLUSH_S, self._flush)
        if len(self._observed) < MAX_OBSERVED:
            self._observed.append((name, arguments))

    def _flush(self) -> None:
        if self._connection is not None and self._ready and self._observed:
            self._connection.send_json(Kind.OBSERVED, self._observed)
            self._observed = []

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.setblocking(False)
            try:
                await loop.sock_connect(connection, str(self._path))
                socket.send_fds(connection, [b"\0"], [self._arena.descriptor])
                _, protocol = await loop.create_connection(
                    lambda: _Connection(self), sock=connection
                )
            except OSError:
                connection.close()
                await asyncio.sleep(RETRY_S)
                continue
            self._connection = protocol
            return

    def received(self, kind: Kind, payload: bytes) -> None:
        if kind is Kind.HELLO:
            hello = orjson.loads(payload)
            if hello != {"fingerprint": self._fingerprint, "dim": self._dim}:
                self._mismatch(
                    f"the engine serves {hello['fingerprint']}, this worker tokenises for "
                    f"{self._fingerprint}: the model's directory has changed"
                )
                return
            self._ready = True
            self._greeted.set()
            self._flush()
        elif kind is Kind.DONE:
            number, queue_s, inference_s = DONE.unpack_from(payload)
            self._done(number, queue_s, inference_s, payload[DONE.size :])
        elif kind is Kind.REFUSED:
            number, retry_s = REFUSED.unpack_from(payload)
            kind_of, _, message = payload[REFUSED.size :].decode().partition(":")
            error: Exception
            if not math.isnan(retry_s):
                error = Overloaded(message, retry_after_s=retry_s)
            else:
                error = (DeadlineExceeded if kind_of == "deadline" else EngineError)(message)
            sent = self._forget(number)
            if sent is not None and not sent.job.future.done():
                sent.job.future.set_exception(error)

    def _done(self, number: int, queue_s: float, inference_s: float, errors: bytes) -> None:
        sent = self._sent.get(number)
        if sent is None:
            return
        job = sent.job
        if not job.future.done():
            job.queue_s, job.inference_s = queue_s, inference_s
            for index, kind, message in orjson.loads(errors) if errors else ():
                job.errors[index] = ERRORS.get(kind, EngineError)(message, item=index)
            job.vectors = self._arena.read_vectors(sent.layout)
            job.future.set_result(None)
        self._forget(number)

    def _forget(self, number: int) -> _Sent | None:
        sent = self._sent.pop(number, None)
        if sent is not None:
            self._regions.give_back(sent.offset, sent.layout.size)
        return sent

    def lost(self, connection: _Connection) -> None:
        """The other process is gone: nobody waits for it any longer, and nothing in memory is its."""
        if connection is not self._connection:
            return
        self._connection, self._ready = None, False
        log.warning("the engine's process is gone; %d jobs are refused", len(self._sent))
        for number in list(self._sent):
            sent = self._forget(number)
            if sent is not None and not sent.job.future.done():
                sent.job.future.set_exception(
                    EngineAway(
                        "the engine's process died and is being restarted; retry", retry_after_s=1
                    )
                )
        self.start()


class RelayedMetrics(Metrics):
    """A worker's metrics: what it sees is told to the process that answers `/metrics`."""

    remote: RemoteBatcher | None = None

    def answered(self, route: str, status: int, seconds: float) -> None:
        self._tell("answered", {"route": route, "status": status, "seconds": seconds})

    def embedded(self, **arguments: Any) -> None:
        self._tell("embedded", arguments)

    def language(self, **arguments: Any) -> None:
        self._tell("language", arguments)

    def refusal(self, **arguments: Any) -> None:
        self._tell("refusal", arguments)

    def _tell(self, name: str, arguments: dict[str, Any]) -> None:
        if self.remote is not None:
            self.remote.observe(name, arguments)
