"""From a query to rows in order: filters, languages, margins, threshold.

Refuses to know: where rows are kept and what their texts say. It works on a Snapshot and
returns rids; the meaning of each choice is told in `protocol.Query`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from service.store.hits import (
    Ranking,
    Scored,
    best,
    by_excluded,
    in_order,
    known_languages,
    pool,
    with_mutual,
)
from service.store.index import Index, Mask, Snapshot
from service.store.nearest import Found, nearest, neighbourhood
from service.store.protocol import (
    NEIGHBOURHOOD,
    Path,
    Query,
    Selection,
    Vectors,
    matches,
    primary,
)


@dataclass(frozen=True)
class Ranked(Scored):
    """rid: the row, at `position`."""

    rid: int
    position: int


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
) -> list[Ranking[Ranked]]:
    """What is found for each row of `queries` (float32 `[n, dim]` of length 1), best first.

    languages: of each row, None where it is not known.
    """
    known = known_languages(languages)
    results: dict[int, Ranking[Ranked]] = {}
    for excluded, members in by_excluded(query, known).items():
        mask = selected(snapshot, query, excluded)
        found = _rank_under(snapshot, queries[members], query, mask)
        results.update(zip(members, found, strict=True))
    rankings = [results[row] for row in range(len(queries))]
    if not query.mutual:
        return rankings
    return with_mutual(
        rankings, known, lambda hit: hit.position, partial(_rivals, snapshot, query.exact)
    )


def _rank_under(
    snapshot: Snapshot, queries: Vectors, query: Query, mask: Mask
) -> list[Ranking[Ranked]]:
    """Rank rows that share one filter."""
    matching = snapshot.count(mask)
    around: Vectors | None = None
    if query.score == "margin" and matching:
        nearby = nearest(snapshot, queries, NEIGHBOURHOOD, mask, exact=query.exact)
        around = np.array([found.cosines.mean() for found in nearby], np.float32)
    groups: list[list[list[Ranked]]] = [[] for _ in queries]
    candidates, asked_index = [0] * len(queries), [False] * len(queries)
    for group in _groups(snapshot, query, mask):
        candidates_wanted = pool(query, len(snapshot.alive))
        found = nearest(
            snapshot, queries, candidates_wanted, group, exact=query.exact, recall=query.recall
        )
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
    scan: Path = "exact" if matching == len(snapshot) else "filtered_exact"
    return [
        Ranking(in_order(g, lambda hit: hit.rid), "approximate" if a else scan, matching, n)
        for g, n, a in zip(groups, candidates, asked_index, strict=True)
    ]


def _groups(snapshot: Snapshot, query: Query, mask: Mask) -> list[Mask]:
    if not query.per_language:
        return [mask]

    def group(name: str) -> Mask:
        return mask & snapshot.where(lambda tag: primary(tag) == name)

    return [group(name) for name in snapshot.primaries(mask)]


def _ordered(
    snapshot: Snapshot, query: Query, found: Found, around_query: np.float32 | None
) -> list[Ranked]:
    """The best k of one row's candidates by score, above the threshold."""
    around: Vectors | None = None
    if around_query is not None:
        around = neighbourhood(snapshot, found.positions, exact=query.exact)
    chosen = best(query, found.cosines, found.positions, around_query, around)
    positions = found.positions[[i for i, _, _ in chosen]]
    rows = zip(snapshot.rids[positions].tolist(), positions.tolist(), chosen, strict=True)
    return [
        Ranked(rid, position, score=score, terms=terms) for rid, position, (_, score, terms) in rows
    ]


def _rivals(
    snapshot: Snapshot, exact: bool, language: str | None, hits: Mapping[int, Ranked]
) -> dict[int, float]:
    """The cosine of each hit, by position, to the nearest other document in a language."""
    positions: Index = np.array(sorted(hits), np.int64)
    others = selected(snapshot, Selection(None if language is None else frozenset([language])))
    found = nearest(snapshot, snapshot.vectors(positions), 2, others, exact=exact)
    rivals = {}
    for position, one in zip(positions.tolist(), found, strict=True):
        # Of two exact duplicates of a hit, either is as near to it as it is itself.
        rival = one.cosines[one.positions != position][:1]
        rivals[position] = float(rival[0]) if len(rival) else -np.inf
    return rivals
