"""The embedded store: a directory of collections, each an SQLite file with an index in memory.

A collection that cannot be opened stays, listed as corrupt: each use of it raises, none of the
others is touched, and it is never mistaken for an empty one. `folders.py` draws the directory.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from mexma.errors import (
    CollectionNotFound,
    StoreCorrupt,
    StoreError,
    StoreFailed,
)
from service.store import backups
from service.store.admission import check_dim, check_name, check_same
from service.store.backups import Backups
from service.store.collection import DATABASE, Collection, Means, StandsBeside
from service.store.database import Database, Header
from service.store.durable import sync
from service.store.folders import Folders, place_of, write_succession
from service.store.keeper import Keeper
from service.store.memory import MemoryBudget
from service.store.migrations import Migrations
from service.store.protocol import (
    Backup,
    BackupList,
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
from service.store.resident import Gpu
from service.store.steps import reached
from service.store.threads import ThreadBudget

T = TypeVar("T")


class LocalStore:
    """The store under `root`, which is made if it does not exist.

    threads: how many may scan vectors at one time, all searches together; None is one per
    core this process may use. Fewer leaves cores to inference, whose own pool does not know of
    these; more than there are cores makes every search slower. index_memory_bytes: what all
    approximate indexes may take; a collection for which too little is left stays exact.
    recall_check_every: one in so many approximate searches is also done exactly, later, for
    CollectionInfo.recall; 0 does none. gpu: where indexes are, in whose memory they then may take
    so much; None for the CPU.

    Raises StoreError where another process, or another LocalStore, has the root open.
    """

    def __init__(
        self,
        root: Path,
        *,
        threads: int | None = None,
        index_memory_bytes: int = 4 << 30,
        recall_check_every: int = 1_000,
        gpu: Gpu | None = None,
    ):
        self.root = root
        budget = ThreadBudget(threads or len(os.sched_getaffinity(0)))
        self._changing = threading.Lock()  # the set of collections
        self._open: dict[str, Collection] = {}
        self._damaged: dict[str, tuple[list[Path], StoreError]] = {}
        self._folders = Folders(root)
        self._lock = self._folders.lock()
        self._means = Means(
            budget,
            MemoryBudget(index_memory_bytes),
            Keeper(budget.total),
            recall_check_every,
            gpu,
        )
        self.migrations = Migrations(self._folders, self._means, self._open, self._changing)
        """Collections that are being moved to another encoder."""
        self.moves = self.migrations
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        self._folders.remove_leftovers()
        for name, folders in self._folders.collections().items():
            try:
                self._open[name] = self._opened(name, folders)
            except StoreError as e:
                place = place_of(folders)
                # What serves comes last, so that it goes last: the other alone would be found.
                self._damaged[name] = (
                    sorted(folders, key=lambda path: place is not None and path == place.serving),
                    e,
                )

    def _opened(self, name: str, folders: list[Path]) -> Collection:
        """The collection of these folders; a restore that was cut off after its rename is finished."""
        place = place_of(folders)
        if place is None:
            raise StoreCorrupt(
                f"{self.root} must hold {name!r} once, or twice and say which one serves; it holds "
                + ", ".join(path.name for path in folders)
            )
        collection = Collection(place.serving, self._means)
        if collection.name != name:
            collection.close()
            raise StoreCorrupt(f"{place.serving} must hold {name!r}, it holds {collection.name!r}")
        if place.other and place.newer:
            self.migrations.load(name, collection, place.other, place.newer)
        self._discard([path for path in folders if path not in place])
        return collection

    def _discard(self, folders: list[Path]) -> None:
        """Remove folders; by a rename first, so that no half of one is taken for a collection."""
        gone = [folder.rename(self._folders.gone(folder)) for folder in folders]
        sync(self.root)
        for path in gone:
            shutil.rmtree(path, ignore_errors=True)  # what resists is removed at the next start

    def _collection(self, name: str) -> Collection:
        check_name(name)
        if damaged := self._damaged.get(name):
            raise _again(damaged[1])
        if collection := self._open.get(name):
            return collection
        raise CollectionNotFound(f"there is no collection {name!r}")

    def _on(self, name: str, use: Callable[[Collection], T]) -> T:
        """Use a collection, or the one that takes its place in that moment."""
        while True:
            collection = self._collection(name)
            try:
                return use(collection)
            except StandsBeside:
                continue  # another serves since this writer began to wait for its turn
            except CollectionNotFound:
                if self._open.get(name) in (None, collection):
                    raise

    def create(
        self, name: str, dim: int, fingerprint: str, canaries: Vectors | None = None
    ) -> CollectionInfo:
        """See Store.create. canaries: what `canaries` is to return, float32 `[n, dim]`."""
        check_name(name)
        check_dim(dim)
        with self._changing:
            self._check_open()
            if name in self._open or name in self._damaged:
                return check_same(self._collection(name).info(), dim, fingerprint)
            self._open[name] = collection = self._created(name, dim, fingerprint, canaries)
            return collection.info()

    def _created(
        self, name: str, dim: int, fingerprint: str, canaries: Vectors | None
    ) -> Collection:
        new, final = self._folders.fresh(name)
        try:
            new.mkdir()
            now = datetime.now(UTC).isoformat(timespec="seconds")
            header = Header(name, dim, fingerprint, now, Header.pack(canaries))
            Database.create(new / DATABASE, header)
            sync(new)
            new.rename(final)
            sync(self.root)
            return Collection(final, self._means)
        except (OSError, StoreError) as e:
            # Renamed back first: were it left, the next attempt would make the name exist twice.
            with suppress(OSError):
                final.rename(new)
            shutil.rmtree(new, ignore_errors=True)
            raise StoreFailed(f"collection {name!r} cannot be created in {self.root}: {e}") from e

    def list(self) -> list[CollectionInfo]:
        # Not under the lock: a restore holds it while it reads all rows.
        found = [collection.info() for collection in [*self._open.values()]]
        damaged = [CollectionInfo(n, 0, "", 0, {}, "corrupt", "") for n in [*self._damaged]]
        return sorted(found + damaged, key=lambda info: info.name)

    def describe(self, name: str) -> CollectionInfo:
        return self._collection(name).info()

    def canaries(self, name: str) -> Vectors | None:
        """Vectors of fixed sentences by the collection's encoder when it was made, if it has any."""
        return self._collection(name).canaries()

    def drop(self, name: str) -> None:
        check_name(name)
        with self._changing:
            self._check_open()
            try:
                if damaged := self._damaged.get(name):
                    self._discard(damaged[0])
                    del self._damaged[name]
                    return
                collection = self._collection(name)
                gone = self.migrations.remove(name)  # first: alone it would be a collection
                gone.append(self._folders.gone(collection.directory))
                collection.retire(gone[-1])
                del self._open[name]
                sync(self.root)
            except OSError as e:
                raise StoreFailed(f"collection {name!r} cannot be dropped: {e}") from e
        for folder in gone:
            shutil.rmtree(folder, ignore_errors=True)  # what resists is removed at the next start

    def upsert(
        self, name: str, documents: Sequence[Document], vectors: Vectors, fingerprint: str
    ) -> Outcomes:
        return self._on(name, lambda c: c.upsert(documents, vectors, fingerprint))

    def delete(self, name: str, ids: Sequence[str]) -> Ids:
        return self._on(name, lambda c: c.delete(ids))

    def delete_where(self, name: str, selection: Selection) -> int:
        return self._on(name, lambda c: c.delete_where(selection))

    def get(self, name: str, id: str) -> Document:
        return self._on(name, lambda c: c.get(id))

    def count(self, name: str, selection: Selection) -> int:
        return self._on(name, lambda c: c.count(selection))

    def scroll(
        self,
        name: str,
        selection: Selection,
        limit: int,
        cursor: str | None = None,
        *,
        vectors: bool = False,
    ) -> Page:
        return self._on(name, lambda c: c.scroll(selection, limit, cursor, vectors=vectors))

    def search(
        self,
        name: str,
        vectors: Vectors,
        query: Query,
        fingerprint: str,
        query_languages: Sequence[str | None] | None = None,
    ) -> Hits:
        return self._on(name, lambda c: c.search(vectors, query, fingerprint, query_languages))

    def explain(
        self,
        name: str,
        vectors: Vectors,
        query: Query,
        fingerprint: str,
        query_languages: Sequence[str | None] | None = None,
    ) -> Explanations:
        return self._on(name, lambda c: c.explain(vectors, query, fingerprint, query_languages))

    def back_up(self, name: str) -> Backup:
        self._collection(name)
        return self._on(name, lambda c: c.back_up(Backups(self.root, name)))

    def backups(self, name: str) -> BackupList:
        check_name(name)
        return Backups(self.root, name).all()

    def remove_backup(self, name: str, id: str) -> None:
        check_name(name)
        Backups(self.root, name).remove(id)

    def restore(self, name: str, id: str) -> CollectionInfo:
        check_name(name)
        return self.restore_from(name, Backups(self.root, name).find(id))

    def restore_from(
        self, name: str, backup: Path, progress: Callable[[int], object] | None = None
    ) -> CollectionInfo:
        """As `restore`, from a backup's folder anywhere. progress: called with bytes copied."""
        check_name(name)
        new, final = self._folders.fresh(name)
        try:
            new.mkdir()
            reached("restore: folder made")
            found = backups.unpack(backup, new, progress)
            if found.collection != name:
                raise StoreError(f"{backup} is of collection {found.collection!r}, not {name!r}")
            reached("restore: files copied")
            with self._changing:
                self._check_open()
                return self._succeeded(name, new, final).info()
        except OSError as e:
            raise StoreFailed(f"collection {name!r} cannot be restored: {e}") from e
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _succeeded(self, name: str, new: Path, final: Path) -> Collection:
        """Put the complete folder `new` in the place of what has this name now, if anything."""
        old = self._open.get(name)
        predecessors = [old.directory] if old else self._damaged.get(name, ([], None))[0]
        predecessors = [*self.migrations.beside(name), *predecessors]
        if predecessors:
            write_succession(new, predecessors)
        reached("restore: succession written")
        # Whoever wants to write waits, and then writes into the successor.
        with old.held() if old else nullcontext():
            new.rename(final)
            reached("restore: renamed")
            try:
                sync(self.root)
                reached("restore: durable")
                successor = Collection(final, self._means)
            except BaseException:
                final.rename(new)
                raise
            self._open[name] = successor
            self._damaged.pop(name, None)
            self.migrations.forget(name)
            if old:
                old.end()
        self._discard(predecessors)
        reached("restore: predecessor renamed")
        return successor

    def settle(self, timeout_s: float | None = None) -> bool:
        """Wait until all that is done in the background has been done. Whether it has."""
        return self._means.keeper.settle(timeout_s)

    def rows_indexed(self, name: str) -> int:
        """How many rows the index that is being made has so far."""
        return self._collection(name).rows_indexed()

    def close(self) -> None:
        self._means.keeper.close()
        with self._changing:
            self.migrations.close()
            while self._open:
                self._open.popitem()[1].close()
            self._damaged.clear()
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    def _check_open(self) -> None:
        if self._lock < 0:
            raise StoreError(f"the store at {self.root} is closed")


def _again(error: StoreError) -> StoreError:
    """A fresh copy: one exception object raised by many threads would gather their tracebacks."""
    return type(error)(str(error))
