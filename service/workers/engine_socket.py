"""The engine's side: workers connect, hand over their memory, and submit jobs to the one batcher.

A worker that dies takes its jobs out of the queue with it; nothing it does can stop another one's.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import orjson

from mexma.errors import DeadlineExceeded, MexmaError, Overloaded
from service.batcher import Job
from service.embedder import Embedder
from service.metrics import Metrics
from service.workers.arena import Arena, Layout
from service.workers.wire import DONE, JOB, REFUSED, Frames, Kind, Submission, errors_to_json

log = logging.getLogger(__name__)


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
    accepting = asyncio.create_task(_accept(listener, embedder, metrics), name="workers")
    try:
        yield
    finally:
        accepting.cancel()
        with suppress(asyncio.CancelledError):
            await accepting
        listener.close()


async def _accept(listener: socket.socket, embedder: Embedder, metrics: Metrics) -> None:
    loop = asyncio.get_running_loop()
    welcomes: set[asyncio.Task[None]] = set()
    while True:
        connection, _ = await loop.sock_accept(listener)
        welcome = loop.create_task(_welcome(connection, embedder, metrics))
        welcomes.add(welcome)
        welcome.add_done_callback(welcomes.discard)


async def _welcome(connection: socket.socket, embedder: Embedder, metrics: Metrics) -> None:
    """The first byte comes with the descriptor of the worker's memory."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        async with asyncio.timeout(5):
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
    await loop.connect_accepted_socket(
        lambda: WorkerConnection(embedder, metrics, arena), connection
    )
