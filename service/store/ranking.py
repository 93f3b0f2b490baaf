"""From a query to rows in order: filters, languages, margins, threshold.

Refuses to know: where rows are kept and what their texts say. It works on a Snapshot and
returns rids; the meaning of each choice is told in `protocol.Query`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from mexma.neighbours import margin
from service.store.index import Index, Mask, Snapshot
from service.store.nearest import Found, nearest, neighbourhood
from service.store.protocol import (
    NEIGHBOURHOOD,
    UNDETERMINED,
    Path,
    Query,
    Selection,
    Terms,
    Vectors,
    matches,
    primary,
)

RERANK_FACTOR = 10
RERANK_AT_LEAST = 100


@dataclass(frozen=True)
class Ranked:
    """rid: the row, at `position`. score: cosine or margin, what it was ranked by."""

    rid: int
    position: int
    score: float
    terms: Terms
    mutual: bool | None = None


class Ranking(NamedTuple):
    """What was found for one query; see protocol.Explained."""

    hits: list[Ranked]
    path: Path
    matching: int
    candidates: int


def selected(snapshot: Snapshot, selection: Selection | Query, excluded: str | None = None) -> Mask:
    """Bool `[count]`: the documents of a selection, without those of primary subtag `excluded`."""
    languages = selection.languages

    def passes(tag: str) -> bool:
        wanted = languages is None or any(matches(tag, w) for w in languages)
        return wanted and primary(tag) != excluded

    some = languages is not None or excluded is not None
    return snapshot.where(passes if some else None, selection.filter)


def rank(
    snapshot: Snapshot, queries: Vectors, query: Query, languages: Sequence[str | None]
) -> list[Ranking]:
    """What is found for each row of `queries` (float32 `[n, dim]` of length 1), best first.

    languages: of each row, None where it is not known.
    """
    known = [None if tag in (None, UNDETERMINED) else tag for tag in languages]
    rows: dict[str | None, list[int]] = defaultdict(list)
    for row, tag in enumerate(known):
        rows[primary(tag) if tag and query.exclude_query_language else None].append(row)
    results: dict[int, Ranking] = {}
    for excluded, members in rows.items():
        mask = selected(snapshot, query, excluded)
        found = _rank_under(snapshot, queries[members], query, mask)
        results.update(zip(members, found, strict=True))
    rankings = [results[row] for row in range(len(queries))]
    return _with_mutual(snapshot, rankings, known, query.exact) if query.mutual else rankings


def _rank_under(snapshot: Snapshot, queries: Vectors, query: Query, mask: Mask) -> list[Ranking]:
    """Rank rows that share one filter."""
    matching = int(np.count_nonzero(mask))
    around: Vectors | None = None
    if query.score == "margin" and matching:
        nearby = nearest(snapshot, queries, NEIGHBOURHOOD, mask, exact=query.exact)
        around = np.array([found.cosines.mean() for found in nearby], np.float32)
    groups: list[list[list[Ranked]]] = [[] for _ in queries]
    candidates, asked_index = [0] * len(queries), [False] * len(queries)
    for group in _groups(snapshot, query, mask):
        pool = _pool(query, len(snapshot.alive))
        found = nearest(snapshot, queries, pool, group, exact=query.exact)
        if around is not None:
            # All rows' candidates at once: one scan of many rows, and each document once.
            positions = np.concatenate([f.positions for f in found])
            neighbourhood(snapshot, positions, exact=query.exact)
        for row, one in enumerate(found):
            candidates[row] += one.compared
            asked_index[row] |= one.approximate
            ranked = _ordered(snapshot, query, one, None if around is None else around[row])
            if ranked:
                groups[row].append(ranked)
    for ranked_groups in groups:
        ranked_groups.sort(key=lambda g: (-g[0].score, g[0].rid))
    scan: Path = "exact" if matching == len(snapshot) else "filtered_exact"
    return [
        Ranking([hit for group in g for hit in group], "approximate" if a else scan, matching, n)
        for g, n, a in zip(groups, candidates, asked_index, strict=True)
    ]


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


def _ordered(
    snapshot: Snapshot, query: Query, found: Found, around_query: np.float32 | None
) -> list[Ranked]:
    """The best k of one row's candidates by score, above the threshold."""
    positions, cosines = found.positions, found.cosines
    around: Vectors | None = None
    scores = cosines
    if around_query is not None:
        around = neighbourhood(snapshot, positions, exact=query.exact)
        around = np.where(np.isnan(around), around_query, around)
        scores = margin(cosines, np.full_like(cosines, around_query), around)
    order = np.lexsort((positions, -scores))
    if query.score_threshold is not None:
        order = order[scores[order] >= query.score_threshold]

    def terms(i: int) -> Terms:
        if around is None or around_query is None:
            return Terms(float(cosines[i]), None, None)
        return Terms(float(cosines[i]), float(around_query), float(around[i]))

    return [
        Ranked(int(snapshot.rids[p]), int(p), float(scores[i]), terms(i))
        for i, p in zip(order[: query.k], positions[order[: query.k]], strict=True)
    ]


def _with_mutual(
    snapshot: Snapshot, rankings: list[Ranking], languages: Sequence[str | None], exact: bool
) -> list[Ranking]:
    """The same, and each hit knows whether a document among the others is nearer to it."""
    rows: dict[str | None, list[int]] = defaultdict(list)
    for row, tag in enumerate(languages):
        rows[primary(tag) if tag else None].append(row)
    rivals: dict[tuple[str | None, int], float] = {}
    for language, members in rows.items():
        hits = {hit.position for row in members for hit in rankings[row].hits}
        positions: Index = np.array(sorted(hits), np.int64)
        others = selected(snapshot, Selection(None if language is None else frozenset([language])))
        found = nearest(snapshot, snapshot.vectors(positions), 2, others, exact=exact)
        for position, one in zip(positions.tolist(), found, strict=True):
            # Of two exact duplicates of a hit, either is as near to it as it is itself.
            rival = one.cosines[one.positions != position][:1]
            rivals[language, position] = float(rival[0]) if len(rival) else -np.inf
    return [
        ranking._replace(
            hits=[
                replace(
                    hit,
                    mutual=hit.terms.cosine >= rivals[primary(tag) if tag else None, hit.position],
                )
                for hit in ranking.hits
            ]
        )
        for ranking, tag in zip(rankings, languages, strict=True)
    ]
