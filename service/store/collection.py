"""One collection: the database that is true, and the snapshot that is searched, kept in step.

A write takes the writer's lock, prepares the next snapshot inside the transaction, commits, and
only then lets readers see it. Readers take whichever snapshot is current and no lock at all; the
texts of their hits come from the database by rid. If a hit's row was deleted in between, the
search is repeated on the newer state, the last time while holding off the writer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from mexma.errors import CollectionNotFound, DocumentNotFound, InputError, StoreCorrupt
from service.store.admission import check_document, check_fingerprint, unit_vectors
from service.store.database import Database, Row
from service.store.index import Snapshot
from service.store.protocol import (
    CollectionInfo,
    Document,
    Hit,
    Hits,
    Ids,
    Outcomes,
    Query,
    Vectors,
)
from service.store.ranking import Ranked, rank
from service.store.threads import ThreadBudget

DATABASE = "documents.sqlite"
FREE_TRIES = 3

T = TypeVar("T")


class Collection:
    """An open collection directory. Thread-safe; raises CollectionNotFound once closed."""

    def __init__(self, directory: Path, threads: ThreadBudget):
        """Open `directory` and build the index from its rows.

        Raises StoreCorrupt where the database or any row does not verify.
        """
        self.directory = directory
        self._database = Database.open(directory / DATABASE)
        self._writing = threading.Lock()
        self._closed = False
        try:
            self._snapshot = self._built(threads)
        except BaseException:
            self._database.close()
            raise

    def _built(self, threads: ThreadBudget) -> Snapshot:
        header = self._database.header
        snapshot, none = Snapshot(header.dim, threads), np.empty(0, np.int64)
        for rids, tags, vectors in self._database.scan():
            try:
                units = unit_vectors(vectors, None, header.dim)
            except InputError as e:
                raise StoreCorrupt(f"{self._database.path} holds a vector it refuses: {e}") from e
            snapshot = snapshot.changed(none, rids, tags, units)
        return snapshot

    @property
    def name(self) -> str:
        return self._database.header.name

    def info(self) -> CollectionInfo:
        header, snapshot = self._database.header, self._snapshot
        return CollectionInfo(
            name=header.name,
            dim=header.dim,
            fingerprint=header.fingerprint,
            count=len(snapshot),
            languages=snapshot.languages(),
            index_state="exact",
            created_at=header.created_at,
        )

    def upsert(self, documents: Sequence[Document], vectors: Vectors, fingerprint: str) -> Outcomes:
        header = self._database.header
        check_fingerprint(header.name, header.fingerprint, fingerprint)
        metadata = [check_document(document, item) for item, document in enumerate(documents)]
        units = unit_vectors(vectors, len(documents), header.dim)
        last: dict[str, int] = {}
        for item, document in enumerate(documents):
            last.pop(document.id, None)  # so that the order is that of the last writes
            last[document.id] = item
        kept = list(last.values())
        winners = [documents[item] for item in kept]
        if not winners:
            return []
        with self._writing:
            self._check_open()
            with self._database.transaction() as transaction:
                existing = transaction.rids(list(last))
                transaction.delete(list(existing.values()))
                rids = transaction.insert(winners, [metadata[i] for i in kept], vectors[kept])
                dead = np.array(sorted(existing.values()), np.int64)
                tags = [d.lang for d in winners]
                changed = self._snapshot.changed(dead, rids, tags, units[kept])
            self._snapshot = changed
        seen = set(existing)
        outcomes: Outcomes = []
        for document in documents:
            outcomes.append("updated" if document.id in seen else "created")
            seen.add(document.id)
        return outcomes

    def delete(self, ids: Sequence[str]) -> Ids:
        unique = [id for id in dict.fromkeys(ids) if _is_unicode(id)]
        with self._writing:
            self._check_open()
            with self._database.transaction() as transaction:
                existing = transaction.rids(unique)
                transaction.delete(list(existing.values()))
                dead = np.array(sorted(existing.values()), np.int64)
                none = np.empty((0, self._snapshot.dim), np.float32)
                changed = self._snapshot.changed(dead, dead[:0], [], none)
            self._snapshot = changed
        return [id for id in unique if id in existing]

    def get(self, id: str) -> Document:
        row = self._read(lambda: self._database.row(id)) if _is_unicode(id) else None
        if row is None:
            raise DocumentNotFound(f"collection {self.name!r} holds no document {id[:80]!r}")
        return row.document()

    def search(
        self,
        vectors: Vectors,
        query: Query,
        fingerprint: str,
        query_languages: Sequence[str | None] | None,
    ) -> Hits:
        header = self._database.header
        check_fingerprint(header.name, header.fingerprint, fingerprint)
        units = unit_vectors(vectors, None, header.dim)
        languages = [None] * len(units) if query_languages is None else list(query_languages)
        if len(languages) != len(units):
            raise InputError(f"expected {len(units)} query languages, got {len(languages)}")
        for _ in range(FREE_TRIES):
            if (hits := self._found(units, query, languages)) is not None:
                return hits
        with self._writing:
            self._check_open()
            if (hits := self._found(units, query, languages)) is not None:
                return hits
        raise StoreCorrupt(f"{self._database.path} lacks rows that its index was built from")

    def _found(self, units: Vectors, query: Query, languages: Sequence[str | None]) -> Hits | None:
        """The hits, or None where a row was deleted before its text could be read."""
        ranked = rank(self._snapshot, units, query, languages)
        wanted = sorted({hit.rid for hits in ranked for hit in hits})
        rows = self._read(lambda: self._database.rows(wanted))
        if len(rows) < len(wanted):
            return None
        return [[_hit(hit, rows[hit.rid]) for hit in hits] for hits in ranked]

    def _read(self, read: Callable[[], T]) -> T:
        self._check_open()
        try:
            return read()
        except Exception:
            self._check_open()  # closed meanwhile: say that, not what it led to
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise CollectionNotFound(f"there is no collection {self.name!r}")

    def close(self) -> None:
        """Wait for the writer, then release the files."""
        self._release(lambda: None)

    def retire(self, away: Path) -> None:
        """Rename the directory to `away` while nothing can be written, then release the files."""
        self._release(lambda: self.directory.rename(away))

    def _release(self, first: Callable[[], object]) -> None:
        with self._writing:
            self._check_open()
            # Before the rename: a reader that fails because of it must find the reason.
            self._closed = True
            try:
                first()
            except BaseException:
                self._closed = False
                raise
            self._database.close()


def _is_unicode(id: str) -> bool:
    """Whether an id can be stored at all; one that cannot does not exist."""
    try:
        id.encode()
    except UnicodeEncodeError:
        return False
    return True


def _hit(ranked: Ranked, row: Row) -> Hit:
    d = row.document()
    return Hit(d.id, d.text, d.lang, ranked.score, ranked.cosine, d.metadata)
