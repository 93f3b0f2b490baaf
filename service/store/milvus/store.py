"""The store over Milvus: collections, writes and reads; searches are ranked in ranking.py.

Writes of one process to one collection come one after another: what a write says was there before
is true then, and Milvus Lite asks for it. Between processes Milvus keeps each write whole.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

import numpy as np

from mexma.errors import (
    CollectionNotFound,
    DocumentNotFound,
    InputError,
    StoreError,
    StoreFailed,
    StoreUnsupported,
)
from service.store.admission import (
    check_dim,
    check_document,
    check_fingerprint,
    check_name,
    check_same,
    is_unicode,
    unit_vectors,
)
from service.store.cursors import Cursors
from service.store.hits import explained
from service.store.milvus import pages
from service.store.milvus.connection import Connection
from service.store.milvus.expressions import ALL, expression
from service.store.milvus.migrations import MilvusMigrations
from service.store.milvus.ranking import Ranker
from service.store.milvus.rows import (
    DOCUMENT_FIELDS,
    PREFIX,
    Stamp,
    document_of,
    key_of,
    our_name,
    parts,
    row_of,
)
from service.store.milvus.sides import SERVING, Sides
from service.store.milvus.tally import Tally
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

LEAST_DIM = 2
IndexType = Literal["FLAT", "HNSW"]
FREE_TRIES = 3


class MilvusStore:
    """The store on a Milvus server; see Connection for the arguments.

    Connects at the first use, so it can be made while the server is away.
    """

    def __init__(
        self,
        uri: str,
        *,
        token: str = "",
        database: str = "",
        timeout_s: float = 10.0,
        index: IndexType = "FLAT",
    ):
        self._milvus = Connection(uri, token, database, timeout_s)
        self._index: IndexType = index
        self._locks: dict[str, threading.RLock] = {}
        self._sides = Sides(self._milvus)
        self.moves = MilvusMigrations(self._milvus, self._sides)
        """Collections that are moved to another encoder, while nobody writes to them."""
        self._tally = Tally(self._milvus)
        self._last_seq: dict[str, int] = {}
        # Writers that run at one time in several processes give different numbers.
        self._writer = int.from_bytes(np.random.default_rng().bytes(2), "big") % 1024

    @property
    def place(self) -> str:
        """Host and port, without what may stand before them."""
        return self._milvus.place

    def _stamp(self, name: str, fingerprint: str | None = None) -> Stamp:
        """Read at each use: another process may have dropped the collection and made it anew."""
        check_name(name)
        try:
            stamp = self._sides.stamp(name, SERVING)
        except CollectionNotFound as e:
            if (found := self._sides.answering(name)) is None:
                raise CollectionNotFound(f"there is no collection {name!r}") from e
            stamp = found
        if fingerprint is not None:
            check_fingerprint(name, stamp.fingerprint, fingerprint)
        return stamp

    def _lock(self, name: str) -> threading.RLock:
        return self._locks.setdefault(name, threading.RLock())

    def create(self, name: str, dim: int, fingerprint: str) -> CollectionInfo:
        check_name(name)
        check_dim(dim)
        if dim < LEAST_DIM:
            raise InputError(f"a collection's dim is {LEAST_DIM} at least in Milvus, got {dim}")
        with self._lock(name):
            try:
                return check_same(self.describe(name), dim, fingerprint)
            except CollectionNotFound:
                pass
            try:
                self._milvus.create(Stamp.new(name, dim, fingerprint, self._index))
            except StoreFailed:
                # Made by another process in this moment, which is as good if it is the same.
                try:
                    return check_same(self.describe(name), dim, fingerprint)
                except CollectionNotFound:
                    pass
                raise
            return check_same(self.describe(name), dim, fingerprint)

    def list(self) -> list[CollectionInfo]:
        infos = []
        for milvus in self._milvus.collections():
            if milvus.startswith(PREFIX) and (name := our_name(milvus)):
                try:
                    infos.append(self.describe(name))
                except CollectionNotFound:
                    continue  # dropped meanwhile
                except StoreError as e:
                    if type(e) is not StoreError:  # else it is not one of ours
                        raise
        return sorted(infos, key=lambda info: info.name)

    def describe(self, name: str) -> CollectionInfo:
        stamp = self._stamp(name)
        counts = self._tally.of(stamp)
        return CollectionInfo(
            name=name,
            dim=stamp.dim,
            fingerprint=stamp.fingerprint,
            count=sum(counts.values()),
            languages=counts,
            index_state="exact" if stamp.index == "FLAT" else "approximate",
            created_at=stamp.created_at,
        )

    def drop(self, name: str) -> None:
        with self._lock(name):
            stamp = self._stamp(name)
            for beside in self._sides.beside(name):
                self._sides.drop(beside)  # first: nothing would lead to it any more
            self._sides.drop(stamp)
            self._tally.forget(stamp)
            self._last_seq.pop(stamp.incarnation, None)

    def upsert(
        self, name: str, documents: Sequence[Document], vectors: Vectors, fingerprint: str
    ) -> Outcomes:
        stamp = self._stamp(name, fingerprint)
        metadata = [check_document(document, item) for item, document in enumerate(documents)]
        unit_vectors(vectors, len(documents), stamp.dim)
        last: dict[str, dict[str, Any]] = {}
        for item, document in enumerate(documents):
            row = row_of(document, item, metadata[item], vectors[item])
            last.pop(row["key"], None)  # so that the order is that of the last writes
            last[row["key"]] = row
        if not last:
            return []
        with self._lock(name):
            existing = set(self._milvus.rows(stamp, list(last), []))
            for row, seq in zip(last.values(), self._seqs(stamp, len(last)), strict=True):
                row["seq"], row[stamp.vector] = seq, row.pop("vector").tolist()
            try:
                for part in parts(list(last.values()), stamp.dim):
                    self._milvus.call("upsert", stamp, data=part)
            finally:
                self._tally.written(stamp)
        outcomes: Outcomes = []
        for document in documents:
            key = key_of(document.id)
            outcomes.append("updated" if key in existing else "created")
            existing.add(key)
        return outcomes

    def _seqs(self, stamp: Stamp, n: int) -> range:
        """Numbers for n writes: above all before in this process, and by the clock between them."""
        if stamp.incarnation not in self._last_seq:
            # A clock that was set back since the last write must not put the next before it.
            last = time.time_ns()
            while ahead := self._milvus.query(stamp, f"seq > {last}", ["seq"]):
                last = max(row["seq"] for row in ahead)
            self._last_seq[stamp.incarnation] = last
        first = max(self._last_seq[stamp.incarnation] // 1024 + 1, time.time_ns() // 1024)
        found = range(first * 1024 + self._writer, (first + n) * 1024 + self._writer, 1024)
        self._last_seq[stamp.incarnation] = found[-1]
        return found

    def delete(self, name: str, ids: Sequence[str]) -> Ids:
        unique = [id for id in dict.fromkeys(ids) if is_unicode(id)]
        with self._lock(name):
            stamp = self._stamp(name)
            existing = self._milvus.rows(stamp, [key_of(id) for id in unique], [])
            if existing:
                try:
                    self._milvus.call("delete", stamp, ids=list(existing))
                finally:
                    self._tally.written(stamp)
        return [id for id in unique if key_of(id) in existing]

    def delete_where(self, name: str, selection: Selection) -> int:
        with self._lock(name):
            stamp, where = self._stamp(name), expression(selection)
            count = self._milvus.count(stamp, where)
            if count:
                try:
                    self._milvus.call("delete", stamp, filter=where)
                finally:
                    self._tally.written(stamp)
        return count

    def get(self, name: str, id: str) -> Document:
        stamp = self._stamp(name)
        key = key_of(id) if is_unicode(id) else ""
        row = self._milvus.rows(stamp, [key], DOCUMENT_FIELDS).get(key) if key else None
        if row is None:
            raise DocumentNotFound(f"collection {name!r} holds no document {id[:80]!r}")
        return document_of(row)

    def count(self, name: str, selection: Selection) -> int:
        return self._milvus.count(self._stamp(name), expression(selection))

    def scroll(
        self,
        name: str,
        selection: Selection,
        limit: int,
        cursor: str | None = None,
        *,
        vectors: bool = False,
    ) -> Page:
        if limit < 1:
            raise InputError(f"limit must be at least 1, got {limit}")
        stamp = self._stamp(name)
        cursors = Cursors(stamp.incarnation)
        after = -1 if cursor is None else cursors.read(cursor)
        fields = [*DOCUMENT_FIELDS, stamp.vector] if vectors else DOCUMENT_FIELDS
        placed, more = pages.page(self._milvus, stamp, expression(selection), after, limit)
        rows = self._milvus.rows(stamp, [key for _, key in placed], fields)
        # One that was written anew or deleted in between is on a later page, or on none.
        found = [rows[key] for seq, key in placed if key in rows and rows[key]["seq"] == seq]
        given = np.array([row[stamp.vector] for row in found], np.float32) if vectors else None
        return Page(
            [document_of(row) for row in found],
            None if given is None else given.reshape(-1, stamp.dim),
            cursors.write(placed[-1][0]) if more else None,
        )

    def search(
        self,
        name: str,
        vectors: Vectors,
        query: Query,
        fingerprint: str,
        query_languages: Sequence[str | None] | None = None,
    ) -> Hits:
        found = self.explain(name, vectors, query, fingerprint, query_languages)
        return [one.hits for one in found]

    def explain(
        self,
        name: str,
        vectors: Vectors,
        query: Query,
        fingerprint: str,
        query_languages: Sequence[str | None] | None = None,
    ) -> Explanations:
        stamp = self._stamp(name, fingerprint)
        units = unit_vectors(vectors, None, stamp.dim)
        languages = [None] * len(units) if query_languages is None else list(query_languages)
        if len(languages) != len(units):
            raise InputError(f"expected {len(units)} query languages, got {len(languages)}")
        ranker = Ranker(self._milvus, stamp, lambda: self._tally.of(stamp))
        for tries_left in reversed(range(FREE_TRIES)):
            total = self._milvus.count(stamp, ALL)
            rankings = ranker.rank(units, query, languages, total)
            seqs = {hit.key: hit.seq for ranking in rankings for hit in ranking.hits}
            rows = self._milvus.rows(stamp, list(seqs), DOCUMENT_FIELDS)
            rows = {key: row for key, row in rows.items() if row["seq"] == seqs[key]}
            if len(rows) == len(seqs) or not tries_left:
                break  # else hits were written anew or deleted meanwhile: search again
        documents = {key: document_of(row) for key, row in rows.items()}
        return [explained(r, [documents.get(hit.key) for hit in r.hits], total) for r in rankings]

    def back_up(self, name: str) -> Backup:
        self._unsupported(name)

    def backups(self, name: str) -> BackupList:
        self._unsupported(name)

    def restore(self, name: str, id: str) -> CollectionInfo:
        self._unsupported(name)

    def remove_backup(self, name: str, id: str) -> None:
        self._unsupported(name)

    def _unsupported(self, name: str) -> NoReturn:
        check_name(name)
        raise StoreUnsupported(
            "collections are kept in Milvus, whose own tool (milvus-backup) backs them up; "
            "mexma-index copy makes an embedded copy"
        )

    def close(self) -> None:
        self._milvus.close()
