"""What ranking is in any store: which rows share a filter, the order by score, mutual neighbours.

Pure, over cosines and tags. Refuses to know: where documents are, and how the nearest are found; the
embedded store (ranking.py) and Milvus (milvus/ranking.py) bring those. The meaning of each choice is
told in `protocol.Query`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from mexma.neighbours import margin
from service.store.index import Index
from service.store.protocol import (
    UNDETERMINED,
    Document,
    Explained,
    Hit,
    Path,
    Query,
    Terms,
    Vectors,
    primary,
)

RERANK_FACTOR, RERANK_AT_LEAST = 10, 100


@dataclass(frozen=True, kw_only=True)
class Scored:
    """score: cosine or margin, what it was ranked by."""

    score: float
    terms: Terms
    mutual: bool | None = None


H = TypeVar("H", bound=Scored)
K = TypeVar("K")


class Ranking(NamedTuple, Generic[H]):
    """What was found for one query; see protocol.Explained."""

    hits: list[H]
    path: Path
    matching: int
    candidates: int


def pool(query: Query, all_of_them: int) -> int:
    """How many candidates by cosine are looked at. all_of_them: where each has to be."""
    if query.score == "cosine":
        return query.k
    return all_of_them if query.exact else max(RERANK_FACTOR * query.k, RERANK_AT_LEAST)


def known_languages(languages: Sequence[str | None]) -> list[str | None]:
    """The same, with None also for what could not be told."""
    return [None if tag in (None, UNDETERMINED) else tag for tag in languages]


def by_primary(languages: Sequence[str | None]) -> dict[str | None, list[int]]:
    """The places of each primary subtag, and of None."""
    places: dict[str | None, list[int]] = defaultdict(list)
    for place, tag in enumerate(languages):
        places[primary(tag) if tag else None].append(place)
    return places


def by_excluded(query: Query, known: Sequence[str | None]) -> dict[str | None, list[int]]:
    """The rows that share a filter, by the primary subtag that it leaves out."""
    return by_primary(known if query.exclude_query_language else [None] * len(known))


def best(
    query: Query,
    cosines: Vectors,
    written: Index,
    around_query: np.float32 | None,
    around: Vectors | None,
) -> list[tuple[int, float, Terms]]:
    """The places of the best k of one row's candidates, each with its score, above the threshold.

    cosines: float32 `[m]`. written: int64 `[m]`, the order of writing, which decides between equal
    ones. around_query, around: mean cosines of the query's and each candidate's neighbourhoods,
    NaN for one that has none; None where they do not count.
    """
    scores = cosines
    if around_query is not None and around is not None:
        around = np.where(np.isnan(around), around_query, around)
        scores = margin(cosines, np.full_like(cosines, around_query), around)
    order = np.lexsort((written, -scores))
    if query.score_threshold is not None:
        order = order[scores[order] >= query.score_threshold]

    order = order[: query.k]
    found = zip(order.tolist(), scores[order].tolist(), cosines[order].tolist(), strict=True)
    if around is None or around_query is None:
        return [(i, score, Terms(cosine, None, None)) for i, score, cosine in found]
    mean = float(around_query)
    return [(i, score, Terms(cosine, mean, float(around[i]))) for i, score, cosine in found]


def in_order(groups: Iterable[list[H]], written: Callable[[H], int]) -> list[H]:
    """One row's hits, the group with the best one first; none of them is empty."""
    by_best = sorted(groups, key=lambda group: (-group[0].score, written(group[0])))
    return [hit for group in by_best for hit in group]


def with_mutual(
    rankings: Sequence[Ranking[H]],
    known: Sequence[str | None],
    key: Callable[[H], K],
    rivals_of: Callable[[str | None, Mapping[K, H]], Mapping[K, float]],
) -> list[Ranking[H]]:
    """The same, and each hit knows whether a document among the others is nearer to it.

    rivals_of: for the hits of queries in one language (by `key`, each once) the cosine to the
    nearest other document in that language, or in all; -inf where there is none.
    """
    rivals: dict[str | None, Mapping[K, float]] = {}
    for language, members in by_primary(known).items():
        hits = {key(hit): hit for row in members for hit in rankings[row].hits}
        rivals[language] = rivals_of(language, hits) if hits else {}
    return [
        ranking._replace(
            hits=[
                replace(
                    hit, mutual=hit.terms.cosine >= rivals[primary(tag) if tag else None][key(hit)]
                )
                for hit in ranking.hits
            ]
        )
        for ranking, tag in zip(rankings, known, strict=True)
    ]


def explained(ranking: Ranking[H], found: Sequence[Document | None], documents: int) -> Explained:
    """A ranking with its texts. found: of each hit, None for one that is gone since; documents: of
    the collection."""
    kept = [(hit, d) for hit, d in zip(ranking.hits, found, strict=True) if d is not None]
    return Explained(
        [
            Hit(d.id, d.text, d.lang, hit.score, hit.terms.cosine, d.metadata, hit.mutual)
            for hit, d in kept
        ],
        ranking.path,
        documents,
        ranking.matching,
        ranking.matching / documents if documents else 1.0,
        ranking.candidates,
        [hit.terms for hit, _ in kept],
    )
