"""Processes that make buckets ahead, for a device that would wait for the one thread that does.

    trainer                                              worker, one of n
    Workers.bucket(7)  ── pairs of 7, 8, … ──►  make_bucket
                       ◄── buckets, as they are asked for

A bucket is a pure function of what is sent, so it is the same whoever makes it.

Each worker is a fresh interpreter: neither a fork of a process that has threads and CUDA, nor a second
run of whatever script trains, as `multiprocessing` would start. What joins it to the trainer is a
socket that nobody else has, which the kernel closes with whoever dies, however that was: a worker
ends with its trainer, and a trainer learns that a worker did.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any, Self

from mexma.errors import MexmaError
from mexma.text import TextTokenizer
from training.buckets import Bucket, Layout, Pairs, make_bucket
from training.errors import WorkerLost

MOST = 4
"""By itself a run takes no more: one makes 5,300 pairs/s with groups (49,152 of them at a time), and
an H100 trains the `small` recipe's 118M encoder with 15,000."""


def workers_for(device: str, asked: int) -> int:
    """How many a process has. asked: -1 where nobody said: none for a CPU, whose cores train; beside a
    GPU as many as there are cores but one for each process of this machine, and at most MOST."""
    if asked >= 0 or device != "cuda":
        return max(asked, 0)
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(MOST, cores - 1))


class Workers:
    """Makes a run's buckets, in processes that live until `close`."""

    def __init__(
        self, count: int, tokenizer: TextTokenizer, layout: Layout,
        pairs_of: Callable[[int], Pairs], buckets: int,
    ):  # fmt: skip
        """count: of processes. pairs_of: what a bucket is made of, asked in threads, ahead. buckets: how
        many there are."""
        self._pairs_of, self._buckets = pairs_of, buckets
        self._coming: dict[int, Future[Bucket]] = {}
        self._all = [_Worker(tokenizer, layout) for _ in range(count)]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._all:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(count, "workers")
        self._closing = False

    def bucket(self, number: int) -> Bucket:
        """Waits for a bucket; the next ones are begun. Raises WorkerLost, and what `make_bucket` does;
        CancelledError where it is closed meanwhile."""
        # One more than there are processes: when this one is fetched, all have something to do.
        for n in range(number, min(number + len(self._all) + 1, self._buckets)):
            if n not in self._coming:
                self._coming[n] = self._threads.submit(self._make, n)
        try:
            return self._coming.pop(number).result()
        except WorkerLost:
            if self._closing:
                raise CancelledError from None
            raise

    def close(self) -> None:
        """Ends the processes, whatever they do; who waits for a bucket gets an error."""
        self._closing = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._all:
            worker.process.kill()
        self._threads.shutdown()
        for worker in self._all:
            worker.connection.close()
            worker.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make(self, number: int) -> Bucket:
        worker = self._idle.get()
        try:
            return worker.make(self._pairs_of(number))
        finally:
            self._idle.put(worker)


class _Worker:
    """One process, as the trainer has it."""

    def __init__(self, tokenizer: TextTokenizer, layout: Layout):
        self.connection, theirs = Pipe()
        self._first: tuple[TextTokenizer, Layout] | None = (tokenizer, layout)
        # What this process imports from, and not what lies where it happens to stand (-P).
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)  # noqa: PTH109
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603  this interpreter, this module
                [sys.executable, "-P", "-m", "training.workers", str(theirs.fileno())],
                env=os.environ | one | {"PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is the trainer's, which has a step to finish
            )

    def make(self, pairs: Pairs) -> Bucket:
        try:
            if self._first is not None:
                self.connection.send(self._first)
                self._first = None
            self.connection.send(pairs)
            made: Bucket | MexmaError = self.connection.recv()
        except (EOFError, OSError):
            status = self.process.wait()
            how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
            raise WorkerLost(
                f"process {self.process.pid}, which prepared batches, was ended {how} (is memory short?)"
            ) from None
        if isinstance(made, MexmaError):
            raise made
        return made


def serve(connection: Connection) -> None:
    """What a worker does, until its trainer is gone."""
    for sent in (signal.SIGINT, signal.SIGTERM):  # meant for the trainer, whom it ends with
        signal.signal(sent, signal.SIG_IGN)
    asked: SimpleQueue[Any] = SimpleQueue()

    def listen() -> None:  # in a thread, to end in the midst of a bucket too
        while True:
            try:
                asked.put(connection.recv())
            except (EOFError, OSError):
                os._exit(0)

    Thread(target=listen, daemon=True).start()
    tokenizer, layout = asked.get()
    while True:
        pairs = asked.get()
        made: Bucket | MexmaError
        try:
            made = make_bucket(tokenizer, layout, pairs)
        except MexmaError as error:
            made = error
        try:
            connection.send(made)
        except OSError:
            os._exit(0)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
