"""What a store of documents and their vectors promises, whoever keeps it.

    Store            the contract; `tests/service/store/contract/` is its meaning in code
    Document         what goes in and comes back
    Selection        which documents: by language and by metadata (service/store/filters.py)
    Query            how to search: filters, ranking, how many
    Hit              one answer; Explained says how it was found
    Page             some documents of all, and where to go on
    CollectionInfo   what a collection says about itself

Refuses to know: FAISS, SQLite, HTTP, the encoder. A store is synchronous and thread-safe: any
method may be called from any thread at any time. Errors come from `mexma.errors`.

Language tags are BCP 47. Two rules hold everywhere, and live here so that every store obeys them:
`matches` says whether a stored tag satisfies a wanted one, `primary` names the group of a tag.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mexma.errors import InputError
from service.store.filters import Filter

Vectors = NDArray[np.float32]
Score = Literal["cosine", "margin"]
Outcome = Literal["created", "updated"]

UNDETERMINED = "und"
NEIGHBOURHOOD = 4
"""Neighbours whose mean cosine a margin divides by: the k of the paper and of its mining runs."""


def primary(tag: str) -> str:
    """The primary subtag, which names a language without script or region: "pt" for "pt-BR"."""
    return tag.partition("-")[0]


def matches(tag: str, wanted: str) -> bool:
    """Whether the stored `tag` satisfies `wanted`: it is the same string, or has it as primary subtag.

    So "pt-BR" satisfies "pt-BR" and "pt", and "pt" does not satisfy "pt-BR". The comparison
    is exact, case included: whoever writes tags writes them in one form.
    """
    return wanted in (tag, primary(tag))


@dataclass(frozen=True)
class Document:
    """id: the caller's, unique in its collection. lang: BCP 47, "und" where it is not known.

    metadata: whatever JSON can hold.
    """

    id: str
    text: str
    lang: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CollectionInfo:
    """dim: components of a vector. fingerprint: of the encoder all vectors come from.

    count: documents. languages: stored tag -> documents. index_state: "exact" when every
    search compares all vectors; "building" when it does so for as long as an index is being made;
    "approximate" when there is one to ask; "corrupt" when the collection's data does not verify,
    and then the other numbers are empty and any use raises StoreCorrupt. created_at: RFC 3339,
    UTC. recall: of the exact answer, what approximate searches found lately, 0 to 1. hubness:
    skewness of how often documents are near to others, 0 without hubs. Both None where unknown.
    """

    name: str
    dim: int
    fingerprint: str
    count: int
    languages: dict[str, int]
    index_state: Literal["exact", "building", "approximate", "corrupt"]
    created_at: str
    recall: float | None = None
    hubness: float | None = None


@dataclass(frozen=True)
class Selection:
    """Which documents are meant: those that pass both.

    languages: only documents whose tag matches one of these; None is all, empty is none.
    filter: a condition on the metadata; None is no condition.
    """

    languages: frozenset[str] | None = None
    filter: Filter | None = None


LEAST_RECALL, RECALL, MOST_RECALL = 0.5, 0.98, 0.99


@dataclass(frozen=True)
class Query:
    """How to search; the same for all rows of one call.

    k: hits wanted per row, or per row and language with `per_language`. There are always k
    where k documents pass the filters and the threshold.
    languages, filter: which documents may be found, as in Selection.
    exclude_query_language: a row whose language is known finds no document of the same
    primary subtag. A row of language None or "und" excludes nothing.
    per_language: k hits for each primary subtag among the documents that pass the filters;
    a language's hits stand together, and the language with the best first hit comes first.
    score: "cosine", or "margin": the cosine divided by the mean of two averages, that of the
    query's cosines to its 4 nearest documents under the same filters, and that of the
    document's cosines to its 4 nearest other documents in the whole collection. Where fewer
    exist the average is over those; a document alone in its collection has none, and takes
    the query's; what is divided by is at least 0.05. Only the best max(10 k, 100) by cosine
    (per language with `per_language`) are ranked by margin, unless `exact`.
    score_threshold: lowest `score` to return, in the units of `score`.
    mutual: find out for each hit, which is among the k nearest to the row, whether the row is the
    nearest to it in return: no other document is nearer to the hit, by cosine, than the row's own
    vector is, stored or not; one that is as near does not count. Where the row's language is known,
    only documents of its primary subtag count as others: the question of bitext mining. With k 1
    these are mutual nearest neighbours; a later hit may be true where the row has nearer ones.
    exact: leave nothing out for speed: no approximate index, and a margin for every document.
    recall: of the exact answer, the share that an approximate index should find, 0.5 to 0.99. An index
    measures what each takes when it is built; less is faster. A store whose index has no such
    measure leaves it out of account.
    """

    k: int = 10
    languages: frozenset[str] | None = None
    exclude_query_language: bool = False
    per_language: bool = False
    score: Score = "cosine"
    score_threshold: float | None = None
    exact: bool = False
    filter: Filter | None = None
    mutual: bool = False
    recall: float = RECALL

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k must be at least 1, got {self.k}")
        if self.score not in ("cosine", "margin"):
            raise InputError(f'score must be "cosine" or "margin", got {self.score!r}')
        if self.score_threshold is not None and np.isnan(self.score_threshold):
            raise InputError("score_threshold must be a number, got NaN")
        if not LEAST_RECALL <= self.recall <= MOST_RECALL:
            raise InputError(
                f"recall must be {LEAST_RECALL} to {MOST_RECALL}, got {self.recall}; exact leaves out none"
            )


@dataclass(frozen=True)
class Hit:
    """score: what the hits were ranked by, cosine or margin. cosine: always the cosine.

    mutual: as asked for by Query.mutual, else None.
    """

    id: str
    text: str
    lang: str
    score: float
    cosine: float
    metadata: dict[str, Any]
    mutual: bool | None = None


Path = Literal["exact", "filtered_exact", "approximate"]


@dataclass(frozen=True)
class Terms:
    """What a hit's score is made of. around_query, around_document: the mean cosines that a
    margin divides by; None when ranked by cosine."""

    cosine: float
    around_query: float | None
    around_document: float | None


@dataclass(frozen=True)
class Explained:
    """One row's hits and how they were found.

    path: "exact" when all documents were compared, "filtered_exact" when all that pass the
    filters were, "approximate" when an index proposed candidates. documents: in the collection;
    matching: of these, that pass the filters; selectivity: their ratio, 1 for an empty
    collection. candidates: documents whose stored vectors were compared with the query's.
    terms: one per hit.
    """

    hits: list[Hit]
    path: Path
    documents: int
    matching: int
    selectivity: float
    candidates: int
    terms: list[Terms]


@dataclass(frozen=True)
class Page:
    """documents: in the order in which they were last written. vectors: float32 `[n, dim]` as
    they were given, None unless asked for. cursor: where to go on, None at the end."""

    documents: list[Document]
    vectors: Vectors | None
    cursor: str | None


@dataclass(frozen=True)
class Backup:
    """A copy of a collection as of one moment. count: documents. bytes: on disk, where nothing
    is shared with the collection. created_at: RFC 3339, UTC."""

    id: str
    collection: str
    created_at: str
    count: int
    dim: int
    fingerprint: str
    bytes: int


# `Store.list` hides the builtin inside the class, so the types it returns are named out here.
Outcomes = list[Outcome]
Hits = list[list[Hit]]
Explanations = list[Explained]
BackupList = list[Backup]
Ids = list[str]


class Store(Protocol):
    """Named collections of documents, each with one vector.

    A collection belongs to one encoder: `fingerprint` is checked at every write and search,
    and another one raises FingerprintMismatch. An operation on a collection that is not there
    raises CollectionNotFound, on one whose data is damaged StoreCorrupt. A store behind a server
    raises StoreUnavailable while that does not answer, and what a kind of store cannot do at all
    raises StoreUnsupported. Names are
    `[A-Za-z0-9_-]{1,64}`, anything else raises InputError; so do vectors of another shape,
    not finite or of length zero, with the item's index. When a write returns, it is durable
    and every search that starts afterwards sees it.
    """

    def create(self, name: str, dim: int, fingerprint: str) -> CollectionInfo:
        """Make an empty collection, or return the one that exists if dim and fingerprint agree.

        Raises FingerprintMismatch where the existing one has another encoder, and
        CollectionExists where it has the same encoder and another dim.
        """
        ...

    def list(self) -> list[CollectionInfo]:
        """All collections by name, damaged ones included."""
        ...

    def describe(self, name: str) -> CollectionInfo: ...

    def drop(self, name: str) -> None:
        """Remove a collection, damaged or not, with everything in it."""
        ...

    def upsert(
        self, name: str, documents: Sequence[Document], vectors: Vectors, fingerprint: str
    ) -> Outcomes:
        """Write all documents or none, and say of each whether its id was new.

        vectors: float32 `[len(documents), dim]`, of any positive length; only the direction
        counts. An id given twice is written twice, so the last one stays, and the earlier
        counts as the one that the later updates.
        """
        ...

    def delete(self, name: str, ids: Sequence[str]) -> Ids:
        """Remove all these documents together. Returns the ids that existed, in the order asked."""
        ...

    def delete_where(self, name: str, selection: Selection) -> int:
        """Remove all selected documents together. Returns how many."""
        ...

    def get(self, name: str, id: str) -> Document:
        """One document; raises DocumentNotFound."""
        ...

    def count(self, name: str, selection: Selection) -> int:
        """How many documents are selected."""
        ...

    def scroll(
        self,
        name: str,
        selection: Selection,
        limit: int,
        cursor: str | None = None,
        *,
        vectors: bool = False,
    ) -> Page:
        """The next `limit` selected documents after `cursor`, from the beginning without one.

        A document that stays as it is between the first page and the last is on exactly one of
        them; one written meanwhile is on the last pages, anew. A cursor says where to go on and
        nothing else, and may be used again; one that is not of this collection raises InputError.
        """
        ...

    def search(
        self,
        name: str,
        vectors: Vectors,
        query: Query,
        fingerprint: str,
        query_languages: Sequence[str | None] | None = None,
    ) -> Hits:
        """For each row of `vectors` (float32 `[n, dim]`) its hits, best first.

        query_languages: one per row, used where `query` excludes them; None is all unknown.
        All rows and hits of a call come from one state of the collection. Equal scores come
        in the order in which the documents were last written.
        """
        ...

    def explain(
        self,
        name: str,
        vectors: Vectors,
        query: Query,
        fingerprint: str,
        query_languages: Sequence[str | None] | None = None,
    ) -> Explanations:
        """What `search` finds, and how, per row."""
        ...

    def back_up(self, name: str) -> Backup:
        """Copy a collection as of one moment, while it is read and written; durable on return."""
        ...

    def backups(self, name: str) -> BackupList:
        """The backups of a collection, which need not exist any more, oldest first."""
        ...

    def restore(self, name: str, id: str) -> CollectionInfo:
        """Put a backup in the place of the collection, damaged or dropped ones too.

        What was written since the backup is gone. Searches are answered by the one or the other
        throughout; a kill leaves the one or the other. Raises BackupNotFound, and StoreCorrupt
        for a backup that does not verify; then the collection is as it was.
        """
        ...

    def remove_backup(self, name: str, id: str) -> None:
        """Raises BackupNotFound."""
        ...

    def close(self) -> None:
        """Release everything. What was written stays; the store cannot be used afterwards."""
        ...


@runtime_checkable
class KeepsCanaries(Protocol):
    """A store that keeps, with each collection, vectors of fixed sentences by which its encoder
    can be recognised; service/canaries.py has the sentences."""

    def create(
        self, name: str, dim: int, fingerprint: str, canaries: Vectors | None = None
    ) -> CollectionInfo: ...

    def canaries(self, name: str) -> Vectors | None:
        """float32 `[n, dim]` as they were given; None where there are none."""
        ...
