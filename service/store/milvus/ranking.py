"""From a query to hits in order, over searches of a Milvus collection.

Milvus proposes candidates; their order is decided here, by cosines of the stored vectors added in
float64, so scores are those of the embedded store and ties come in the order of writing. What
each choice means is told in `protocol.Query`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from mexma.errors import InputError, StoreUnsupported
from service.store.admission import unit_vectors
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
from service.store.milvus import connection
from service.store.milvus.connection import Connection
from service.store.milvus.expressions import ALL, both, expression, in_languages
from service.store.milvus.rows import Stamp
from service.store.protocol import NEIGHBOURHOOD, Path, Query, Vectors, primary

SLACK = 8
"""Candidates fetched beyond k, so that near-ties at the border rarely need a second search."""
ANSWER_BYTES = 8 << 20
"""Vectors that one answer of Milvus may bring; more queries are asked in parts."""
SERVER_ROUNDING = 1e-6
"""How far a float32 cosine of the server's may be from ours, beside dim * 2^-24 of the sum."""


class Found(NamedTuple):
    """keys and seqs: of the rows, best first. units: float32 `[m, dim]` of length 1.
    cosines: float32 `[m]`."""

    keys: list[str]
    seqs: list[int]
    units: Vectors
    cosines: Vectors


@dataclass(frozen=True)
class Ranked(Scored):
    """A hit before its text is read. unit: its vector, float32 `[dim]` of length 1."""

    key: str
    seq: int
    unit: Vectors


class Ranker:
    """Searches of one collection. tags: reads which languages there are."""

    def __init__(self, milvus: Connection, stamp: Stamp, tags: Callable[[], Iterable[str]]):
        self._milvus, self._stamp, self._index, self._tags = milvus, stamp, stamp.index, tags

    def rank(
        self, units: Vectors, query: Query, languages: Sequence[str | None], total: int
    ) -> list[Ranking[Ranked]]:
        """What is found for each row of `units` (float32 `[n, dim]` of length 1), best first."""
        known = known_languages(languages)
        results: dict[int, Ranking[Ranked]] = {}
        for excluded, members in by_excluded(query, known).items():
            where = expression(query, excluded)
            matching = total if where == ALL else self._milvus.count(self._stamp, where)
            size = max(
                1, ANSWER_BYTES // (4 * self._stamp.dim * min(_pool(query), connection.MAX_ROWS))
            )
            for start in range(0, len(members), size):
                part = members[start : start + size]
                found = self._rank_under(units[part], query, where, matching, total)
                results.update(zip(part, found, strict=True))
        rankings = [results[row] for row in range(len(units))]
        if not query.mutual:
            return rankings
        return with_mutual(rankings, known, lambda hit: hit.key, partial(self._rivals, query.exact))

    def _rank_under(
        self, units: Vectors, query: Query, where: str, matching: int, total: int
    ) -> list[Ranking[Ranked]]:
        """Rank rows that share one filter."""
        scan: Path = "exact" if matching == total else "filtered_exact"
        approximate = self._index != "FLAT" and not query.exact
        path: Path = "approximate" if approximate else scan
        if not matching:
            return [Ranking([], path, 0, 0) for _ in units]
        around: Vectors | None = None
        if query.score == "margin":
            near = self.nearest(units, NEIGHBOURHOOD, where, exact=query.exact)
            around = np.array([f.cosines.mean() if len(f.keys) else 0 for f in near], np.float32)
        groups: list[list[list[Ranked]]] = [[] for _ in units]
        compared = [0] * len(units)
        for group in self._groups(query, where):
            found = self.nearest(units, _pool(query), group, exact=query.exact)
            means = None if around is None else self._neighbourhoods(found, query.exact)
            for row, one in enumerate(found):
                compared[row] += len(one.keys)
                ranked = _ordered(query, one, None if around is None else around[row], means)
                if ranked:
                    groups[row].append(ranked)
        return [
            Ranking(
                in_order(g, lambda hit: hit.seq),
                path,
                matching,
                n if approximate else matching,
            )
            for g, n in zip(groups, compared, strict=True)
        ]

    def _groups(self, query: Query, where: str) -> list[str]:
        if not query.per_language:
            return [where]
        present = sorted({primary(tag) for tag in self._tags()})
        return [both(where, f'subtag == "{name}"') for name in present]

    def nearest(self, units: Vectors, k: int, where: str, *, exact: bool) -> list[Found]:
        """For each row the k documents with the highest cosine; equal ones in order of writing.

        Raises InputError where more are wanted, and exist, than Milvus returns, and
        StoreUnsupported where they cannot be compared exactly.
        """
        most = connection.MAX_ROWS
        if exact and self._index != "FLAT":
            everything = self._everything(where)
            return [self._best(everything, unit, k) for unit in units]
        results: list[Found | None] = [None] * len(units)
        pending, fetch = list(range(len(units))), min(k + SLACK, most)
        while pending:
            unsure = []
            for row, (hits, floor) in zip(
                pending, self._candidates(units[pending], fetch, where), strict=True
            ):
                found = self._best(hits, units[row], k)
                results[row] = found
                if len(hits) < fetch:
                    if self._index != "FLAT" and len(hits) < k:
                        results[row] = self._topped_up(found, units[row], k, where)
                elif k > len(hits):
                    raise InputError(
                        f"Milvus returns {most} documents for a query at most, {k} are wanted",
                        limit=most,
                    )
                elif fetch < most and found.cosines[-1] <= floor + self._rounding():
                    unsure.append(row)
            pending, fetch = unsure, min(fetch * 4, most)
        return [found for found in results if found is not None]

    def _rounding(self) -> float:
        return 2 * self._stamp.dim * 2.0**-24 + SERVER_ROUNDING

    def _candidates(
        self, units: Vectors, fetch: int, where: str
    ) -> Iterator[tuple[list[dict[str, Any]], float]]:
        """Per query up to `fetch` rows as Milvus sees them, and its cosine of the last."""
        vector = self._stamp.vector
        for hits in self._searched(units, fetch, where, ["seq", vector]):
            rows = [
                {"key": h["key"], "seq": h["entity"]["seq"], vector: h["entity"][vector]}
                for h in hits
            ]
            yield rows, min((h["distance"] for h in hits), default=-1.0)

    def _searched(self, units: Vectors, fetch: int, where: str, output: list[str]) -> Iterator[Any]:
        """Per query Milvus's answer, asked for in parts."""
        parameters = {"ef": max(64, min(2 * fetch, 32_768))} if self._index == "HNSW" else {}
        size = min(max(1, ANSWER_BYTES // (4 * self._stamp.dim * fetch)), connection.MAX_ROWS)
        for start in range(0, len(units), size):
            yield from self._milvus.call(
                "search",
                self._stamp,
                data=units[start : start + size].tolist(),
                anns_field=self._stamp.vector,
                filter="" if where == ALL else where,
                limit=fetch,
                output_fields=output,
                search_params={"metric_type": "COSINE", "params": parameters},
                consistency_level="Strong",
            )

    def _best(self, rows: list[dict[str, Any]], unit: Vectors, k: int) -> Found:
        """The k best of these rows, by cosines added in float64 and rounded to float32."""
        dim = self._stamp.dim
        given = np.array([row[self._stamp.vector] for row in rows], np.float32).reshape(-1, dim)
        units = unit_vectors(given, None, dim)
        wide = np.einsum("nd,d->n", units.astype(np.float64), unit.astype(np.float64))
        cosines = wide.astype(np.float32).clip(-1, 1)
        seqs = np.array([row["seq"] for row in rows], np.int64)
        order = np.lexsort((seqs, -cosines))[:k]
        return Found(
            [rows[i]["key"] for i in order], seqs[order].tolist(), units[order], cosines[order]
        )

    def _everything(self, where: str) -> list[dict[str, Any]]:
        rows = self._milvus.query(
            self._stamp, where, ["key", "seq", self._stamp.vector], connection.MAX_ROWS
        )
        if len(rows) >= connection.MAX_ROWS:
            raise StoreUnsupported(
                f"this collection has an approximate index in Milvus, and {connection.MAX_ROWS} documents "
                "or more match: they cannot all be compared; filter more, or leave out exact"
            )
        return rows

    def _topped_up(self, found: Found, unit: Vectors, k: int, where: str) -> Found:
        """All that match, where an approximate index found fewer than k and they are few."""
        if self._milvus.count(self._stamp, where) >= connection.MAX_ROWS:
            return found
        return self._best(self._everything(where), unit, k)

    def _neighbourhoods(self, found: Sequence[Found], exact: bool) -> dict[str, float]:
        """Mean cosine of each document found to its 4 nearest others in the whole collection, by
        key; NaN for one without any other.

        As Milvus computes cosines: for a mean no vectors need to travel.
        """
        units = {k: u for one in found for k, u in zip(one.keys, one.units, strict=True)}
        if not units:
            return {}
        vectors, k = np.stack([*units.values()]), NEIGHBOURHOOD + 1
        near: Iterable[list[tuple[str, float]]]
        if exact and self._index != "FLAT":
            exactly = self.nearest(vectors, k, ALL, exact=True)
            near = ([*zip(one.keys, one.cosines, strict=True)] for one in exactly)
        else:
            answers = self._searched(vectors, k, ALL, [])
            near = ([(h["key"], h["distance"]) for h in hits] for hits in answers)
        means = {}
        for key, neighbours in zip(units, near, strict=True):
            others = [cosine for k, cosine in neighbours if k != key]
            around = np.array(others[:NEIGHBOURHOOD], np.float32)
            means[key] = float(around.mean()) if len(around) else float("nan")
        return means

    def _rivals(
        self, exact: bool, language: str | None, hits: Mapping[str, Ranked]
    ) -> dict[str, float]:
        """The cosine of each hit, by key, to the nearest other document in a language."""
        where = ALL if language is None else both(in_languages([language]))
        units = np.stack([hit.unit for hit in hits.values()])
        rivals = {}
        for key, one in zip(hits, self.nearest(units, 2, where, exact=exact), strict=True):
            others = [c for k, c in zip(one.keys, one.cosines, strict=True) if k != key]
            rivals[key] = float(others[0]) if others else -np.inf
        return rivals


def _pool(query: Query) -> int:
    # One more than Milvus returns: it is refused where there are more than that.
    return pool(query, connection.MAX_ROWS + 1)


def _ordered(
    query: Query, found: Found, around_query: np.float32 | None, means: dict[str, float] | None
) -> list[Ranked]:
    """The best k of one row's candidates by score, above the threshold."""
    around: Vectors | None = None
    if means is not None:
        around = np.array([means[key] for key in found.keys], np.float32)
    written = np.array(found.seqs, np.int64)
    return [
        Ranked(found.keys[i], found.seqs[i], found.units[i], score=score, terms=terms)
        for i, score, terms in best(query, found.cosines, written, around_query, around)
    ]
