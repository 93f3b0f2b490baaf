"""The folders of an embedded store: whose they are, which are leftovers, which succeed which.

    root/
        .lock                    held by the one process that has the store open
        demo.5f1c0a9e/           collection "demo"; the suffix makes every incarnation's path its own
            documents.sqlite
            index/               derived, see generations.py
            succeeds.json        after a restore: the folders that this one replaces
            roles.json           in a migration: which of two folders of a name serves
        snapshots/demo/…         backups, see backups.py
        .new-…                   being made: never served, removed at start
        .gone-…                  dropped: never served, removed at start

A collection appears by one rename and disappears by one. A restore is one rename too: from then
on there are two folders of a name, and the one that says it succeeds the other is the collection.
In a migration there are two of a name for long, one per encoder; the newer one holds the file that
says which of them is the collection, and cutting over replaces that file.

The suffix is there because SQLite removes its write-ahead log by path when a file's last
connection closes: a search still running on a dropped collection must not take away the log of a
new one of the same name.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mexma.errors import StoreCorrupt, StoreError
from service.store import backups, durable
from service.store.admission import NAME
from service.store.steps import reached

NEW, GONE = ".new-", ".gone-"
SUCCEEDS, ROLES = "succeeds.json", "roles.json"
# Such a file says nothing, also one that is whole and of something else.
UNREADABLE = (StoreCorrupt, KeyError, TypeError)


class Place(NamedTuple):
    """Where a collection lies: the folder that serves, and in a migration the one beside it.

    newer: whichever of the two the migration made; it holds the roles."""

    serving: Path
    other: Path | None = None
    newer: Path | None = None


@dataclass(frozen=True)
class Folders:
    """The folder `root` of a store."""

    root: Path

    def lock(self) -> int:
        """Take the root's lock. Returns the descriptor that holds it, until it is closed or dies.

        Raises StoreError where another process, or another store of this one, holds it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        except BlockingIOError as e:
            holder = os.pread(descriptor, 32, 0).decode() or "unknown"
            os.close(descriptor)
            raise StoreError(
                f"a store has one process at a time, {self.root} is open in process {holder}; stop "
                "that service or command first"
            ) from e
        except BaseException:
            with suppress(OSError):
                os.close(descriptor)
            raise
        return descriptor

    def remove_leftovers(self) -> None:
        """Remove what a kill left half made or half removed."""
        for path in self.root.iterdir():
            if path.name.startswith((NEW, GONE)):
                shutil.rmtree(path, ignore_errors=True)
        backups.remove_leftovers(self.root)

    def collections(self) -> dict[str, list[Path]]:
        """Name -> its folders, of which there should be one."""
        found: dict[str, list[Path]] = {}
        for path in sorted(self.root.iterdir()):
            name, dot, _ = path.name.rpartition(".")
            if dot and NAME.fullmatch(name) and path.is_dir():
                found.setdefault(name, []).append(path)
        return found

    def fresh(self, name: str) -> tuple[Path, Path]:
        """A folder to make a collection in, and what to rename it to when it is complete."""
        suffix = secrets.token_hex(4)
        return self.root / f"{NEW}{name}.{suffix}", self.root / f"{name}.{suffix}"

    def gone(self, folder: Path) -> Path:
        """What to rename a folder to that is to be removed."""
        return self.root / f"{GONE}{folder.name}.{secrets.token_hex(4)}"


def write_succession(folder: Path, predecessors: list[Path]) -> None:
    """Say, durably, that `folder` takes the place of these from its rename on."""
    names = [path.name for path in predecessors]
    durable.write_manifest(folder / SUCCEEDS, {"folders": names})
    durable.sync(folder)


def successor_of(folders: list[Path]) -> Path | None:
    """The one folder that succeeds all the others, None where there is none."""
    for folder in folders:
        with suppress(*UNREADABLE):
            replaced = durable.read_manifest(folder / SUCCEEDS)["folders"]
            if {path.name for path in folders} - {folder.name} <= set(replaced):
                return folder
    return None


def write_roles(newer: Path, serving: str, other: str) -> None:
    """Say, in one moment and durably, which of two folders of a name serves from now on."""
    written = newer / f".{ROLES}"
    written.unlink(missing_ok=True)  # of an attempt that was cut off
    durable.write_manifest(written, {"serving": serving, "other": other})
    reached("migration: roles written")
    written.rename(newer / ROLES)
    reached("migration: roles renamed")
    durable.sync(newer)
    reached("migration: roles durable")


def place_of(folders: list[Path]) -> Place | None:
    """Which of a name's folders is the collection; None where nothing says so."""
    if len(folders) == 1:
        alone = folders[0]
        if not (alone / ROLES).exists():
            return Place(alone)
        with suppress(*UNREADABLE):
            # Its migration was finished; or it is half a copy of one that somebody took away.
            if durable.read_manifest(alone / ROLES)["serving"] == alone.name:
                return Place(alone)
        return None
    if successor := successor_of(folders):
        return Place(successor)
    by_name = {folder.name: folder for folder in folders}
    for newer in folders:
        with suppress(*UNREADABLE):
            roles = durable.read_manifest(newer / ROLES)
            if set(by_name) == {roles["serving"], roles["other"]}:
                return Place(by_name[roles["serving"]], by_name[roles["other"]], newer)
    return None
