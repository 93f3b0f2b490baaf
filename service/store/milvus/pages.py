"""Rows in the order of writing. Milvus returns the rows that match in an order of its own, at most
16,384 at a time, so a page is found by narrowing a window of `seq` until all of it was returned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from service.store.milvus import connection
from service.store.milvus.connection import Connection
from service.store.milvus.expressions import ALL, both
from service.store.milvus.rows import Stamp

Placed = list[tuple[int, str]]
"""(seq, key), ascending."""


def page(
    milvus: Connection, stamp: Stamp, where: str, after: int, limit: int
) -> tuple[Placed, bool]:
    """The next `limit` rows behind `after`, and whether there are more."""
    found: Placed = []
    while len(found) <= limit:
        rows, border = _window(milvus, stamp, where, after)
        found += rows
        if border is None:
            break
        after = border
    return found[:limit], len(found) > limit


def compared(
    milvus: Connection, stamp: Stamp, other: Stamp
) -> Iterator[tuple[int, str, Literal["missing", "same", "surplus"]]]:
    """All rows of two collections by (seq, key), in order: those that `other` lacks, those that both
    have, and those that only `other` has.

    Rows that are written to `other` meanwhile do no harm where they are not beyond what was yielded.
    """
    theirs = _walk(milvus, other)
    their = next(theirs, None)
    for ours in _walk(milvus, stamp):
        while their is not None and their < ours:
            yield *their, "surplus"
            their = next(theirs, None)
        if their == ours:
            yield *ours, "same"
            their = next(theirs, None)
        else:
            yield *ours, "missing"
    while their is not None:
        yield *their, "surplus"
        their = next(theirs, None)


def _walk(milvus: Connection, stamp: Stamp) -> Iterator[tuple[int, str]]:
    after: int | None = -1
    while after is not None:
        rows, after = _window(milvus, stamp, ALL, after)
        yield from rows


def _window(milvus: Connection, stamp: Stamp, where: str, after: int) -> tuple[Placed, int | None]:
    """All rows in (after, border], and the border; None where nothing lies beyond it."""
    most = connection.MAX_ROWS
    rows, border = _between(milvus, stamp, where, after, None), None
    if len(rows) < most:
        return rows, None
    # Keys are hashes, and rows come by key where there are too many: a sample, whose quantiles
    # say where half as many as may be returned end.
    share = most / 2 / max(milvus.count(stamp, both(where, f"seq > {after}")), most)
    while len(rows) >= most:
        border = rows[min(int(len(rows) * share), len(rows) - 2)][0]
        rows, share = _between(milvus, stamp, where, after, border), 0.25
    return rows, border


def _between(
    milvus: Connection, stamp: Stamp, where: str, after: int, border: int | None
) -> Placed:
    parts = [where, f"seq > {after}"] + ([] if border is None else [f"seq <= {border}"])
    rows = milvus.query(stamp, both(*parts), ["seq"], connection.MAX_ROWS)
    return sorted((row["seq"], row["key"]) for row in rows)
