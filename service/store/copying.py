"""A collection copied from any store to any other, compared with what it is of, and made equal to it.

    copy_collection   write all that the source has
    verify_copy       compare it, and find what only the target has
    remove_surplus    remove that, so that what was deleted in the source is in the copy, too

In this order: nothing is removed before the rest is there and both sides were read to their ends.
Only the protocol is used, so it leads from the embedded store to Milvus and back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mexma.errors import StoreError
from service.store.protocol import Document, KeepsCanaries, Selection, Store, Vectors

ROWS = 1_000

Progress = Callable[[int], object]


def copy_collection(source: Store, target: Store, name: str, progress: Progress) -> int:
    """Copy all documents with their vectors, in the order of writing.

    Begun again after an interruption it writes the same documents again: nothing is there twice.
    Returns how many were copied. What the target has beside them stays, see remove_surplus.
    """
    info = source.describe(name)
    if isinstance(target, KeepsCanaries) and isinstance(source, KeepsCanaries):
        target.create(name, info.dim, info.fingerprint, source.canaries(name))
    else:
        target.create(name, info.dim, info.fingerprint)
    copied = 0
    for documents, vectors in _pages(source, name):
        target.upsert(name, documents, vectors, info.fingerprint)
        copied += len(documents)
        progress(len(documents))
    return copied


def verify_copy(
    source: Store, target: Store, name: str, progress: Progress
) -> tuple[int, list[str]]:
    """Read both once and compare every document and vector, bit by bit.

    A copy writes in the order of the source, so both are walked side by side, and of all that is equal
    nothing is held in memory. Returns how many are equal, and the ids of documents that only the
    target has, which were there before the copy. Raises StoreError with the first that is missing or
    differs, and where one of the two was written meanwhile.
    """
    theirs, verified = _rows(target, name), 0
    surplus: list[str] = []
    since: list[str] = []
    for document, vector in _rows(source, name):
        for row in theirs:
            if row[0].id == document.id:
                break
            # What the target had beside the copy was written before it.
            (since if verified else surplus).append(row[0].id)
        else:
            raise StoreError(f"the copy of {name!r} lacks document {document.id[:80]!r}")
        if row[0] != document or not np.array_equal(row[1], vector):
            what = "vector" if row[0] == document else "document"
            raise StoreError(f"the copy of {name!r} has another {what} {document.id[:80]!r}")
        verified += 1
        progress(1)
    (since if verified else surplus).extend(document.id for document, _ in theirs)
    if since:
        raise StoreError(
            f"document {since[0][:80]!r} of {name!r} was written to the copy, or deleted from what it "
            "is of, in the meantime; nothing was removed, copy again with nobody writing"
        )
    if surplus and (count := source.count(name, Selection())) != verified:
        raise StoreError(
            f"{verified} documents of {name!r} could be read, and there are {count}; nothing was "
            "removed, copy again with nobody writing"
        )
    return verified, surplus


def remove_surplus(target: Store, name: str, surplus: Sequence[str], progress: Progress) -> int:
    """Delete what verify_copy found too much. Returns how many documents that were."""
    removed = 0
    for start in range(0, len(surplus), ROWS):
        part = surplus[start : start + ROWS]
        removed += len(target.delete(name, part))
        progress(len(part))
    return removed


def _pages(store: Store, name: str) -> Iterator[tuple[list[Document], Vectors]]:
    cursor = None
    while True:
        page = store.scroll(name, Selection(), ROWS, cursor, vectors=True)
        if page.vectors is not None and page.documents:
            yield page.documents, page.vectors
        if (cursor := page.cursor) is None:
            return


def _rows(store: Store, name: str) -> Iterator[tuple[Document, Vectors]]:
    for documents, vectors in _pages(store, name):
        yield from zip(documents, vectors, strict=True)
