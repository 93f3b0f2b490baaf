"""Another model in the place of the one that serves, without a request that fails, and the way back.

    verified, loaded beside the old one ── proved ── answers, on trial ── kept
            │                                 │            │
            └───── refused, nothing changed ──┘            └─ fails: the old one answers again

Each model has an engine, a queue and a cache of its own, so to exchange them is to send the next request
to another one: what has begun ends with the model it began with. The old one stays loaded for a while,
and as long as collections are its own.

Refuses to know: HTTP, how an artifact becomes an encoder, how vectors are computed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mexma.artifact import Manifest, open_artifact, read_manifest
from mexma.encoder import Encoder
from mexma.errors import (
    ArtifactError,
    EngineError,
    InstallationError,
    Overloaded,
    ReloadConflict,
    ReloadError,
    ReloadRefused,
    ReloadUnsupported,
    StoreError,
)
from service.canaries import Canaries
from service.engine.embedder import Embedder
from service.engine.encoders import Encoders
from service.engine.memory import available_bytes
from service.engine.proof import check_vectors, translation_rate
from service.engine.watchdog import Watchdog, Watchdogs
from service.metrics import Metrics
from service.migrator import Migrator
from service.settings import Settings
from service.store.protocol import Store

log = logging.getLogger(__name__)

State = Literal["idle", "loading", "proving", "trial"]
OutcomeName = Literal["reloaded", "unchanged", "rolled_back", "failed_trial", "refused"]

TRIAL_EVERY_S = 1.0
OWNED_EVERY_S = 30.0
"""Between two looks whether a model is let go that collections need."""


@dataclass(frozen=True)
class Outcome:
    """fingerprint: of the model that serves. previous: of the one that a rollback returns to.
    collections: that belong to the model before and keep it loaded."""

    outcome: OutcomeName
    fingerprint: str
    previous: str | None
    reason: str | None = None
    collections: list[str] = field(default_factory=list)


class Reloader:
    """Of one service."""

    def __init__(
        self,
        settings: Settings,
        encoders: Encoders,
        watchdogs: Watchdogs,
        canaries: Canaries,
        metrics: Metrics,
        *,
        load: Callable[[Path], Encoder] | None,
        owned: Callable[[str], Awaitable[list[str]]] | None,
    ):
        """load: an artifact's directory to an encoder, slow; None where there are no reloads.
        owned: names of the collections of a fingerprint; None where there are no collections."""
        self._settings = settings
        self._encoders = encoders
        self._watchdogs = watchdogs
        self._canaries = canaries
        self._metrics = metrics
        self._load_encoder = load
        self._owned = owned
        self._busy: State | None = None
        self._previous: Embedder | None = None
        self._trial: asyncio.Task[None] | None = None
        self._keeping: dict[Embedder, asyncio.Task[None]] = {}
        self._leaving: dict[Embedder, asyncio.Task[None]] = {}
        self._rates: dict[str, float] = {}  # by fingerprint: of translations that are found
        self.last: Outcome | None = None

    @property
    def state(self) -> State:
        on_trial = self._trial is not None and not self._trial.done()
        return self._busy or ("trial" if on_trial else "idle")

    @property
    def previous(self) -> str | None:
        """Fingerprint of the model that a rollback returns to."""
        return self._previous.encoder.fingerprint if self._previous is not None else None

    @property
    def _kept_s(self) -> float:
        return max(self._settings.reload_keep_s, self._settings.reload_trial_s)

    @property
    def serving(self) -> str:
        return self._encoders.default.encoder.fingerprint

    async def reload(self, model: str | None) -> Outcome:
        """Verify, load and prove an artifact, and let it answer from then on.

        model: a path below MEXMA_MODELS_DIR; None means MEXMA_MODEL, read again. Raises
        ReloadRefused, ReloadConflict, ReloadUnsupported, or Overloaded where the serving model is
        too busy to be compared with; nothing has changed then.
        """
        self._see_to_supported()
        with self._alone(), self._noted():
            path = self._path(model)
            self._busy = "loading"
            with _refusing("it cannot be loaded"):
                manifest = await asyncio.to_thread(read_manifest, path)
                embedder = self._encoders.get(manifest.fingerprint)
                if embedder is None:
                    embedder = await self._load(path, manifest)
                else:
                    await asyncio.to_thread(open_artifact, path)
            if embedder is self._encoders.default:
                return self._note("unchanged")
            with self._staying(embedder):
                watchdog = await self._prove(embedder)
            before = self._encoders.default
            if (
                embedder is before
            ):  # another one failed its trial meanwhile, and this one was before it
                return self._note("unchanged")
            self._answer_by(embedder)
            self._watchdogs.add(embedder, watchdog)
            self._previous = before
            self._keep(before, self._kept_s)
            if self._settings.reload_trial_s:
                self._trial = asyncio.create_task(self._try_out(watchdog), name="trial")
            return self._note("reloaded", collections=await self._collections(before))

    async def roll_back(self) -> Outcome:
        """Let the model before the last reload answer again, at once. Raises ReloadConflict where
        there is none or a reload is on its way, and ReloadUnsupported."""
        self._see_to_supported()
        with self._alone():
            before = self._return_to_previous()
            self._keep(before, 0)
            return self._note("rolled_back", collections=await self._collections(before))

    async def stop(self) -> None:
        """The service ends."""
        trial = [self._trial] if self._trial is not None else []
        for task in (*trial, *self._keeping.values(), *self._leaving.values()):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        for embedder in [*self._leaving]:
            await embedder.stop()

    def _see_to_supported(self) -> None:
        if self._load_encoder is None:
            raise ReloadUnsupported(
                "this service exchanges no model while it runs (with MEXMA_HTTP_WORKERS each worker "
                "has a tokenizer of its own); restart it with the new one"
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self._busy is not None:
            raise ReloadConflict(
                "another reload is on its way; GET /v1/models/reload says how far it is"
            )
        self._busy = "loading"
        try:
            yield
        finally:
            self._busy = None

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except ReloadRefused as error:
            self._note("refused", reason=str(error))
            raise

    def _note(
        self, outcome: OutcomeName, reason: str | None = None, collections: list[str] | None = None
    ) -> Outcome:
        self._metrics.reloads.labels(outcome).inc()
        self.last = Outcome(outcome, self.serving, self.previous, reason, collections or [])
        log.log(
            logging.WARNING if reason else logging.INFO,
            "model reload: %s, %s serves%s%s",
            outcome,
            self.serving,
            f": {reason}" if reason else "",
            f"; the one before is kept for {', '.join(collections)}" if collections else "",
        )
        return self.last

    def _path(self, model: str | None) -> Path:
        if model is None:
            return self._settings.model
        if self._settings.models_dir is None:
            raise ReloadRefused(
                "model: only MEXMA_MODEL can be read again, without a name; MEXMA_MODELS_DIR says "
                "below which directory others may be named"
            )
        folder = self._settings.models_dir.resolve()
        try:
            path = (folder / model).resolve()
        except (OSError, ValueError):  # a NUL, a loop of links
            path = folder
        if path == folder or not path.is_relative_to(folder):
            raise ReloadRefused(f"model: expected a path below MEXMA_MODELS_DIR, got {model!r}")
        return path

    async def _load(self, path: Path, manifest: Manifest) -> Embedder:
        assert self._load_encoder is not None  # noqa: S101 - asked before
        needed, there = sum(f.bytes for f in manifest.files.values()), available_bytes()
        log.info(
            "loading %s (%s) beside the model that serves: its files have %d MB, %s are free",
            manifest.name,
            manifest.fingerprint,
            needed >> 20,
            "unknown" if there is None else f"{there >> 20} MB",
        )
        if there is not None and needed > there:
            raise ReloadRefused(
                f"{path}: the model needs at least {needed >> 20} MB of memory beside the one that "
                f"serves, {there >> 20} MB are free"
            )
        encoder = await asyncio.to_thread(self._load_encoder, path)
        # Again: what was read after it was verified may have been exchanged in between.
        found = await asyncio.to_thread(open_artifact, path)
        if not encoder.fingerprint == found.fingerprint == manifest.fingerprint:
            raise ReloadRefused(
                f"{path} was changed while it was loaded: {manifest.fingerprint}, then "
                f"{encoder.fingerprint}, then {found.fingerprint}"
            )
        return self._encoders.embedder(encoder)

    @contextmanager
    def _staying(self, embedder: Embedder) -> Iterator[None]:
        """Not let go while it is proved; what is not proved is, or is kept on as it was."""
        if (keeping := self._keeping.pop(embedder, None)) is not None:
            keeping.cancel()
        try:
            yield
        except BaseException:
            if keeping is not None:
                self._keep(embedder, self._kept_s)
            elif self._encoders.get(embedder.encoder.fingerprint) is not embedder:
                self._leaving[embedder] = asyncio.create_task(self._unload(embedder), name="unload")
            raise

    async def _prove(self, embedder: Embedder) -> Watchdog:
        """Of the engine, which has shown that it works and remembers its test sentence."""
        self._busy = "proving"
        limit_s = self._settings.engine_timeout_s
        with _refusing("it was not proved"):
            await check_vectors(embedder, limit_s=limit_s)
            rate = await translation_rate(embedder, limit_s=limit_s)
            watchdog = self._watchdogs.of(embedder)
            await watchdog.look()
            if (problem := watchdog.problem) is not None:
                raise ReloadRefused(f"{problem.reason}: {problem.detail}")
            expected = await self._serving_rate()
            log.info("translations found: %.1f %%, %.1f %% before", 100 * rate, 100 * expected)
            if rate < expected - self._settings.reload_max_loss:
                raise ReloadRefused(
                    f"it finds {100 * rate:.1f} % of the translations, the model that serves "
                    f"{100 * expected:.1f} %, and MEXMA_RELOAD_MAX_LOSS allows "
                    f"{100 * self._settings.reload_max_loss:.1f} points less"
                )
            async with asyncio.timeout(limit_s):
                await self._encoders.tune(embedder)
        self._rates[embedder.encoder.fingerprint] = rate
        return watchdog

    async def _serving_rate(self) -> float:
        """0 where the model that serves does not work: any that does is better."""
        serving = self._encoders.default
        fingerprint = serving.encoder.fingerprint
        if fingerprint not in self._rates:
            limit_s = self._settings.request_timeout_s
            try:
                self._rates[fingerprint] = await translation_rate(serving, limit_s=limit_s)
            except EngineError as error:
                log.warning("the model that serves cannot be compared with: %s", error)
                return 0.0
            except TimeoutError:
                raise Overloaded(
                    "the model that serves is too busy to be compared with; retry later",
                    retry_after_s=limit_s,
                ) from None
        return self._rates[fingerprint]

    # From one model to another: between two requests, without an await

    def _answer_by(self, embedder: Embedder) -> None:
        if self._trial is not None and self._trial is not asyncio.current_task():
            self._trial.cancel()
        self._trial = None
        if (keeping := self._keeping.pop(embedder, None)) is not None:
            keeping.cancel()
        self._encoders.make_default(embedder)
        self._canaries.encoders_changed()

    def _return_to_previous(self) -> Embedder:
        """The one that answered until now. Raises ReloadConflict."""
        before, previous = self._encoders.default, self._previous
        if previous is None:
            raise ReloadConflict(
                "there is no model to go back to: none was reloaded in the last "
                f"{self._settings.reload_keep_s:g} s (MEXMA_RELOAD_KEEP_S), or it was rolled back"
            )
        self._previous = None
        self._answer_by(previous)
        return before

    async def _try_out(self, watchdog: Watchdog) -> None:
        watchdog.forget()
        end = time.monotonic() + self._settings.reload_trial_s
        while time.monotonic() < end:
            await asyncio.sleep(TRIAL_EVERY_S)
            await watchdog.look()
            if (problem := watchdog.found) is not None:
                failed = self._return_to_previous()
                self._let_go(failed)
                self._note("failed_trial", reason=f"{problem.reason}: {problem.detail}")
                return
        log.info("model reload: %s has stood its trial", self.serving)

    def _keep(self, embedder: Embedder, seconds: float) -> None:
        """Let it go after so long and when no collection is its own; further ones stay."""
        if self._encoders.role(embedder) == "kept":
            keeping = asyncio.create_task(self._wait(embedder, seconds), name="keep")
            self._keeping[embedder] = keeping

    async def _wait(self, embedder: Embedder, seconds: float) -> None:
        await asyncio.sleep(seconds)
        while await self._collections(embedder) != []:  # noqa: ASYNC110 - no store tells of a drop
            await asyncio.sleep(OWNED_EVERY_S)
        del self._keeping[embedder]
        self._let_go(embedder)

    def _let_go(self, embedder: Embedder) -> None:
        """No request is answered by it from now on; it is unloaded when those that are have ended."""
        if self._encoders.role(embedder) != "kept":
            return
        if self._previous is embedder:
            self._previous = None
        self._encoders.remove(embedder)
        self._canaries.encoders_changed()
        self._leaving[embedder] = asyncio.create_task(self._unload(embedder), name="unload")

    async def _unload(self, embedder: Embedder) -> None:
        await self._watchdogs.remove(embedder)
        await embedder.holders.none()
        await embedder.stop()
        del self._leaving[embedder]
        log.info("%s is not loaded any more", embedder.encoder.fingerprint)

    async def _collections(self, embedder: Embedder) -> list[str] | None:
        """That need it; None where the store does not answer."""
        if self._owned is None:
            return []
        try:
            return await self._owned(embedder.encoder.fingerprint)
        except StoreError as error:
            log.warning(
                "%s is kept, collections may need it: %s", embedder.encoder.fingerprint, error
            )
            return None


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    try:
        yield
    except ReloadError:
        raise
    except TimeoutError as error:
        raise ReloadRefused(f"{what}: a batch was not done in MEXMA_ENGINE_TIMEOUT_S") from error
    except (ArtifactError, InstallationError, EngineError, MemoryError, OSError) as error:
        raise ReloadRefused(f"{what}: {str(error) or type(error).__name__}") from error


async def owned(store: Store, migrator: Migrator | None, fingerprint: str) -> list[str]:
    """Names of the collections that have vectors of `fingerprint`. Raises StoreError."""
    found = {i.name for i in await asyncio.to_thread(store.list) if i.fingerprint == fingerprint}
    if migrator is not None:
        for name in migrator.migrations.names():
            with suppress(StoreError):  # ended in this moment
                info = await asyncio.to_thread(migrator.migrations.describe, name)
                if fingerprint in (info.serving, info.other):
                    found.add(name)
    return sorted(found)
