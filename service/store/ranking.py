"""From a query to rows in order: filters, languages, margins, threshold.

Refuses to know: where rows are kept and what their texts say. It works on a Snapshot and
returns rids; the meaning of each choice is told in `protocol.Query`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mexma.neighbours import margin
from service.store.index import Index, Mask, Snapshot
from service.store.protocol import NEIGHBOURHOOD, UNDETERMINED, Query, Vectors, matches, primary

RERANK_FACTOR = 10
RERANK_AT_LEAST = 100


class Ranked(NamedTuple):
    """rid: the row. score: cosine or margin, what it was ranked by."""

    rid: int
    score: float
    cosine: float


def rank(
    snapshot: Snapshot, queries: Vectors, query: Query, languages: Sequence[str | None]
) -> list[list[Ranked]]:
    """The hits of each row of `queries` (float32 `[n, dim]` of length 1), best first.

    languages: of each row, None where it is not known.
    """
    rows: dict[str | None, list[int]] = defaultdict(list)
    for row, language in enumerate(languages):
        rows[_excluded(query, language)].append(row)
    results: list[list[Ranked]] = [[]] * len(queries)
    for excluded, members in rows.items():
        mask = _mask(snapshot, query, excluded)
        hits = _rank_under(snapshot, queries[members], query, mask)
        for row, ranked in zip(members, hits, strict=True):
            results[row] = ranked
    return results


def _excluded(query: Query, language: str | None) -> str | None:
    """The primary subtag that a row of this language may not find; None for no exclusion."""
    known = query.exclude_query_language and language is not None and language != UNDETERMINED
    return primary(language) if known and language is not None else None


def _mask(snapshot: Snapshot, query: Query, excluded: str | None) -> Mask:
    def passes(tag: str) -> bool:
        wanted = query.languages is None or any(matches(tag, w) for w in query.languages)
        return wanted and primary(tag) != excluded

    return snapshot.where(passes)


def _rank_under(
    snapshot: Snapshot, queries: Vectors, query: Query, mask: Mask
) -> list[list[Ranked]]:
    """Rank rows that share one filter."""
    around: Vectors | None = None
    if query.score == "margin" and mask.any():
        nearby = snapshot.nearest(queries, NEIGHBOURHOOD, mask)
        around = np.array([cosines.mean() for _, cosines in nearby], np.float32)
    results: list[list[list[Ranked]]] = [[] for _ in queries]
    for group in _groups(snapshot, query, mask):
        pool = _pool(query, len(snapshot.alive))
        found = snapshot.nearest(queries, pool, group)
        if around is not None:
            # All rows' candidates at once: one scan of many rows, and each document once.
            snapshot.neighbourhood(np.concatenate([positions for positions, _ in found]))
        for row, (positions, cosines) in enumerate(found):
            scores = cosines
            if around is not None:
                scores = _margins(snapshot, positions, cosines, around[row])
            if ranked := _ordered(snapshot, query, positions, cosines, scores):
                results[row].append(ranked)
    for groups in results:
        groups.sort(key=lambda g: (-g[0].score, g[0].rid))
    return [[hit for group in groups for hit in group] for groups in results]


def _groups(snapshot: Snapshot, query: Query, mask: Mask) -> list[Mask]:
    if not query.per_language:
        return [mask]

    def group(name: str) -> Mask:
        return mask & snapshot.where(lambda tag: primary(tag) == name)

    return [group(name) for name in snapshot.primaries(mask)]


def _pool(query: Query, count: int) -> int:
    """How many candidates by cosine are looked at."""
    if query.score == "cosine":
        return query.k
    return count if query.exact else max(RERANK_FACTOR * query.k, RERANK_AT_LEAST)


def _margins(
    snapshot: Snapshot, positions: Index, cosines: Vectors, around_query: np.float32
) -> Vectors:
    around = snapshot.neighbourhood(positions)
    around = np.where(np.isnan(around), around_query, around)
    return margin(cosines, np.full_like(cosines, around_query), around)


def _ordered(
    snapshot: Snapshot, query: Query, positions: Index, cosines: Vectors, scores: Vectors
) -> list[Ranked]:
    order = np.lexsort((positions, -scores))
    if query.score_threshold is not None:
        order = order[scores[order] >= query.score_threshold]
    return [
        Ranked(int(snapshot.rids[positions[i]]), float(scores[i]), float(cosines[i]))
        for i in order[: query.k]
    ]
