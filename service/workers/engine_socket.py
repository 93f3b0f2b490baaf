"""The engine's side: workers connect, hand over their memory, and submit jobs to the one batcher.

A worker that dies takes its jobs out of the queue with it; nothing it does can stop another one's.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import orjson

from mexma.errors import DeadlineExceeded, MexmaError, Overloaded
from service.engine.batcher import Job
from service.engine.embedder import Embedder
from service.metrics import Metrics
from service.workers.arena import Arena, Layout
from service.workers.wire import DONE, JOB, REFUSED, Frames, Kind, Submission, errors_to_json

log = logging.getLogger(__name__)

# A connection that does not say what it is in this time is no worker.
WELCOME_S = 5.0


class WorkerConnection(Frames):
    """One worker."""

    def __init__(self, embedder: Embedder, metrics: Metrics, arena: Arena):
        super().__init__()
        self._batcher = embedder.batcher
        self._dim = embedder.encoder.manifest.dim
        self._fingerprint = embedder.encoder.fingerprint
        self._metrics = metrics
        self._arena = arena
        self._jobs: dict[int, Job] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.send_json(Kind.HELLO, {"fingerprint": self._fingerprint, "dim": self._dim})

    def received(self, kind: Kind, payload: bytes) -> None:
        if kind is Kind.SUBMIT:
            self._submit(Submission.unpack(payload))
        elif kind is Kind.CANCEL:
            (number,) = JOB.unpack(payload)
            if (job := self._jobs.get(number)) is not None and not job.future.done():
                job.future.cancel()
        elif kind is Kind.OBSERVED:
            for name, arguments in orjson.loads(payload):
                self._metrics.relayed(name, arguments)

    def connection_lost(self, exc: Exception | None) -> None:
        jobs, self._jobs = self._jobs, {}
        for job in jobs.values():
            self._batcher.withdraw(job)
            job.future.cancel()
        self._arena.close()

    def _submit(self, submission: Submission) -> None:
        number = submission.job
        layout = Layout(submission.offset, submission.count, submission.tokens, self._dim)
        try:
            sequences = self._arena.read_ids(layout)
            job = self._batcher.enqueue(
                sequences,
                lane=submission.lane,
                client=submission.client,
                deadline=None if math.isnan(submission.deadline) else submission.deadline,
                claim=submission.claim or None,
            )
        except MexmaError as error:
            self._refuse(number, error)
            return
        self._jobs[number] = job
        job.future.add_done_callback(lambda future: self._done(number, layout, job, future))

    def _done(self, number: int, layout: Layout, job: Job, future: asyncio.Future[None]) -> None:
        if self._jobs.pop(number, None) is None:
            return  # the worker is gone
        if job.remaining:
            self._batcher.withdraw(job)
        error = None if future.cancelled() else future.exception()
        if isinstance(error, MexmaError):
            self._refuse(number, error)
            return
        if job.vectors is not None and not job.remaining:
            self._arena.write_vectors(layout, job.vectors)
        times = DONE.pack(number, job.queue_s or 0.0, job.inference_s)
        self.send(Kind.DONE, times + (errors_to_json(dict(job.errors)) if job.errors else b""))

    def _refuse(self, number: int, error: MexmaError) -> None:
        retry_s = error.retry_after_s if isinstance(error, Overloaded) else math.nan
        kind = "deadline" if isinstance(error, DeadlineExceeded) else "engine"
        payload = REFUSED.pack(number, retry_s) + f"{kind}:{error}".encode()
        self.send(Kind.REFUSED, payload)


def listen(path: Path) -> socket.socket:
    """A listening Unix socket at `path`, in place of one that a killed process left there."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(2048)
    return listener


@asynccontextmanager
async def offer_engine(embedder: Embedder, metrics: Metrics, path: Path) -> AsyncIterator[None]:
    """Take workers at the Unix socket `path` as long as the context lasts."""
    listener = listen(path)
    async with Reception(embedder, metrics, listener):
        yield


class Reception:
    """Accepts workers, and sees them out at the end."""

    def __init__(self, embedder: Embedder, metrics: Metrics, listener: socket.socket):
        self._embedder, self._metrics, self._listener = embedder, metrics, listener
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: set[WorkerConnection] = set()

    async def __aenter__(self) -> None:
        self._spawn(self._accept())

    async def __aexit__(self, *_: object) -> None:
        for task in list(self._tasks):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self._listener.close()
        for connection in self._connections:
            connection.close()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name="workers")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._listener)
            self._spawn(self._welcome(connection))

    async def _welcome(self, connection: socket.socket) -> None:
        """The first byte comes with the descriptor of the worker's memory."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(connection, readable.set)
        try:
            async with asyncio.timeout(WELCOME_S):
                await readable.wait()
        except TimeoutError:
            connection.close()
            return
        finally:
            loop.remove_reader(connection)
        try:
            _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
            arena = Arena(descriptors[0])
        except (OSError, IndexError, ValueError) as error:
            log.warning("a worker connected without its memory: %s", error)
            connection.close()
            return
        _, worker = await loop.connect_accepted_socket(
            lambda: WorkerConnection(self._embedder, self._metrics, arena), connection
        )
        self._connections = {c for c in self._connections if c.open} | {worker}
