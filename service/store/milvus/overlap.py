"""How differently two encoders answer, from collections on Milvus with vectors of both.

Refuses to know: texts, which encoder is better.
"""

from __future__ import annotations

import numpy as np

from service.store.admission import unit_vectors
from service.store.milvus import connection
from service.store.milvus.connection import Connection
from service.store.milvus.expressions import ALL
from service.store.milvus.ranking import Ranker
from service.store.milvus.rows import Stamp
from service.store.moving import Overlap
from service.store.protocol import Vectors

Keys = list[list[str]]


def compare(
    milvus: Connection, serving: Stamp, other: Stamp, k: int, sample: int
) -> Overlap | None:
    """Of up to `sample` documents the k nearest in each; see store/overlap.py, which does the same.

    The documents are those that Milvus gives first, by key: keys are hashes, so any is as likely as
    another. Without an exact search beside the approximate one the recall is None.
    """
    documents = milvus.count(other, ALL)
    if documents < 3:
        return None
    k = min(k, (documents - 1) // 2)
    theirs = milvus.query(other, ALL, ["key", "seq", other.vector], sample)
    ours = milvus.rows(serving, [row["key"] for row in theirs], ["seq", serving.vector])
    theirs = [r for r in theirs if r["key"] in ours and ours[r["key"]]["seq"] == r["seq"]]
    if not theirs:
        return None
    keys = [row["key"] for row in theirs]
    old = [ours[key][serving.vector] for key in keys]
    new = [row[other.vector] for row in theirs]
    # What could not be embedded is nobody's neighbour in the one, so it is passed over in the other.
    passed = max(milvus.count(serving, ALL) - documents, 0)
    wide = _others(milvus, serving, old, keys, k + passed)
    known = milvus.rows(other, [*{key for one in wide for key in one}], [])
    before = [[key for key in one if key in known][:k] for one in wide]
    after = _others(milvus, other, new, keys, k)
    recall: float | None = 1.0
    if other.index != "FLAT":
        comparable = documents < connection.MAX_ROWS
        exact = _others(milvus, other, new, keys, k, exact=True) if comparable else None
        recall = None if exact is None else _shared(after, exact, k)
    return Overlap(k, len(keys), documents, _shared(before, after, k), recall)


def _others(
    milvus: Connection,
    stamp: Stamp,
    vectors: list[list[float]],
    keys: list[str],
    k: int,
    *,
    exact: bool = False,
) -> Keys:
    """Per row the keys of its k nearest others, nearest first. vectors: `[n, dim]`."""
    given: Vectors = np.array(vectors, np.float32)
    units = unit_vectors(given, len(keys), stamp.dim)
    wanted = min(k + 1, connection.MAX_ROWS)
    found = Ranker(milvus, stamp, tuple).nearest(units, wanted, ALL, exact=exact)
    # Among many copies of it a row may not be found itself; then the last is one too many.
    return [
        [key for key in one.keys if key != own][:k] for one, own in zip(found, keys, strict=True)
    ]


def _shared(some: Keys, others: Keys, k: int) -> float:
    """Mean share of k that two lists of neighbours have in common."""
    pairs = zip(some, others, strict=True)
    return float(np.mean([len(set(a) & set(b)) for a, b in pairs]) / k)
