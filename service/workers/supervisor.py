"""`MEXMA_HTTP_WORKERS`: one process with engine and store, and some that speak HTTP, kept alive.

    supervisor ── engine's process: the whole service, on a Unix socket; engine, store, metrics
               └─ workers: accept from the one listening socket, tokenise, submit over shared memory

The supervisor only starts, watches and ends them; it never has an event loop or a thread, so that it can
fork. A worker that dies is replaced at once, and later and later while its successors die at their
start; then `/health/ready` says `workers_failing`. The engine's process is replaced when it dies,
and killed when it stops answering; meanwhile workers answer 503 and `/health/ready` says `engine_away`.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mexma.artifact import open_artifact
from mexma.encoder import tokenizer_of
from service.settings import Settings
from service.workers.backoff import Backoff, put_notice
from service.workers.front import HTTP_SOCKET, Front, TokenizingEncoder
from service.workers.liveness import lives
from service.workers.stand_in import stand_in

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
TICK_S = 0.2
PROBE_EVERY_S = 5.0
PROBE_TIMEOUT_S = 1.0
# An engine's process that dies at once is not started more often than this.
AGAIN_S = 2.0
# Another encoder is at hand than the one that workers tokenise for: only a whole restart helps.
WRONG_ENCODER = 3


class Supervisor:
    """The processes of one service."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        serve_engine: Callable[[Path], None],
        run: Callable[[Front], None],
        *,
        grace_s: int,
    ):
        """listener: where workers accept. serve_engine: runs the whole service at the sockets in a
        folder, until it is told to stop; run: a worker's application at the listener. grace_s: what
        requests under way have to finish."""
        self._settings = settings
        self._listener = listener
        self._serve_engine = serve_engine
        self._run_front = run
        self._grace_s = grace_s
        self._folder = Path(tempfile.mkdtemp(prefix="mexma-"))
        self._engine: int | None = None
        self._engine_started = 0.0
        self._engine_is_up = self._engine_was_ever_up = False
        self._silent_since: float | None = None
        self._probed = 0.0
        self._workers: dict[int, float] = {}  # process -> since when
        self._backoff = Backoff()
        self._notice: str | None = None
        self._stand_in: int | None = None
        self._stopping = False
        self._parent = os.getpid()

    def run(self) -> int:
        """Until SIGTERM or SIGINT; gives the exit status. Raises ArtifactError."""
        artifact = open_artifact(self._settings.model)
        self._encoder = TokenizingEncoder(artifact.manifest, tokenizer_of(artifact))
        further = [open_artifact(path).manifest for path in self._settings.further_models]
        names = {name for m in further for name in (m.name, m.fingerprint)}
        self._elsewhere = frozenset(names - {artifact.manifest.name})
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        try:
            self._start_engine()
            while not self._stopping:
                self._start_workers()
                if (status := self._reap()) is not None:
                    return status
                self._watch_engine()
                time.sleep(TICK_S)
            return 0
        finally:
            self._end()

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _fork(self, what: Callable[[], None]) -> int:
        """Run `what` in a process of its own that does not outlive this one."""
        sys.stdout.flush()
        sys.stderr.flush()
        if child := os.fork():
            return child
        status = 1
        try:
            # Of its own group: Ctrl-C, and whoever ends a group, ends the supervisor, and that all in order.
            os.setpgid(0, 0)
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: sys.exit(0))
            if os.getppid() == self._parent:  # else it died before we asked to be told
                what()
            status = 0
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            else:
                status = end.code or 0
        except BaseException:
            log.exception("a process of the service failed")
        finally:
            sys.stderr.flush()
            os._exit(status)

    def _start_engine(self) -> None:
        self._engine_started = time.monotonic()
        self._engine_is_up, self._silent_since = False, None
        self._engine = self._fork(lambda: self._serve_engine(self._folder))

    def _start_workers(self) -> None:
        """Those that are missing and may start; somebody in their place where none may."""
        now = time.monotonic()
        self._backoff.look(now)
        missing = self._settings.http_workers - len(self._workers)
        detail = None
        if self._backoff.failing:
            detail = f"{self._backoff.deaths} HTTP workers died at their start; the log says how"
        if detail != self._notice:
            put_notice(self._folder, detail)
            self._notice = detail
        starting = self._backoff.room(missing, now)
        if self._stand_in is not None and (starting or self._workers):
            self._finish({self._stand_in})
            self._stand_in = None
        for _ in range(starting):
            if self._stopping:
                return
            self._workers[self._fork(self._work)] = now
            self._backoff.started(now)
        if detail and not self._workers and self._stand_in is None:
            plain = self._settings.tls_cert is None
            self._stand_in = self._fork(lambda: stand_in(self._listener, detail, plain=plain))

    def _work(self) -> None:
        def mismatch(sentence: str) -> None:
            log.error("%s", sentence)
            os._exit(WRONG_ENCODER)

        self._run_front(
            Front(self._settings, self._encoder, self._folder, mismatch, self._elsewhere)
        )

    def _reap(self) -> int | None:
        """Take note of who died and start the next; an exit status when nothing can be done."""
        while True:
            try:
                child, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return None
            if child == 0:
                return None
            how = os.waitstatus_to_exitcode(status)
            if child == self._engine:
                self._engine = None
                if self._stopping:
                    return None
                if not self._engine_was_ever_up:  # it has said why, and that is the last word:
                    for worker in self._workers:  # they have nothing to finish without it
                        _kill(worker, signal.SIGKILL)
                    return how if how > 0 else 1
                log.error("the engine's process ended (%d) and is started again", how)
            elif child in self._workers:
                now = time.monotonic()
                lived_s = now - self._workers.pop(child)
                if how == WRONG_ENCODER:
                    return 1
                if not self._stopping:
                    pause_s = self._backoff.ended(lived_s, now)
                    log.error("worker %d ended (%d) and is replaced in %.1f s", child, how, pause_s)
            elif child == self._stand_in:
                self._stand_in = None

    def _watch_engine(self) -> None:
        """Start it when it is gone, kill it when it has stopped answering."""
        now = time.monotonic()
        if self._engine is None:
            if now - self._engine_started > AGAIN_S:
                self._start_engine()
            return
        if now - self._probed < (PROBE_EVERY_S if self._engine_is_up else TICK_S):
            return
        self._probed = now
        if lives(self._folder / HTTP_SOCKET, timeout_s=PROBE_TIMEOUT_S):
            self._engine_is_up = self._engine_was_ever_up = True
            self._silent_since = None
            return
        if not self._engine_is_up:
            return
        self._silent_since = self._silent_since or now
        if now - self._silent_since > self._settings.engine_timeout_s:
            log.error("the engine's process has not answered for %.0f s", now - self._silent_since)
            os.kill(self._engine, signal.SIGKILL)
            self._silent_since = None

    def _end(self) -> None:
        """First the workers, whose requests need the engine, then the engine."""
        self._stopping = True
        self._listener.close()
        self._finish({*self._workers, *([self._stand_in] if self._stand_in else ())})
        self._finish(set() if self._engine is None else {self._engine})
        shutil.rmtree(self._folder, ignore_errors=True)

    def _finish(self, children: set[int]) -> None:
        for child in children:
            _kill(child, signal.SIGTERM)
        deadline = time.monotonic() + self._grace_s + 5
        left = set(children)
        while left and time.monotonic() < deadline:
            left = {child for child in left if not _gone(child)}
            select.select([], [], [], 0.02)
        for child in left:
            _kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _kill(child: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, number)


def _gone(child: int) -> bool:
    try:
        return os.waitpid(child, os.WNOHANG)[0] == child
    except ChildProcessError:
        return True
