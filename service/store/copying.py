"""A collection copied from any store to any other, and the copy compared with what it is of.

Only the protocol is used, so it leads from the embedded store to Milvus and back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from mexma.errors import StoreError
from service.store.protocol import Document, KeepsCanaries, Selection, Store, Vectors

ROWS = 1_000

Progress = Callable[[int], object]


def copy_collection(source: Store, target: Store, name: str, progress: Progress) -> int:
    """Copy all documents with their vectors, in the order of writing.

    Begun again after an interruption it writes the same documents again: nothing is there twice.
    Returns how many were copied; what the target has beside them stays.
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


def verify_copy(source: Store, target: Store, name: str, progress: Progress) -> int:
    """Read both once and compare every document and vector, bit by bit.

    A copy writes in the order of the source, so both are walked side by side and never held in
    memory. Returns how many are equal; raises StoreError with the first that is missing or differs.
    """
    theirs, verified = _rows(target, name), 0
    for document, vector in _rows(source, name):
        # What the target has beside the copy was written before it.
        found = next((row for row in theirs if row[0].id == document.id), None)
        if found is None:
            raise StoreError(f"the copy of {name!r} lacks document {document.id[:80]!r}")
        if found[0] != document or not np.array_equal(found[1], vector):
            what = "vector" if found[0] == document else "document"
            raise StoreError(f"the copy of {name!r} has another {what} {document.id[:80]!r}")
        verified += 1
        progress(1)
    return verified


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
