"""The truth of one collection: an SQLite file. Everything else can be rebuilt from it.

    Database.create(path, header)    a new file, complete on disk when it returns
    Database.open(path)              an existing one, or StoreCorrupt naming it
    database.transaction()           one writer: all of it is durable on return, or none of it happened
    database.rows(rids) / row(id)    readers, not held up by the writer (WAL)
    database.vectors(rids)           of rows, as they were given
    database.scan()                  all there is to search by, every row checked against its checksum

A row is never changed: an update deletes it and inserts another under a rid that was never used
before. So a rid means one text and one vector for ever, whoever remembers it, and rids are also
the order of writes: what an index built up to rid R has missed is the rows above R, and what it
holds too much is those of its rids that are gone.

Refuses to know: FAISS, languages, ranking.
"""

from __future__ import annotations

import base64
import json
import os
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mexma.errors import StoreCorrupt, StoreError, StoreFailed
from service.store import wal
from service.store.index import Index
from service.store.protocol import Document, Vectors
from service.store.steps import reached

APPLICATION_ID = 0x4D58_4D41  # "MXMA", in the file's header: what kind of SQLite file this is
SCHEMA_VERSION = 1
SCAN_ROWS = 4_096
BACKUP_PAGES = 1_024
VARIABLES = 500  # SQLite's own limit on "?" in a statement was 999 before 3.32

SELECT_ROW = "SELECT rid, id, lang, text, metadata FROM documents"
SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE header (content TEXT NOT NULL, checksum INTEGER NOT NULL) STRICT;
CREATE TABLE documents (
    rid INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    lang TEXT NOT NULL,
    text TEXT NOT NULL,
    metadata TEXT NOT NULL,
    checksum INTEGER NOT NULL,
    vector BLOB NOT NULL  -- float32, little-endian; last, so that reading a text skips it
) STRICT;
"""


@dataclass(frozen=True)
class Header:
    """What a collection is, written once. created_at: RFC 3339, UTC.

    canaries: vectors of fixed sentences by its encoder, as `Header.pack` writes them; "" for none.
    """

    name: str
    dim: int
    fingerprint: str
    created_at: str
    canaries: str = ""

    @staticmethod
    def pack(vectors: Vectors | None) -> str:
        """Base64 of the little-endian float32 components of vectors `[n, dim]`."""
        if vectors is None:
            return ""
        return base64.b64encode(vectors.astype("<f4").tobytes()).decode()

    def canary_vectors(self) -> Vectors | None:
        """float32 `[n, dim]`, as they were packed."""
        if not self.canaries:
            return None
        numbers = np.frombuffer(base64.b64decode(self.canaries), "<f4")
        return numbers.astype(np.float32, copy=False).reshape(-1, self.dim)


class Row(NamedTuple):
    """A stored document as its columns; metadata is JSON text."""

    rid: int
    id: str
    lang: str
    text: str
    metadata: str

    def document(self) -> Document:
        # Most have none, and reading that is half the work of a hit.
        metadata = {} if self.metadata == "{}" else json.loads(self.metadata)
        return Document(self.id, self.text, self.lang, metadata)


class Scanned(NamedTuple):
    """Some rows: rids int64 `[n]`, language tags, vectors float32 `[n, dim]`, metadata."""

    rids: Index
    tags: list[str]
    vectors: Vectors
    metadata: list[dict[str, Any]]


def checksum(id: str, lang: str, text: str, metadata: str, vector: bytes) -> int:
    """CRC-32 over a row's content; SQLite itself does not notice a flipped bit in a value."""
    value = 0
    for part in (id, lang, text, metadata):
        encoded = part.encode()
        value = zlib.crc32(len(encoded).to_bytes(8, "little"), value)
        value = zlib.crc32(encoded, value)
    return zlib.crc32(vector, value)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into the project's, naming the file."""
    try:
        yield
    except sqlite3.DatabaseError as e:
        code = getattr(e, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise StoreCorrupt(f"{path} must be an intact database, SQLite says: {e}") from e
        raise StoreFailed(f"{path} cannot be read or written, SQLite says: {e}") from e


class Transaction:
    """The writes of one transaction; obtained from `Database.transaction`."""

    def __init__(self, connection: sqlite3.Connection, path: Path):
        self._connection = connection
        self._path = path

    @property
    def open(self) -> bool:
        """Whether it can still be committed: SQLite ends some itself, as when the disk is full."""
        return self._connection.in_transaction

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """A part of the transaction that happens as a whole or not at all."""
        with translated(self._path):
            self._connection.execute("SAVEPOINT part")
            try:
                yield
            except BaseException:
                if self.open:
                    self._connection.execute("ROLLBACK TO part")
                    self._connection.execute("RELEASE part")
                raise
            self._connection.execute("RELEASE part")

    def rids(self, ids: Sequence[str]) -> dict[str, int]:
        """The rid of each of these ids that exists."""
        found: dict[str, int] = {}
        for start in range(0, len(ids), VARIABLES):
            part = ids[start : start + VARIABLES]
            marks = ",".join("?" * len(part))
            query = f"SELECT id, rid FROM documents WHERE id IN ({marks})"  # noqa: S608 marks only
            found.update(self._connection.execute(query, part))
        return found

    def delete(self, rids: Sequence[int]) -> None:
        self._connection.executemany("DELETE FROM documents WHERE rid = ?", [(r,) for r in rids])
        reached("write: rows deleted")

    def insert(
        self,
        documents: Sequence[Document],
        metadata: Sequence[str],
        vectors: Vectors,
        rids: Index | None = None,
    ) -> Index:
        """Add rows for ids that do not exist. Returns their rids, int64 `[n]`, ascending.

        rids: where they are given already, ascending and above all there ever were.
        """
        if rids is None:
            first = _last_rid(self._connection) + 1
            rids = np.arange(first, first + len(documents), dtype=np.int64)
        blobs = [vector.astype("<f4", copy=False).tobytes() for vector in vectors]
        self._connection.executemany(
            "INSERT INTO documents (rid, id, lang, text, metadata, checksum, vector)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (rid, d.id, d.lang, d.text, m, checksum(d.id, d.lang, d.text, m, b), b)
                for rid, d, m, b in zip(rids.tolist(), documents, metadata, blobs, strict=True)
            ],
        )
        reached("write: rows inserted")
        return rids

    def raise_numbers(self, last: int) -> None:
        """Give no rid up to `last` any more."""
        if _last_rid(self._connection) < last:
            self._connection.execute("DELETE FROM sqlite_sequence WHERE name = 'documents'")
            self._connection.execute("INSERT INTO sqlite_sequence VALUES ('documents', ?)", [last])


class Database:
    """One open file: one connection that writes, and as many as are needed that read."""

    def __init__(self, path: Path, header: Header, writer: sqlite3.Connection):
        self.path = path
        self.header = header
        self._writer = writer
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        self._pool = threading.Lock()

    @classmethod
    def create(cls, path: Path, header: Header) -> None:
        """Write a new, empty database; nothing of it is left to the write-ahead log."""
        with translated(path):
            connection = _connect(path, "rwc")
            try:
                connection.executescript(SCHEMA)
                content = json.dumps(asdict(header))
                connection.execute(
                    "INSERT INTO header VALUES (?, ?)", [content, zlib.crc32(content.encode())]
                )
            finally:
                connection.close()

    @classmethod
    def open(cls, path: Path, *, alone: bool = True) -> Database:
        """Open what `create` made. Raises StoreCorrupt where it is not that, whole.

        alone: no other process has it open; if one has, its log is not checked.
        """
        if not path.is_file():
            raise StoreCorrupt(f"{path} must hold a collection, there is no such file")
        if alone:
            wal.check(path)
        with translated(path):
            connection = _connect(path, "rw")
            try:
                header = _read_header(path, connection)
                # Not quick_check: an id's entry in its index may be damaged while the row is whole.
                for (finding,) in connection.execute("PRAGMA integrity_check(1)"):
                    if finding != "ok":
                        raise StoreCorrupt(
                            f"{path} must be an intact database, SQLite found: {finding}"
                        )
            except BaseException:
                connection.close()
                raise
        return cls(path, header, connection)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """All or nothing, durable when the block has been left. The caller sees to one at a time."""
        with translated(self.path):
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                reached("write: begun")
                yield Transaction(self._writer, self.path)
                reached("write: prepared")
                self._writer.execute("COMMIT")
                reached("write: committed")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    def rows(self, rids: Sequence[int]) -> dict[int, Row]:
        """Those of the rows that exist, all as of one moment: one statement, however many they are."""
        query = f"{SELECT_ROW} WHERE rid IN (SELECT value FROM json_each(?))"  # noqa: S608
        with translated(self.path), self._reading() as connection:
            found = connection.execute(query, [json.dumps(list(rids))]).fetchall()
        return {row[0]: Row(*row) for row in found}

    def row(self, id: str) -> Row | None:
        """The document of this id, if there is one."""
        with translated(self.path), self._reading() as connection:
            found = connection.execute(f"{SELECT_ROW} WHERE id = ?", [id]).fetchone()
        return Row(*found) if found else None

    def vectors(self, rids: Sequence[int]) -> dict[int, Vectors]:
        """The vectors, float32 `[dim]` each, of those of the rows that exist."""
        found: dict[int, Vectors] = {}
        with translated(self.path), self._reading() as connection:
            for rid in rids:
                row = connection.execute("SELECT vector FROM documents WHERE rid = ?", [rid])
                for (blob,) in row:
                    found[rid] = np.frombuffer(blob, "<f4").astype(np.float32, copy=False)
        return found

    def last_rid(self) -> int:
        """The highest rid that was ever given, 0 before the first."""
        with translated(self.path), self._reading() as connection:
            return _last_rid(connection)

    def scan(self) -> Iterator[Scanned]:
        """All rows by rid, in parts.

        Raises StoreCorrupt at the first row that does not verify.
        """
        width = 4 * self.header.dim
        with translated(self.path), self._reading() as connection:
            cursor = connection.execute(
                "SELECT rid, id, lang, text, metadata, vector, checksum FROM documents ORDER BY rid"
            )
            while rows := cursor.fetchmany(SCAN_ROWS):
                for rid, *content, stored in rows:
                    if len(content[-1]) != width or checksum(*content) != stored:
                        raise StoreCorrupt(
                            f"{self.path} holds row {rid} whose content does not match its checksum"
                        )
                vectors = np.frombuffer(b"".join(row[5] for row in rows), "<f4")
                yield Scanned(
                    np.array([row[0] for row in rows], np.int64),
                    [row[2] for row in rows],
                    vectors.astype(np.float32, copy=False).reshape(len(rows), -1),
                    [json.loads(row[4]) for row in rows],
                )

    def copy_to(self, path: Path, progress: Callable[[int, int], object] | None = None) -> int:
        """Write all of it, as of one moment, into a new file, durably. Returns its documents.

        progress: called with the pages done and the pages there are.
        """
        with translated(path), self._reading() as connection:
            copy = sqlite3.connect(path, isolation_level=None)
            # A read transaction keeps the copy at its moment: without it, SQLite begins anew
            # whenever the writer commits between two parts. The write-ahead log grows meanwhile.
            connection.execute("BEGIN")
            try:
                connection.execute("SELECT count(*) FROM header").fetchone()
                connection.backup(
                    copy,
                    pages=BACKUP_PAGES,
                    progress=lambda _, left, total: progress and progress(total - left, total),
                )
                count = int(copy.execute("SELECT count(*) FROM documents").fetchone()[0])
                # So that it is one file, whose hash is that of the collection.
                copy.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                copy.close()
                connection.execute("ROLLBACK")
        with path.open("rb") as file:
            os.fsync(file.fileno())
        return count

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        connection = self._take()
        try:
            yield connection
        finally:
            self._give_back(connection)

    def _take(self) -> sqlite3.Connection:
        with self._pool:
            if self._closed:
                raise StoreError(f"{self.path} is closed")
            return self._idle.pop() if self._idle else _connect(self.path, "rw")

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._pool:
            if self._closed:
                connection.close()
            else:
                self._idle.append(connection)

    def close(self) -> None:
        """Close what is idle now, and what is being read from as soon as it is given back."""
        with self._pool:
            self._closed = True
            while self._idle:
                self._idle.pop().close()
        self._writer.close()


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=30,
    )
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA cell_size_check = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _last_rid(connection: sqlite3.Connection) -> int:
    last = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'documents'").fetchone()
    return int(last[0]) if last else 0


def _read_header(path: Path, connection: sqlite3.Connection) -> Header:
    def pragma(name: str) -> Any:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]

    if pragma("application_id") != APPLICATION_ID:
        # An empty file is a valid empty database to SQLite; here it is a loss, not a start.
        raise StoreCorrupt(f"{path} must be a collection's database, its header says otherwise")
    if (version := pragma("user_version")) > SCHEMA_VERSION:
        raise StoreError(f"{path} must have schema {SCHEMA_VERSION} at most, got {version}")
    rows = connection.execute("SELECT content, checksum FROM header").fetchall()
    if len(rows) != 1 or zlib.crc32(rows[0][0].encode()) != rows[0][1]:
        raise StoreCorrupt(f"{path} must hold one header that matches its checksum, it does not")
    return Header(**json.loads(rows[0][0]))
