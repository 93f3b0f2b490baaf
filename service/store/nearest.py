"""The nearest rows of a snapshot: by scanning all that may be found, or those that an index proposes.

An approximate index is one more source of candidates, beside a scan of the rows written after it:
whatever proposes them, the order is decided by cosines computed one way, so scores do not depend
on batch size, block, or index.

`neighbourhood` brings up to date what neighbourhoods.py remembers: a row is compared with the rows
written since it was last asked about.

Refuses to know: SQLite, texts, margins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.store import scan
from service.store.index import Attached, Index, Mask, Snapshot
from service.store.neighbourhoods import BEHIND_ROWS, NONE, Remembered
from service.store.planner import plan
from service.store.protocol import NEIGHBOURHOOD, Vectors

SLACK = 8
"""Candidates fetched beyond k, so that near-ties at the border rarely need a second scan."""
GATHER_ROWS = 4_096
SCAN_QUERIES = 64
"""Queries in one scan: a product gains little from more, and other searches' threads wait for it."""


class Found(NamedTuple):
    """positions: int64 `[m]`. cosines: float32 `[m]`, best first. compared: rows looked at.

    approximate: an index chose these rows.
    """

    positions: Index
    cosines: Vectors
    compared: int
    approximate: bool = False


def nearest(
    snapshot: Snapshot, queries: Vectors, k: int, mask: Mask, *, exact: bool = True
) -> list[Found]:
    """For each query the k rows of `mask` with the highest cosine; equal ones by position.

    queries: float32 `[n, dim]` of length 1. Returns n times what was found, k rows or all
    of the mask. Not `exact`: an index may be asked, and then near ones may be missing.
    """
    matching = int(np.count_nonzero(mask))
    planned = plan(
        matching=matching,
        documents=len(snapshot),
        k=k,
        exact=exact,
        indexed=snapshot.attached is not None,
    )
    results: list[Found] = []
    for start in range(0, len(queries), SCAN_QUERIES):
        part = queries[start : start + SCAN_QUERIES]
        if planned.approximate and snapshot.attached is not None:
            proposed = _proposed(snapshot, part, planned.fetch, mask, snapshot.attached)
            results += [
                _chosen(snapshot, q, p, k, mask) for q, p in zip(part, proposed, strict=True)
            ]
        else:
            results += [Found(*found, matching) for found in _nearest(snapshot, part, k, mask)]
    return results


def _chosen(snapshot: Snapshot, query: Vectors, proposed: Index, k: int, mask: Mask) -> Found:
    """The k best of the rows an index proposed; of all, where it proposed fewer than k."""
    if len(proposed) >= k:
        return Found(*_best(snapshot, query, proposed, k), len(proposed), True)
    [found] = _nearest(snapshot, query[None], k, mask)
    return Found(*found, int(np.count_nonzero(mask)))


def _proposed(
    snapshot: Snapshot, queries: Vectors, fetch: int, mask: Mask, attached: Attached
) -> Iterator[Index]:
    """Per query, positions int64 `[m]` of candidates: the index's, and the tail's nearest."""
    bits, share = _allowed(snapshot, mask, attached)
    none: list[Index] = [np.empty(0, np.int64)] * len(queries)
    old, new = none, none
    if share:
        with snapshot.threads.take(len(queries)):
            places = [*attached.built.candidates(queries, fetch, bits, share)]
        old = [attached.positions[p] for p in places]
    if n_behind := int(np.count_nonzero(mask[attached.tail :])):
        behind = np.zeros_like(mask)
        behind[attached.tail :] = mask[attached.tail :]
        new = [p for p, _ in scan.best(snapshot, queries, min(fetch, n_behind), behind)]
    for a, b in zip(old, new, strict=True):
        yield np.concatenate([a, b])


def _allowed(
    snapshot: Snapshot, mask: Mask, attached: Attached
) -> tuple[NDArray[np.uint8] | None, float]:
    """The rows of `mask` as a bit per row of the index, None for all, and their share."""
    key = "alive" if mask is snapshot.alive else ""
    if key not in snapshot._bits:
        positions = attached.positions
        allowed = mask[: len(positions)] if attached.same else mask[positions] & (positions >= 0)
        count, bits = int(np.count_nonzero(allowed)), None
        if count < len(allowed):
            bits = np.packbits(allowed, bitorder="little")
        if not key:
            return bits, count / max(len(allowed), 1)
        snapshot._bits[key] = bits, count / max(len(allowed), 1)
    return snapshot._bits[key]


def _nearest(
    snapshot: Snapshot, queries: Vectors, k: int, mask: Mask
) -> list[tuple[Index, Vectors]]:
    available = int(np.count_nonzero(mask))
    k = min(k, available)
    results: list[tuple[Index, Vectors]] = [(np.empty(0, np.int64), np.empty(0, np.float32))]
    results *= len(queries)
    pending, fetch = (np.arange(len(queries)) if k else np.empty(0, np.int64)), k + SLACK
    while len(pending):
        if fetch >= available:
            everything = np.flatnonzero(mask)
            for q in pending:
                results[q] = _best(snapshot, queries[q], everything, k)
            break
        unsure = []
        for q, (positions, floor) in zip(
            pending, scan.best(snapshot, queries[pending], fetch, mask), strict=True
        ):
            results[q] = _best(snapshot, queries[q], positions, k)
            # A product adds in float32, in an order of its own: two unit vectors' product may be
            # off by dim * 2^-24. Only below that is a row not fetched certainly not better.
            if results[q][1][-1] <= floor + 2 * snapshot.dim * 2.0**-24:
                unsure.append(q)
        pending, fetch = np.array(unsure, np.int64), fetch * 4
    return results


def _best(snapshot: Snapshot, query: Vectors, positions: Index, k: int) -> tuple[Index, Vectors]:
    """The k best of `positions`, by cosines added in float64 and rounded to float32."""
    wide = query.astype(np.float64)
    cosines = np.empty(len(positions), np.float32)
    for start in range(0, len(positions), GATHER_ROWS):
        rows = snapshot.vectors(positions[start : start + GATHER_ROWS]).astype(np.float64)
        cosines[start : start + GATHER_ROWS] = np.einsum("nd,d->n", rows, wide).clip(-1, 1)
    order = np.lexsort((positions, -cosines))[:k]
    return positions[order], cosines[order]


def neighbourhood(snapshot: Snapshot, positions: Index, *, exact: bool = True) -> Vectors:
    """Mean cosine of each row to its 4 nearest other rows alive, float32 `[len(positions)]`.

    Over fewer where fewer exist; NaN for a row without any other. Not `exact`: an approximate
    index may have been asked for the 4.
    """
    exact = exact or snapshot.attached is None
    rows, where = np.unique(positions, return_inverse=True)
    known = snapshot.neighbourhoods
    found = known.recall(rows, snapshot.alive, snapshot.number, exact=exact)
    count = len(snapshot.rids)
    anew = found.seen < max(1, count - BEHIND_ROWS)
    behind = ~anew & (found.seen < count)
    for chosen, make in ((anew, _found_anew), (behind, _caught_up)):
        if chosen.any():
            made = make(snapshot, rows[chosen], found.at(chosen), exact)
            known.remember(rows[chosen], made, snapshot.number)
            found.put(chosen, made)
    return found.means()[where]


def _found_anew(snapshot: Snapshot, rows: Index, _: Remembered, exact: bool) -> Remembered:
    """The nearest of each row among all."""
    wanted = NEIGHBOURHOOD + 1
    near = nearest(snapshot, snapshot.vectors(rows), wanted, snapshot.alive, exact=exact)
    return _others(snapshot, rows, near, np.array([not found.approximate for found in near]))


def _caught_up(snapshot: Snapshot, rows: Index, known: Remembered, _: bool) -> Remembered:
    """The nearest of each row, of those that are known and the rows written since."""
    since = snapshot.alive.copy()
    since[: known.seen.min()] = False
    # Some have seen more than others. What belongs among a row's 4 is beaten by 3 others and the
    # row itself at most, so it is among the first 5 of any part of the rows.
    near = []
    found = nearest(snapshot, snapshot.vectors(rows), NEIGHBOURHOOD + 1, since)
    for n, new in enumerate(found):
        old = known.neighbours[n] != NONE
        unseen = new.positions >= known.seen[n]
        near.append(
            Found(
                np.concatenate([known.neighbours[n][old], new.positions[unseen]]),
                np.concatenate([known.cosines[n][old], new.cosines[unseen]]),
                new.compared,
            )
        )
    return _others(snapshot, rows, near, known.exact)


def _others(snapshot: Snapshot, rows: Index, near: Sequence[Found], exact: Mask) -> Remembered:
    """The first 4 of each that are not the row itself."""
    neighbours = np.full((len(rows), NEIGHBOURHOOD), NONE, np.int64)
    cosines = np.full((len(rows), NEIGHBOURHOOD), -np.inf, np.float32)
    for n, (row, found) in enumerate(zip(rows.tolist(), near, strict=True)):
        # With many exact duplicates a row may not be among its own nearest: then the first
        # four are as near as itself, and the fifth is what is one too many.
        others = np.flatnonzero(found.positions != row)
        best = others[np.argsort(-found.cosines[others], kind="stable")[:NEIGHBOURHOOD]]
        neighbours[n, : len(best)] = found.positions[best]
        cosines[n, : len(best)] = found.cosines[best]
    return Remembered(neighbours, cosines, np.full(len(rows), len(snapshot.rids)), exact)
