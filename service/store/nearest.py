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
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.store import scan
from service.store.index import Attached, Index, Mask, Snapshot
from service.store.neighbourhoods import BEHIND_ROWS, NONE, Remembered
from service.store.planner import plan
from service.store.protocol import NEIGHBOURHOOD, RECALL, Vectors

SLACK = 8
"""Candidates fetched beyond k, so that near-ties at the border rarely need a second scan."""
GATHER_ROWS = 4_096
"""Widened to float64 at a time: 13 MB of 384 dimensions."""
ROUGH_ROWS = 65_536
"""Gathered at once, 100 MB; what is more is compared exactly, some at a time."""
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
    snapshot: Snapshot,
    queries: Vectors,
    k: int,
    mask: Mask,
    *,
    exact: bool = True,
    recall: float = RECALL,
) -> list[Found]:
    """For each query the k rows of `mask` with the highest cosine; equal ones by position.

    queries: float32 `[n, dim]` of length 1. Returns n times what was found, k rows or all
    of the mask. Not `exact`: an index may be asked, and then near ones may be missing; recall: how
    many of them need not be.
    """
    matching = snapshot.count(mask)
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
            results += _asked(
                snapshot, part, k, mask, snapshot.attached, fetch=planned.fetch, recall=recall
            )
        else:
            results += [Found(*found, matching) for found in _nearest(snapshot, part, k, mask)]
    return results


def _asked(
    snapshot: Snapshot,
    queries: Vectors,
    k: int,
    mask: Mask,
    attached: Attached,
    *,
    fetch: int,
    recall: float,
) -> list[Found]:
    """The k best of `fetch` rows an index proposes and of the tail; of all, where these are fewer."""
    allowed, share = _allowed(snapshot, mask, attached)
    proposed = np.empty((len(queries), 0), np.int64)
    if share:
        with snapshot.threads.take(len(queries)):
            places = attached.built.candidates(queries, fetch, allowed, share, recall)
        proposed = np.where(places < 0, -1, attached.positions[places])
    positions, cosines = _best(snapshot, queries, proposed, k)
    counts = np.count_nonzero(proposed >= 0, axis=1)
    behind = int(np.count_nonzero(mask[attached.tail :]))
    if behind:
        tail = _nearest(snapshot, queries, k, mask, attached.tail)
        positions = np.hstack([positions, np.stack([found for found, _ in tail])])
        cosines = np.hstack([cosines, np.stack([scores for _, scores in tail])])
        order = np.lexsort((positions, -cosines))[:, :k]
        positions, cosines = _along(positions, order), _along(cosines, order)
    results = []
    for row, compared in enumerate((counts + behind).tolist()):
        if compared >= k:
            results.append(Found(positions[row], cosines[row], compared, True))
        else:
            [found] = _nearest(snapshot, queries[row : row + 1], k, mask)
            results.append(Found(*found, snapshot.count(mask)))
    return results


def _allowed(
    snapshot: Snapshot, mask: Mask, attached: Attached
) -> tuple[NDArray[np.uint8] | None, float]:
    """The rows of `mask` as a bit per row of the index, None for all, and their share."""
    positions = attached.positions
    if mask is snapshot.alive:
        return attached.bits, attached.alive / max(len(positions), 1)
    allowed = mask[: len(positions)] if attached.same else mask[positions] & (positions >= 0)
    count, bits = int(np.count_nonzero(allowed)), None
    if count < len(allowed):
        bits = np.packbits(allowed, bitorder="little")
    return bits, count / max(len(allowed), 1)


def _nearest(
    snapshot: Snapshot, queries: Vectors, k: int, mask: Mask, first: int = 0
) -> list[tuple[Index, Vectors]]:
    """Per query the k best rows of the mask at positions from `first` on, or all of them."""
    available = int(np.count_nonzero(mask[first:])) if first else snapshot.count(mask)
    k = min(k, available)
    results: list[tuple[Index, Vectors]] = [(np.empty(0, np.int64), np.empty(0, np.float32))]
    results *= len(queries)
    pending, fetch = (np.arange(len(queries)) if k else np.empty(0, np.int64)), k + SLACK
    while len(pending):
        if fetch >= available:
            everything = np.flatnonzero(mask[first:]) + first
            for q in pending:
                positions, cosines = _exactly(snapshot, queries[q][None], everything[None])
                results[q] = positions[0, :k], cosines[0, :k]
            break
        found = [*scan.best(snapshot, queries[pending], fetch, mask, first)]
        floors = np.array([floor for _, floor in found])
        positions, cosines = _exactly(
            snapshot, queries[pending], np.stack([rows for rows, _ in found])
        )
        for n, q in enumerate(pending):
            results[q] = positions[n, :k], cosines[n, :k]
        pending, fetch = pending[cosines[:, k - 1] <= floors + _slip(snapshot.dim)], fetch * 4
    return results


def _slip(dim: int) -> float:
    """How much a row that was left out may be better than it scored.

    A product adds in float32, in an order of its own: two unit vectors' product may be off by
    dim * 2^-24. Only below that is a row not fetched certainly not better.
    """
    return 2 * dim * 2.0**-24


def _best(snapshot: Snapshot, queries: Vectors, proposed: Index, k: int) -> tuple[Index, Vectors]:
    """Per query the k best of `proposed`, int64 `[n, m]`, -1 for none; positions and cosines
    `[n, min(k, m)]`, where none are left -1 and -inf."""
    fetch = k + SLACK
    if fetch >= proposed.shape[1] or proposed.size > ROUGH_ROWS:
        positions, cosines = _exactly(snapshot, queries, proposed)
        return positions[:, :k], cosines[:, :k]
    # Exact cosines take three times as long as products, so most are left out by those.
    rows = _rows(snapshot, proposed)
    rough = np.matmul(rows, queries[:, :, None])[:, :, 0]
    rough[proposed < 0] = -np.inf
    order = np.argpartition(-rough, fetch, axis=1)
    chosen = order[:, :fetch]
    positions, cosines = _exactly(
        snapshot, queries, _along(proposed, chosen),
        _along(rows, chosen),
    )  # fmt: skip
    floors = _along(rough, order[:, fetch:]).max(axis=1)
    unsure = np.flatnonzero(cosines[:, k - 1] <= floors + _slip(snapshot.dim))
    if len(unsure):
        again = _exactly(snapshot, queries[unsure], proposed[unsure], rows[unsure])
        positions[unsure], cosines[unsure] = (found[:, :fetch] for found in again)
    return positions[:, :k], cosines[:, :k]


def _exactly(
    snapshot: Snapshot, queries: Vectors, positions: Index, rows: Vectors | None = None
) -> tuple[Index, Vectors]:
    """Positions int64 `[n, m]`, -1 for none, in the order of their cosines, and these.

    Cosines are added in float64, in one order wherever they are asked for, and rounded to
    float32. rows: the vectors, float32 `[n, m, dim]`, if they are there already.
    """
    cosines = np.empty(positions.shape, np.float32)
    for part in _parts(*positions.shape):
        some = _rows(snapshot, positions[part]) if rows is None else rows[part]
        asked = queries[part[0]].astype(np.float64)
        cosines[part] = np.einsum("nmd,nd->nm", some.astype(np.float64), asked).clip(-1, 1)
    cosines[positions < 0] = -np.inf
    order = np.lexsort((positions, -cosines))
    return _along(positions, order), _along(cosines, order)


def _parts(queries: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """Of a table of so many, parts of GATHER_ROWS entries at most."""
    together = max(1, GATHER_ROWS // max(rows, 1))
    for query in range(0, queries, together):
        for row in range(0, rows, GATHER_ROWS):
            yield slice(query, query + together), slice(row, row + GATHER_ROWS)


def _rows(snapshot: Snapshot, positions: Index) -> Vectors:
    """The vectors at positions int64 `[n, m]`, float32 `[n, m, dim]`; any where there is none."""
    return snapshot.vectors(positions.ravel().clip(0)).reshape(*positions.shape, snapshot.dim)


def _along(values: Any, chosen: Index) -> Any:
    """Of each row of `values`, `[n, m, ...]`, the entries `chosen`, int64 `[n, k]`."""
    return values[np.arange(len(chosen))[:, None], chosen]


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
