"""One collection: the database that is true, and the snapshot that is searched, kept in step.

Writes that come together share a transaction (group.py): it prepares the next snapshot, commits,
and only then lets readers see it. Readers take whichever snapshot is current and no lock at all; the
texts of their hits come from the database by rid. If a hit's row was deleted in between, the
search is repeated on the newer state, the last time while holding off the writer.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from mexma.errors import CollectionNotFound, DocumentNotFound, InputError, StoreCorrupt
from service.priority import FAR_BELOW, lowered
from service.store.admission import check_document, check_fingerprint, is_unicode, unit_vectors
from service.store.approximate import Proposer
from service.store.backups import Backups
from service.store.caretaker import Caretaker
from service.store.cursors import Cursors
from service.store.database import Database, Row, Transaction
from service.store.gauges import RecallGauge
from service.store.generations import Generations
from service.store.group import Change, Draft, Group, Write
from service.store.hits import Ranking, explained
from service.store.index import Index, Snapshot
from service.store.keeper import Keeper
from service.store.memory import MemoryBudget
from service.store.protocol import (
    Backup,
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
from service.store.ranking import Ranked, rank, selected
from service.store.resident import Gpu
from service.store.steps import reached
from service.store.threads import ThreadBudget

DATABASE = "documents.sqlite"
FREE_TRIES = 3

T = TypeVar("T")


class Means(NamedTuple):
    """What the collections of one store share. recall_check_every: see RecallGauge. gpu: where
    indexes are, and whose memory `memory` then is; None for the CPU."""

    threads: ThreadBudget
    memory: MemoryBudget
    keeper: Keeper
    recall_check_every: int
    gpu: Gpu | None = None


class StandsBeside(CollectionNotFound):
    """The collection that serves is another one of this name by now."""


class Collection:
    """An open collection directory. Thread-safe; raises CollectionNotFound once closed."""

    def __init__(self, directory: Path, means: Means):
        """Open `directory` and read its rows; searches are exact until there is an index.

        Raises StoreCorrupt where the database or any row does not verify.
        """
        self.directory = directory
        self._cursors = Cursors(directory.name)
        self._keeper = means.keeper
        self._database = Database.open(directory / DATABASE)
        self._writing = threading.Lock()
        self._group = Group(self._writing, self._commit)
        self._closed = False
        self.beside = False
        """Another collection of this name serves; this one takes no writes but that one's."""
        try:
            self._snapshot = self._built(means.threads)
        except BaseException:
            self._database.close()
            raise
        header = self._database.header
        self._recall = RecallGauge(means.recall_check_every)
        self._caretaker = Caretaker(
            Generations(directory, header.dim, header.fingerprint),
            means.memory,
            means.gpu,
            current=lambda: self._snapshot,
            publish=self._attach,
            last_rid=self._database.last_rid,
            stopped=lambda: self._closed or self._keeper.stopping,
        )
        self._wake()

    def _built(self, threads: ThreadBudget) -> Snapshot:
        header = self._database.header
        snapshot, none = Snapshot(header.dim, threads), np.empty(0, np.int64)
        for rows in self._database.scan():
            try:
                units = unit_vectors(rows.vectors, None, header.dim)
            except InputError as e:
                raise StoreCorrupt(f"{self._database.path} holds a vector it refuses: {e}") from e
            snapshot = snapshot.changed(none, rows.rids, rows.tags, units, rows.metadata)
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
            index_state=self._caretaker.state(),
            created_at=header.created_at,
            recall=self._recall.recall,
            hubness=self._caretaker.hubness,
        )

    def canaries(self) -> Vectors | None:
        """As they were given when the collection was made, float32 `[n, dim]`."""
        return self._database.header.canary_vectors()

    def rows_indexed(self) -> int:
        return self._caretaker.rows_indexed

    def _attach(self, index: Proposer) -> None:
        """Let searches ask this index, from the newest state on."""
        with self._writing:
            self._snapshot = self._snapshot.attaching(index)

    def _publish(self, changed: Snapshot) -> None:
        """Let readers see what has been committed."""
        self._snapshot = changed
        reached("write: published")
        self._wake()

    def _wake(self) -> None:
        if self._caretaker.is_due():
            self._keeper.wake(("tend", self.directory), self._caretaker.tend)

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
        kept_metadata = [metadata[i] for i in kept]

        def change(transaction: Transaction, draft: Draft) -> tuple[set[str], Draft]:
            existing = transaction.rids(list(last))
            transaction.delete(list(existing.values()))
            rids = transaction.insert(winners, kept_metadata, vectors[kept])
            changed = Change(
                np.array(sorted(existing.values()), np.int64),
                rids,
                [d.lang for d in winners],
                units[kept],
                # As they will be read at the next start: tuples are lists, keys are text.
                [json.loads(one) for one in kept_metadata],
            )
            return set(existing), draft.with_change(changed)

        seen = self._group.write(len(winners), change)
        outcomes: Outcomes = []
        for document in documents:
            outcomes.append("updated" if document.id in seen else "created")
            seen.add(document.id)
        return outcomes

    def delete(self, ids: Sequence[str]) -> Ids:
        unique = [id for id in dict.fromkeys(ids) if is_unicode(id)]

        def change(transaction: Transaction, draft: Draft) -> tuple[set[str], Draft]:
            existing = transaction.rids(unique)
            dead = np.array(sorted(existing.values()), np.int64)
            return set(existing), self._without(transaction, draft, dead)

        existing = self._group.write(len(unique), change)
        return [id for id in unique if id in existing]

    def delete_where(self, selection: Selection) -> int:
        def change(transaction: Transaction, draft: Draft) -> tuple[int, Draft]:
            draft = draft.settled()
            dead = draft.base.rids[selected(draft.base, selection)]
            return len(dead), self._without(transaction, draft, dead)

        return self._group.write(1, change)

    @staticmethod
    def _without(transaction: Transaction, draft: Draft, dead: Index) -> Draft:
        """Delete rows; rids int64 `[n]`, ascending."""
        transaction.delete(dead.tolist())
        none = np.empty((0, draft.base.dim), np.float32)
        return draft.with_change(Change(dead, dead[:0], [], none, []))

    def _commit(self, writes: Sequence[Write]) -> None:
        """Make these writes durable, then let readers see them; what fails fails alone."""
        try:
            self._check_serving()
            with self._database.transaction() as transaction:
                draft = Draft(self._snapshot)
                for write in writes:
                    draft = _applied(write, transaction, draft, alone=len(writes) == 1)
                changed = draft.settled().base
        except Exception as error:  # noqa: BLE001 whatever it is, it is told to those it concerns
            # None of it happened. Perhaps one of them was to blame, as by filling the disk.
            for write in writes:
                write.error = error
                if len(writes) > 1:
                    write.error = None
                    self._commit([write])
            return
        self._publish(changed)

    def take(self, rows: Sequence[Row], vectors: Vectors, dead: Index) -> None:
        """Take over rows of another collection, with their rids, and drop those of rid `dead`.

        rows: by rid, above all there ever were here. vectors: float32 `[len(rows), dim]`.
        dead: int64 `[n]`, of rows that exist.
        """
        units = unit_vectors(vectors, len(rows), self._database.header.dim)
        with self._writing:
            self._check_open()
            with self._database.transaction() as transaction:
                replaced = [*transaction.rids([row.id for row in rows]).values()]
                dead = np.union1d(dead, np.array(replaced, np.int64))
                transaction.delete(dead.tolist())
                rids = transaction.insert(
                    [row.document() for row in rows],
                    [row.metadata for row in rows],
                    vectors,
                    np.array([row.rid for row in rows], np.int64),
                )
                changed = self._snapshot.changed(
                    dead,
                    rids,
                    [row.lang for row in rows],
                    units,
                    [json.loads(row.metadata) for row in rows],
                )
            self._publish(changed)

    def rows(self, rids: Sequence[int]) -> list[Row]:
        """Those of the rows that exist, by rid."""
        found = self._read(lambda: self._database.rows(rids))
        return [found[rid] for rid in sorted(found)]

    def snapshot(self) -> Snapshot:
        """The newest state."""
        self._check_open()
        return self._snapshot

    def last_rid(self) -> int:
        """The highest rid that was ever given or taken over."""
        return self._read(self._database.last_rid)

    def raise_numbers(self, last: int) -> None:
        """Give no rid up to `last` to what is written from now on."""
        with self._writing:
            self._check_open()
            with self._database.transaction() as transaction:
                transaction.raise_numbers(last)

    def get(self, id: str) -> Document:
        row = self._read(lambda: self._database.row(id)) if is_unicode(id) else None
        if row is None:
            raise DocumentNotFound(f"collection {self.name!r} holds no document {id[:80]!r}")
        return row.document()

    def count(self, selection: Selection) -> int:
        self._check_open()
        return int(np.count_nonzero(selected(self._snapshot, selection)))

    def scroll(
        self, selection: Selection, limit: int, cursor: str | None, *, vectors: bool
    ) -> Page:
        if limit < 1:
            raise InputError(f"limit must be at least 1, got {limit}")
        after = 0 if cursor is None else self._cursors.read(cursor)

        def page() -> Page | None:
            snapshot = self._snapshot
            rids = snapshot.rids[selected(snapshot, selection)]
            rids = rids[np.searchsorted(rids, after, side="right") :]
            wanted = rids[:limit].tolist()
            rows = self._read(lambda: self._database.rows(wanted))
            given = self._read(lambda: self._database.vectors(wanted)) if vectors else None
            if len(rows) < len(wanted) or (given is not None and len(given) < len(wanted)):
                return None
            return Page(
                [rows[rid].document() for rid in wanted],
                None if given is None else _stacked([given[rid] for rid in wanted], snapshot.dim),
                self._cursors.write(wanted[-1]) if len(rids) > limit else None,
            )

        return self._until_whole(page)

    def search(
        self,
        vectors: Vectors,
        query: Query,
        fingerprint: str,
        query_languages: Sequence[str | None] | None,
    ) -> Hits:
        found = self.explain(vectors, query, fingerprint, query_languages)
        return [one.hits for one in found]

    def explain(
        self,
        vectors: Vectors,
        query: Query,
        fingerprint: str,
        query_languages: Sequence[str | None] | None,
    ) -> Explanations:
        header = self._database.header
        check_fingerprint(header.name, header.fingerprint, fingerprint)
        units = unit_vectors(vectors, None, header.dim)
        languages: list[str | None] = [None] * len(units)
        if query_languages is not None:
            languages = list(query_languages)
        if len(languages) != len(units):
            raise InputError(f"expected {len(units)} query languages, got {len(languages)}")

        def found() -> Explanations | None:
            snapshot = self._snapshot
            rankings = rank(snapshot, units, query, languages)
            wanted = sorted({hit.rid for ranking in rankings for hit in ranking.hits})
            rows = self._read(lambda: self._database.rows(wanted))
            if len(rows) < len(wanted):
                return None
            self._sample(snapshot, rankings[:1], units[:1], query, languages[:1])
            texts = [[rows[hit.rid].document() for hit in r.hits] for r in rankings]
            return [
                explained(ranking, documents, len(snapshot))
                for ranking, documents in zip(rankings, texts, strict=True)
            ]

        return self._until_whole(found)

    def _sample(
        self,
        snapshot: Snapshot,
        rankings: list[Ranking[Ranked]],
        units: Vectors,
        query: Query,
        languages: list[str | None],
    ) -> None:
        """Have one search in so many compared with an exact one, when nobody waits for it."""
        if not any(ranking.path == "approximate" for ranking in rankings):
            return
        if query.score == "cosine" and self._recall.is_due():
            found = [hit.rid for hit in rankings[0].hits]
            precise = replace(query, exact=True, mutual=False)

            def exactly() -> list[int]:
                return [hit.rid for hit in rank(snapshot, units, precise, languages)[0].hits]

            self._keeper.wake(
                ("recall", self.directory), lambda: self._recall.check(found, exactly)
            )

    def _until_whole(self, read: Callable[[], T | None]) -> T:
        """The first result that is whole: None is one whose rows were deleted meanwhile."""
        for _ in range(FREE_TRIES):
            if (result := read()) is not None:
                return result
        with self._writing:
            self._check_open()
            if (result := read()) is not None:
                return result
        raise StoreCorrupt(f"{self._database.path} lacks rows that its index was built from")

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

    def _check_serving(self) -> None:
        """Before a write, which has waited for its turn: the one that serves may be another now."""
        self._check_open()
        if self.beside:
            raise StandsBeside(f"{self.directory} is not the one that serves {self.name!r}")

    def back_up(self, backups: Backups) -> Backup:
        def make() -> Backup:
            return backups.make(self._database, self.directory)

        return self._read(lambda: lowered(make, FAR_BELOW))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nothing is written meanwhile."""
        with self._writing:
            self._check_open()
            yield

    def end(self) -> None:
        """Release the files; only while it is held."""
        # First of all: a reader that fails because of this must find the reason.
        self._closed = True
        self._database.close()
        self._caretaker.forget()

    def close(self) -> None:
        """Wait for the writer, then release the files."""
        with self.held():
            self.end()

    def retire(self, away: Path) -> None:
        """Rename the directory to `away` while nothing can be written, then release the files."""
        with self.held():
            self._closed = True
            try:
                self.directory.rename(away)
            except BaseException:
                self._closed = False
                raise
            self.end()


def _applied(write: Write, transaction: Transaction, draft: Draft, *, alone: bool) -> Draft:
    """Make one write of a group, and return the draft with it; or without it, where it failed."""
    if alone:
        write.outcome, draft = write.change(transaction, draft)
        return draft
    try:
        with transaction.savepoint():
            write.outcome, draft = write.change(transaction, draft)
    except Exception as error:
        if not transaction.open:
            raise  # with all that came before it
        write.error = error
    return draft


def _stacked(vectors: list[Vectors], dim: int) -> Vectors:
    return np.stack(vectors) if vectors else np.empty((0, dim), np.float32)
