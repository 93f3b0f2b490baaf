"""The collections of a store that have vectors of two encoders, and how they come and go.

    begin       a second, empty collection of the name, for the other encoder, by one rename
    work/take   what it still lacks, and what it has been given
    cut_over    the new one serves, by one file that is replaced (folders.py)
    roll_back   the old one serves again
    abandon     the new one is removed before a cut-over, retire: the old one after it

Every change is one rename, so a kill leaves the state before it or the state after it, and what is
embedded stays. Which phase allows what is said by MigrationConflict.

Refuses to know: encoders, HTTP, how rows are compared (pair.py).
"""

from __future__ import annotations

import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Protocol, runtime_checkable

from mexma.errors import (
    CollectionNotFound,
    MigrationConflict,
    MigrationNotFound,
    StoreCorrupt,
    StoreError,
    StoreFailed,
)
from service.store.admission import check_dim
from service.store.collection import DATABASE, Collection, Means
from service.store.database import Database, Header, Row
from service.store.durable import sync
from service.store.folders import ROLES, Folders, write_roles
from service.store.moving import Embed, Embedded, MigrationInfo, Overlap
from service.store.pair import Pair
from service.store.protocol import Vectors
from service.store.steps import reached


@runtime_checkable
class Migrating(Protocol):
    """A store that can move its collections."""

    @property
    def migrations(self) -> Migrations: ...


class Migrations:
    """open: the store's collections by name, of which a change-over replaces one. changing: the
    store's lock on that set."""

    def __init__(
        self,
        folders: Folders,
        means: Means,
        open: dict[str, Collection],
        changing: threading.Lock,
    ):
        self._folders = folders
        self._means = means
        self._open = open
        self._changing = changing
        self._pairs: dict[str, Pair] = {}
        self._damaged: dict[str, tuple[Path, StoreError]] = {}

    def load(self, name: str, serving: Collection, other: Path, newer: Path) -> None:
        """Take up a migration where it was left. A damaged folder beside is named when it is used."""
        try:
            beside = Collection(other, self._means)
        except StoreError as error:
            self._damaged[name] = other, error
            return
        self._pairs[name] = Pair(serving, beside, beside if newer == other else serving)

    def names(self) -> list[str]:
        """Names of collections that are being moved."""
        return sorted([*self._pairs])

    def _pair(self, name: str) -> Pair:
        if damaged := self._damaged.get(name):
            raise StoreCorrupt(f"{damaged[1]}; end the migration to remove these vectors")
        if pair := self._pairs.get(name):
            return pair
        if name in self._open:
            raise MigrationNotFound(f"collection {name!r} is not being moved to another encoder")
        raise MigrationNotFound(f"there is no collection {name!r}")

    def begin(
        self,
        name: str,
        dim: int,
        fingerprint: str,
        canaries: Vectors | None = None,
        *,
        anew: bool = False,
    ) -> MigrationInfo:
        """Begin to move the open collection `name`, or go on if that is being done already.

        canaries: see LocalStore.create. anew: also where it is this encoder's already, whose vectors
        are not what they were. Raises MigrationConflict where it is being moved to another
        encoder, or is this one's.
        """
        check_dim(dim)
        with self._changing:
            if name in self._damaged or name in self._pairs:
                found = self._pair(name).info()
                if found.other == fingerprint and found.phase != "cut_over":
                    return found
                end = (
                    "POST .../migration/retire"
                    if found.phase == "cut_over"
                    else "DELETE .../migration"
                )
                raise MigrationConflict(
                    f"collection {name!r} has vectors of {found.serving} and, beside them, of "
                    f"{found.other}; end that migration before another: {end} drops those beside, and "
                    "so does, while no service runs, mexma-index migrate --retire with the model of "
                    f"{found.serving}"
                )
            if (serving := self._open.get(name)) is None:
                raise CollectionNotFound(f"there is no collection {name!r}")
            if serving.info().fingerprint == fingerprint and not anew:
                raise MigrationConflict(f"collection {name!r} has this encoder's vectors already")
            created_at = serving.info().created_at
            header = Header(name, dim, fingerprint, created_at, Header.pack(canaries))
            beside = self._made(serving, header)
            self._pairs[name] = pair = Pair(serving, beside, beside)
            return pair.info()

    def _made(self, serving: Collection, header: Header) -> Collection:
        new, final = self._folders.fresh(header.name)
        try:
            new.mkdir()
            reached("migration: folder made")
            Database.create(new / DATABASE, header)
            reached("migration: database made")
            write_roles(new, serving.directory.name, final.name)
            new.rename(final)
            reached("migration: folder renamed")
            sync(self._folders.root)
            return Collection(final, self._means)
        except (OSError, StoreError) as error:
            # Renamed back first: half removed and without roles, the name would be there twice.
            with suppress(OSError):
                final.rename(new)
            shutil.rmtree(new, ignore_errors=True)
            raise StoreFailed(f"collection {header.name!r} cannot be moved: {error}") from error

    def mend(self, name: str) -> bool:
        """Never: a change-over is one file that is replaced. See Moves."""
        return False

    def settle(self, timeout_s: float | None = None) -> bool:
        """Wait until all indexes that are being made are, also of the collections beside."""
        return self._means.keeper.settle(timeout_s)

    def describe(self, name: str) -> MigrationInfo:
        return self._pair(name).info()

    def canaries(self, name: str) -> Vectors | None:
        """Those of the collection beside, as it was begun with."""
        return self._pair(name).other.canaries()

    def overlap(self, name: str, k: int, sample: int) -> Overlap | None:
        """How differently the two answer, see `overlap.compare`."""
        return self._pair(name).overlap(k, sample)

    def work(self, name: str, limit: int) -> list[Row]:
        """Up to `limit` rows to embed by the encoder that does not serve, see Pair.missing."""
        return self._pair(name).missing(limit)

    def take(self, name: str, other: str, rows: list[Row], embedded: Embedded) -> None:
        """Store them. other: fingerprint of the encoder that embedded them; where the roles have
        changed meanwhile they are not needed, and are dropped."""
        pair = self._pair(name)
        with pair.lock:
            if pair.other.info().fingerprint == other:
                pair.take(rows, embedded)

    def cut_over(self, name: str, embed: Embed) -> MigrationInfo:
        """Let the new encoder's vectors answer. embed: by that encoder; see Pair.change_over."""
        return self._changed_over(name, embed, to_newer=True)

    def roll_back(self, name: str, embed: Embed) -> MigrationInfo:
        """Let the old encoder's vectors answer again, with all that was written meanwhile."""
        return self._changed_over(name, embed, to_newer=False)

    def _changed_over(self, name: str, embed: Embed, *, to_newer: bool) -> MigrationInfo:
        with self._changing:
            pair = self._pair(name)
            if (pair.other is pair.newer) != to_newer:
                now = "cut over already" if to_newer else "not cut over"
                raise MigrationConflict(f"collection {name!r} is {now}")
            try:
                pair.change_over(embed, lambda to, back: self._write_roles(pair, to, back))
            except OSError as error:
                raise StoreFailed(f"collection {name!r} cannot be changed over: {error}") from error
            finally:
                self._open[name] = pair.serving
            return pair.info()

    @staticmethod
    def _write_roles(pair: Pair, serving: Collection, other: Collection) -> None:
        folder = pair.newer.directory
        try:
            write_roles(folder, serving.directory.name, other.directory.name)
        except OSError:
            # Renamed and not durable it may hold after a power cut or not: say what holds here.
            write_roles(folder, other.directory.name, serving.directory.name)
            raise

    def abandon(self, name: str) -> None:
        """Remove the new encoder's vectors. Raises MigrationConflict after a cut-over."""
        self._end(name, cut_over=False)

    def retire(self, name: str) -> None:
        """Remove the old encoder's vectors. Raises MigrationConflict before a cut-over."""
        self._end(name, cut_over=True)

    def _end(self, name: str, *, cut_over: bool) -> None:
        with self._changing:
            if name in self._damaged:
                newer_serves = (self._open[name].directory / ROLES).exists()
            else:
                newer_serves = (pair := self._pair(name)).serving is pair.newer
            if newer_serves != cut_over:
                now = "cut over: roll back, or retire" if newer_serves else "not cut over"
                raise MigrationConflict(f"collection {name!r} is {now}")
            try:
                gone = self.remove(name)
                sync(self._folders.root)
                if cut_over:
                    # Only now: while a power cut may bring the other back, this says who serves.
                    (self._open[name].directory / ROLES).unlink(missing_ok=True)
                    reached("migration: roles removed")
            except OSError as error:
                raise StoreFailed(f"vectors of {name!r} cannot be removed: {error}") from error
        for folder in gone:
            shutil.rmtree(folder, ignore_errors=True)  # what resists is removed at the next start

    def remove(self, name: str) -> list[Path]:
        """Rename what is beside a collection, if anything, so that it is none any more.

        The store's lock is held. Returns what the folders are called now, to be removed.
        """
        if damaged := self._damaged.get(name):
            gone = self._folders.gone(damaged[0])
            damaged[0].rename(gone)
            del self._damaged[name]
        elif pair := self._pairs.get(name):
            gone = self._folders.gone(pair.other.directory)
            with pair.lock:
                pair.other.retire(gone)
            del self._pairs[name]
        else:
            return []
        reached("migration: other renamed")
        return [gone]

    def beside(self, name: str) -> list[Path]:
        """The folder beside a collection, if there is one."""
        if damaged := self._damaged.get(name):
            return [damaged[0]]
        return [pair.other.directory] if (pair := self._pairs.get(name)) else []

    def forget(self, name: str) -> None:
        """Release what is beside a collection; its folder is seen to by others."""
        self._damaged.pop(name, None)
        if pair := self._pairs.pop(name, None):
            with pair.lock:
                pair.other.close()

    def close(self) -> None:
        for name in [*self._pairs]:
            self.forget(name)
