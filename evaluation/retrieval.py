"""Who is found: each sentence looks for its translation in a pool, exactly.

Two ways to score. Plain cosine; and the ratio margin (`mexma.neighbours.margin`), the cosine
over the mean of both sentences' cosines to their own k nearest neighbours, taken over the
whole pools. The best of the *whole* pool wins in both, with no shortlist, so nothing depends
on an index. Ties go to the lower index.

A hit is decided by text: a found sentence with the words of the right one is right, so
duplicates in a pool are no errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mexma.errors import InputError
from mexma.neighbours import K, best_by_cosine, best_by_margin

Float = NDArray[np.float32]
Index = NDArray[np.int64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class Errors:
    """What went wrong in one direction, in per cent of the queries."""

    margin_percent: float
    cosine_percent: float
    queries: int


def is_wrong(found: Index, gold: Sequence[str], pool: Sequence[str]) -> Bool:
    """For each query, bool `[n]`: does what it found differ from its gold text?

    found: int64 `[n]`, indices into `pool`. gold: the n right texts.
    """
    return np.array([pool[i] != text for i, text in zip(found, gold, strict=True)], np.bool_)


def percent(wrong: Bool) -> float:
    """Share of true ones, in per cent."""
    return 100 * float(wrong.mean())


def xsim(
    queries: Float, targets: Float, gold: Sequence[str], pool: Sequence[str], *, k: int = K
) -> Errors:
    """The cross-lingual similarity search error, by margin and by plain cosine.

    queries float32 `[n, dim]`; targets float32 `[m, dim]`, the vectors of the texts `pool`;
    gold: the right text of each query. Raises InputError when there is nothing to look for,
    and when a gold text is not in the pool.
    """
    check_pools(queries, targets, gold, pool)
    return Errors(
        margin_percent=percent(is_wrong(best_by_margin(queries, targets, k=k)[1], gold, pool)),
        cosine_percent=percent(is_wrong(best_by_cosine(queries, targets)[1], gold, pool)),
        queries=len(queries),
    )


def check_pools(queries: Float, targets: Float, gold: Sequence[str], pool: Sequence[str]) -> None:
    """Raise InputError for an empty pool, vectors without texts, or a gold text not in it."""
    if len(queries) == 0 or len(targets) == 0:
        raise InputError(
            f"retrieval: expected at least one query and one target, got {len(queries)} and "
            f"{len(targets)}"
        )
    for what, vectors, texts in (("queries", queries, gold), ("targets", targets, pool)):
        if len(vectors) != len(texts):
            raise InputError(
                f"retrieval: expected a text for each of {len(vectors)} {what}, got {len(texts)}"
            )
    if missing := set(gold) - set(pool):
        raise InputError(f"retrieval: gold text {min(missing)!r} is not in the pool")
