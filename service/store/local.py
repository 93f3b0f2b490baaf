"""The embedded store: a directory of collections, each an SQLite file with an index in memory.

    root/
        .lock                    held by the one process that has the store open
        demo.5f1c0a9e/           collection "demo"; the suffix makes every incarnation's path its own
            documents.sqlite
            index/               derived, see generations.py
        .new-…                   being created: never served, removed at start
        .gone-…                  dropped: never served, removed at start

Create and drop are one rename each, of a directory that is complete, so a kill at any point
leaves either the one or the other. The suffix is there because SQLite removes its write-ahead
log by path when a file's last connection closes: a search still running on a dropped collection
must not take away the log of a new one of the same name.

A collection that cannot be opened stays, listed as corrupt: each use of it raises, none of the
others is touched, and it is never mistaken for an empty one.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from mexma.errors import (
    CollectionExists,
    CollectionNotFound,
    FingerprintMismatch,
    StoreCorrupt,
    StoreError,
)
from service.store.admission import NAME, check_dim, check_name
from service.store.collection import DATABASE, Collection, Means
from service.store.database import Database, Header
from service.store.durable import sync
from service.store.keeper import Keeper
from service.store.memory import MemoryBudget
from service.store.protocol import (
    CollectionInfo,
    Document,
    Explanations,
    Hits,
    Ids,
    Outcomes,
    Page,
    Query,
    Selection,
    Vectors,
)
from service.store.threads import ThreadBudget

NEW, GONE = ".new-", ".gone-"


class LocalStore:
    """The store under `root`, which is made if it does not exist.

    threads: how many may scan vectors at one time, all searches together; None is one per
    core this process may use. Fewer leaves cores to inference, whose own pool does not know of
    these; more than there are cores makes every search slower. index_memory_bytes: what all
    approximate indexes may take; a collection for which too little is left stays exact.
    recall_check_every: one in so many approximate searches is also done exactly, later, for
    CollectionInfo.recall; 0 does none.

    Raises StoreError where another process, or another LocalStore, has the root open.
    """

    def __init__(
        self,
        root: Path,
        *,
        threads: int | None = None,
        index_memory_bytes: int = 4 << 30,
        recall_check_every: int = 1_000,
    ):
        self.root = root
        budget = ThreadBudget(threads or len(os.sched_getaffinity(0)))
        self._changing = threading.Lock()  # the set of collections
        self._open: dict[str, Collection] = {}
        self._damaged: dict[str, tuple[Path, StoreError]] = {}
        root.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(root)
        self._means = Means(
            budget, MemoryBudget(index_memory_bytes), Keeper(budget.total), recall_check_every
        )
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        for directory in sorted(self.root.iterdir()):
            if directory.name.startswith((NEW, GONE)):
                shutil.rmtree(directory, ignore_errors=True)
                continue
            name, dot, _ = directory.name.rpartition(".")
            if not dot or not NAME.fullmatch(name) or not directory.is_dir():
                continue
            try:
                if name in self._open or name in self._damaged:
                    raise StoreCorrupt(f"{self.root} must hold {name!r} once, it holds it twice")
                collection = Collection(directory, self._means)
                if collection.name != name:
                    collection.close()
                    raise StoreCorrupt(
                        f"{directory} must hold {name!r}, it holds {collection.name!r}"
                    )
                self._open[name] = collection
            except StoreError as e:
                if twin := self._open.pop(name, None):
                    twin.close()
                self._damaged[name] = (directory, e)

    def _collection(self, name: str) -> Collection:
        check_name(name)
        if damaged := self._damaged.get(name):
            raise _again(damaged[1])
        if collection := self._open.get(name):
            return collection
        raise CollectionNotFound(f"there is no collection {name!r}")

    def create(self, name: str, dim: int, fingerprint: str) -> CollectionInfo:
        check_name(name)
        check_dim(dim)
        with self._changing:
            self._check_open()
            if name in self._open or name in self._damaged:
                return _same(self._collection(name).info(), dim, fingerprint)
            self._open[name] = collection = self._created(name, dim, fingerprint)
            return collection.info()

    def _created(self, name: str, dim: int, fingerprint: str) -> Collection:
        suffix = secrets.token_hex(4)
        new, final = self.root / f"{NEW}{name}.{suffix}", self.root / f"{name}.{suffix}"
        try:
            new.mkdir()
            now = datetime.now(UTC).isoformat(timespec="seconds")
            Database.create(new / DATABASE, Header(name, dim, fingerprint, now))
            sync(new)
            new.rename(final)
            sync(self.root)
            return Collection(final, self._means)
        except (OSError, StoreError) as e:
            # Renamed back first: were it left, the next attempt would make the name exist twice.
            with suppress(OSError):
                final.rename(new)
            shutil.rmtree(new, ignore_errors=True)
            raise StoreError(f"collection {name!r} cannot be created in {self.root}: {e}") from e

    def list(self) -> list[CollectionInfo]:
        with self._changing:
            found = [collection.info() for collection in self._open.values()]
            damaged = [CollectionInfo(n, 0, "", 0, {}, "corrupt", "") for n in self._damaged]
        return sorted(found + damaged, key=lambda info: info.name)

    def describe(self, name: str) -> CollectionInfo:
        return self._collection(name).info()

    def drop(self, name: str) -> None:
        check_name(name)
        with self._changing:
            self._check_open()
            gone = self.root / f"{GONE}{name}.{secrets.token_hex(4)}"
            try:
                if damaged := self._damaged.get(name):
                    damaged[0].rename(gone)
                    del self._damaged[name]
                else:
                    self._collection(name).retire(gone)
                    del self._open[name]
                sync(self.root)
            except OSError as e:
                raise StoreError(f"collection {name!r} cannot be dropped: {e}") from e
        shutil.rmtree(gone, ignore_errors=True)  # what resists is removed at the next start

    def upsert(
        self, name: str, documents: Sequence[Document], vectors: Vectors, fingerprint: str
    ) -> Outcomes:
        return self._collection(name).upsert(documents, vectors, fingerprint)

    def delete(self, name: str, ids: Sequence[str]) -> Ids:
        return self._collection(name).delete(ids)

    def delete_where(self, name: str, selection: Selection) -> int:
        return self._collection(name).delete_where(selection)

    def get(self, name: str, id: str) -> Document:
        return self._collection(name).get(id)

    def count(self, name: str, selection: Selection) -> int:
        return self._collection(name).count(selection)

    def scroll(
        self,
        name: str,
        selection: Selection,
        limit: int,
        cursor: str | None = None,
        *,
        vectors: bool = False,
    ) -> Page:
        return self._collection(name).scroll(selection, limit, cursor, vectors=vectors)

    def search(
        self,
        name: str,
        vectors: Vectors,
        query: Query,
        fingerprint: str,
        query_languages: Sequence[str | None] | None = None,
    ) -> Hits:
        return self._collection(name).search(vectors, query, fingerprint, query_languages)

    def explain(
        self,
        name: str,
        vectors: Vectors,
        query: Query,
        fingerprint: str,
        query_languages: Sequence[str | None] | None = None,
    ) -> Explanations:
        return self._collection(name).explain(vectors, query, fingerprint, query_languages)

    def settle(self) -> None:
        """Wait until all that is done in the background has been done."""
        self._means.keeper.settle()

    def close(self) -> None:
        self._means.keeper.close()
        with self._changing:
            while self._open:
                self._open.popitem()[1].close()
            self._damaged.clear()
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    def _check_open(self) -> None:
        if self._lock < 0:
            raise StoreError(f"the store at {self.root} is closed")


def _same(info: CollectionInfo, dim: int, fingerprint: str) -> CollectionInfo:
    if info.fingerprint != fingerprint:
        raise FingerprintMismatch(
            f"collection {info.name!r} exists for encoder {info.fingerprint}, not {fingerprint}; "
            "choose another name, or serve that encoder's model to use it",
            expected=info.fingerprint,
            found=fingerprint,
        )
    if info.dim != dim:
        raise CollectionExists(f"collection {info.name!r} exists with dim {info.dim}, not {dim}")
    return info


def _again(error: StoreError) -> StoreError:
    """A fresh copy: one exception object raised by many threads would gather their tracebacks."""
    return type(error)(str(error))


def _locked(root: Path) -> int:
    """Take the root's lock. Returns the descriptor that holds it, until it is closed or dies."""
    descriptor = os.open(root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    except BlockingIOError as e:
        holder = os.pread(descriptor, 32, 0).decode() or "unknown"
        os.close(descriptor)
        raise StoreError(
            f"a store has one process at a time, {root} is open in process {holder}"
        ) from e
    except BaseException:
        with suppress(OSError):
            os.close(descriptor)
        raise
    return descriptor
