"""Backups of one collection: whole and consistent copies, made while it is read and written.

    root/snapshots/NAME/20261125T184500Z-5f1c0a9e/
        snapshot.json       what it is, and every file's SHA-256
        documents.sqlite    as of one moment, by SQLite's own backup
        index/              hard links to the generations there were; derived, so never missed
    root/snapshots/NAME/.new-…      being made; removed at start

They outlive the collection: dropping one leaves its backups. A backup on the same disk does not
survive that disk; the folder can be copied anywhere.

Refuses to know: which collections are open.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_type_hints

from mexma.errors import BackupNotFound, StoreCorrupt, StoreFailed
from service.store import durable, generations
from service.store.database import Database
from service.store.protocol import Backup
from service.store.steps import reached

log = logging.getLogger(__name__)

FOLDER, MANIFEST, DATABASE = "snapshots", "snapshot.json", "documents.sqlite"
NEW, GONE = ".new-", ".gone-"
ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")
SCHEMA = 1

Progress = Callable[[int, int], object]
"""Called with the parts done, and the parts there are."""


@dataclass(frozen=True)
class Backups:
    """The backups of collection `name` in the store at `root`."""

    root: Path
    name: str

    @property
    def folder(self) -> Path:
        return self.root / FOLDER / self.name

    def make(
        self, database: Database, collection: Path, progress: Progress | None = None
    ) -> Backup:
        """Back up the collection in the folder `collection`; whole and durable on return.

        Readers and writers go on. Raises StoreFailed where it cannot be written; then nothing of
        it is left.
        """
        now = datetime.now(UTC)
        id = f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
        new, final = self.folder / f"{NEW}{id}", self.folder / id
        try:
            self._make_folder()
            new.mkdir()
            reached("backup: folder made")
            # The index first: what it covers is then in the database that is copied after it.
            _link_generations(collection, new)
            reached("backup: index linked")
            count = database.copy_to(new / DATABASE, progress)
            reached("backup: database copied")
            files = {DATABASE: durable.digest(new / DATABASE)}
            header = database.header
            backup = Backup(
                id=id,
                collection=self.name,
                created_at=now.isoformat(timespec="seconds"),
                count=count,
                dim=header.dim,
                fingerprint=header.fingerprint,
                bytes=sum(f.stat().st_size for f in new.rglob("*") if f.is_file()),
            )
            content = asdict(backup) | {"schema": SCHEMA, "files": files}
            durable.write_manifest(new / MANIFEST, content)
            durable.sync(new)
            reached("backup: manifest written")
            new.rename(final)
            reached("backup: renamed")
            durable.sync(self.folder)
        except BaseException as error:
            shutil.rmtree(new, ignore_errors=True)
            if isinstance(error, OSError):
                raise StoreFailed(f"{final} cannot be written: {error.strerror}") from error
            raise
        return backup

    def _make_folder(self) -> None:
        for folder in (self.folder.parent, self.folder):
            if not folder.exists():
                folder.mkdir(exist_ok=True)
                durable.sync(folder.parent)

    def all(self) -> list[Backup]:
        """Those there are, oldest first; one whose manifest is damaged is named in the log."""
        found = []
        for path in sorted(self.folder.glob("[0-9]*-*")):
            try:
                found.append(_described(path))
            except StoreCorrupt as error:
                log.error("a backup is not listed: %s", error)
        return found

    def find(self, id: str) -> Path:
        """Its folder. Raises BackupNotFound."""
        path = self.folder / id
        if not ID.fullmatch(id) or not path.is_dir():
            raise BackupNotFound(f"collection {self.name!r} has no snapshot {id[:80]!r}")
        return path

    def remove(self, id: str) -> None:
        path = self.find(id)
        gone = path.with_name(GONE + id)
        path.rename(gone)
        durable.sync(self.folder)
        shutil.rmtree(gone, ignore_errors=True)


def remove_leftovers(root: Path) -> None:
    """Remove what a kill left of backups that were being made or removed."""
    for path in (root / FOLDER).glob("*/.*-*"):
        if path.name.startswith((NEW, GONE)):
            shutil.rmtree(path, ignore_errors=True)


def verify(backup: Path, progress: durable.Progress | None = None) -> Backup:
    """Compare all hashes. Raises StoreCorrupt naming the file."""
    found, content = _described(backup), _content(backup)
    durable.verify(backup, content["files"], progress)
    return found


def unpack(backup: Path, new: Path, progress: durable.Progress | None = None) -> Backup:
    """Copy a backup's collection into the empty folder `new`, durably.

    Raises StoreCorrupt naming the file where the copy is not what was backed up. The index is
    linked unread: whoever loads it verifies it, and can make another.
    """
    found, content = _described(backup), _content(backup)
    for name, expected in content["files"].items():
        try:
            copied = durable.copy(backup / name, new / name, progress)
        except FileNotFoundError as e:
            raise StoreCorrupt(f"{backup / name} must be there, it is not") from e
        if copied != expected:
            raise StoreCorrupt(f"{backup / name} must have SHA-256 {expected}, it has {copied}")
    _link_generations(backup, new)
    durable.sync(new)
    return found


def _content(backup: Path) -> dict[str, Any]:
    content = durable.read_manifest(backup / MANIFEST)
    if content.get("schema") != SCHEMA:
        raise StoreCorrupt(f"{backup} must have schema {SCHEMA}, it has {content.get('schema')}")
    # Somebody else may have written it: what it names must lie beside it.
    files = content.get("files")
    if not isinstance(files, dict) or any(name != DATABASE for name in files):
        found = list(files) if isinstance(files, dict) else files
        raise StoreCorrupt(
            f"{backup} must consist of {DATABASE}, its manifest has {str(found)[:80]}"
        )
    return content


def _described(backup: Path) -> Backup:
    content = _content(backup)
    try:
        found = Backup(**{k: v for k, v in content.items() if k not in ("schema", "files")})
    except TypeError as e:
        raise StoreCorrupt(f"{backup / MANIFEST} must describe a backup: {e}") from e
    for name, kind in get_type_hints(Backup).items():
        if type(value := getattr(found, name)) is not kind:
            raise StoreCorrupt(
                f"{backup / MANIFEST} must say what {name} is, has {str(value)[:80]}"
            )
    return found


def _link_generations(collection: Path, into: Path) -> None:
    """Link, or copy to another disk, each whole generation; those that vanish are not missed."""
    target = into / generations.FOLDER
    for generation in sorted((collection / generations.FOLDER).glob("g*.*")):
        copy = target / generation.name
        copy.mkdir(parents=True)
        try:
            for file in sorted(generation.iterdir()):
                try:
                    os.link(file, copy / file.name)
                except FileNotFoundError:
                    raise
                except OSError:
                    durable.copy(file, copy / file.name)
            durable.sync(copy)
        except FileNotFoundError:  # a newer one has just taken its place
            shutil.rmtree(copy, ignore_errors=True)
    with suppress(FileNotFoundError):
        durable.sync(target)
