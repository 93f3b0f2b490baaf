"""The nearest rows of a snapshot: by scanning all that may be found, or those that an index proposes.

An approximate index is one more source of candidates, beside a scan of the rows written after it:
whatever proposes them, the order is decided by cosines computed one way, so scores do not depend
on batch size, block, or index.

Refuses to know: SQLite, texts, margins.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from service.store.index import Attached, Index, Mask, Snapshot
from service.store.planner import plan
from service.store.protocol import NEIGHBOURHOOD, Vectors

SLACK = 8
"""Candidates fetched beyond k, so that near-ties at the border rarely need a second scan."""
GATHER_ROWS = 4_096
SCAN_QUERIES = 64
"""Queries in one scan: FAISS gains nothing from more, and other searches' threads wait for it."""


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
        new = [p for p, _ in _candidates(snapshot, queries, min(fetch, n_behind), behind)]
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
            pending, _candidates(snapshot, queries[pending], fetch, mask), strict=True
        ):
            results[q] = _best(snapshot, queries[q], positions, k)
            # FAISS adds in float32, in an order of its own: two unit vectors' product may be
            # off by dim * 2^-24. Only below that is a row not fetched certainly not better.
            if results[q][1][-1] <= floor + 2 * snapshot.dim * 2.0**-24:
                unsure.append(q)
        pending, fetch = np.array(unsure, np.int64), fetch * 4
    return results


def _candidates(
    snapshot: Snapshot, queries: Vectors, fetch: int, mask: Mask
) -> Iterator[tuple[Index, float]]:
    """Per query the `fetch` best rows as FAISS sees them, and its score of the last."""
    scores, positions = [], []
    n = len(queries)
    # The stub of these two describes the C++ side, not what Python passes.
    pointer: Any = faiss.swig_ptr
    selector: Any = faiss.IDSelectorBitmap
    queries = np.ascontiguousarray(queries)
    with snapshot.threads.take(n):
        for b, block in enumerate(snapshot.blocks):
            here = mask[b * len(block) : (b + 1) * len(block)]
            if not (k := min(fetch, int(here.sum()))):
                continue
            bits = np.packbits(here, bitorder="little")
            s, i = np.empty((n, k), np.float32), np.empty((n, k), np.int64)
            faiss.knn_inner_product(
                pointer(queries),
                pointer(block),
                snapshot.dim,
                n,
                len(here),
                k,
                pointer(s),
                pointer(i),
                selector(bits),
            )
            scores.append(s)
            positions.append(i + b * len(block))
    for s, p in zip(np.hstack(scores), np.hstack(positions), strict=True):
        best = np.argpartition(-s, fetch - 1)[:fetch]
        yield p[best], float(s[best].min())


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

    Over fewer where fewer exist; NaN for a row without any other. Remembered for as long
    as this state is the newest.
    """
    exact = exact or snapshot.attached is None
    known = snapshot._neighbourhoods
    wanted = np.unique(positions).tolist()
    missing = np.array([p for p in wanted if (exact, p) not in known], np.int64)
    near = nearest(
        snapshot, snapshot.vectors(missing), NEIGHBOURHOOD + 1, snapshot.alive, exact=exact
    )
    for position, found in zip(missing, near, strict=True):
        # With many exact duplicates a row may not be among its own nearest: then the first
        # four are as near as itself, and the fifth is what is one too many.
        around = found.cosines[found.positions != position][:NEIGHBOURHOOD]
        known[exact, int(position)] = float(around.mean()) if len(around) else float("nan")
    return np.array([known[exact, int(p)] for p in positions], np.float32)
