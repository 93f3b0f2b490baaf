"""Bitext mining as in BUCC: find the pairs hidden among sentences that have no translation.

Zweigenbaum, Sharoff and Rapp (2017, BUCC shared task): two collections, a few gold pairs in
them. Mining takes each sentence's best match by ratio margin in both directions over the whole
collections, then accepts from the best score down, each sentence once. A threshold decides
where to stop. It is tuned for F1 on a training part of the gold and the numbers come from the
rest; the variant that only asks for the nearest neighbour of gold sentences is retrieval, and
`evaluation.tatoeba` has that.

The parts are divided by source sentence, gold or not, so precision counts false pairs of
sentences that have no translation too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.pairs import Pairs
from evaluation.retrieval import Bool, Float
from mexma.errors import InputError
from mexma.mining import Candidate, Score, mine
from mexma.neighbours import K

GOLD_SHARE = 0.2
TRAINING_SHARE = 0.5


@dataclass(frozen=True)
class Collections:
    """Two collections of distinct sentences. gold: pairs of indices, one to one.

    hidden: the collections were made from pairs by hiding one side of most of them.
    """

    source: list[str]
    target: list[str]
    gold: set[tuple[int, int]]
    hidden: bool


@dataclass(frozen=True)
class Mined:
    """Precision, recall and F1 on the test part, in per cent; threshold: a margin."""

    precision_percent: float
    recall_percent: float
    f1_percent: float
    threshold: float
    gold_pairs: int
    extracted_pairs: int


def collections(pairs: Pairs, *, seed: int = 0) -> Collections:
    """What is to be mined, from one language's pairs.

    Where the data has sentences without a translation, they are the haystack. Where it has
    none, they are made: a fifth of the pairs (drawn with `seed`) stays gold, of the others
    every second one keeps its source only and the rest their target only. A row with a
    sentence that its collection has already is left out.
    """
    hidden = not (pairs.source_only or pairs.target_only)
    rows = list(zip(pairs.source, pairs.target, strict=True))
    lone_source, lone_target = pairs.source_only, pairs.target_only
    if hidden:
        seen: tuple[set[str], set[str]] = (set(), set())
        distinct = [r for r in rows if _add(seen, r)]
        order = [distinct[i] for i in np.random.default_rng(seed).permutation(len(distinct))]
        gold = round(GOLD_SHARE * len(order))
        rows, rest = order[:gold], order[gold:]
        lone_source = [source for source, _ in rest[0::2]]
        lone_target = [target for _, target in rest[1::2]]
    seen = (set(), set())
    rows = [r for r in rows if _add(seen, r)]
    lone_source = [s for s in dict.fromkeys(lone_source) if s not in seen[0]]
    lone_target = [t for t in dict.fromkeys(lone_target) if t not in seen[1]]
    return Collections(
        source=[s for s, _ in rows] + lone_source,
        target=[t for _, t in rows] + lone_target,
        gold={(i, i) for i in range(len(rows))},
        hidden=hidden,
    )


def _add(seen: tuple[set[str], set[str]], row: tuple[str, str]) -> bool:
    if row[0] in seen[0] or row[1] in seen[1]:
        return False
    seen[0].add(row[0])
    seen[1].add(row[1])
    return True


def best_threshold(candidates: Sequence[Candidate], gold: set[tuple[int, int]]) -> float:
    """The margin from which on a candidate is accepted, so that F1 against `gold` is highest.

    Halfway between the last score accepted and the first one refused; the strictest of
    several equally good ones. Infinity when no candidate is in `gold`. Raises InputError for
    an empty `gold`.
    """
    if not gold:
        raise InputError("bucc: expected gold pairs to tune the threshold on, got none")
    ranked = sorted(candidates, key=lambda c: -c.score)
    best, threshold, right = 0.0, float("inf"), 0
    for n, candidate in enumerate(ranked, start=1):
        right += (candidate.source, candidate.target) in gold
        following = ranked[n].score if n < len(ranked) else None
        if following == candidate.score:
            continue  # equal scores cannot be told apart by a threshold
        f1 = 2 * right / (n + len(gold))
        if f1 > best:
            best = f1
            threshold = candidate.score if following is None else (candidate.score + following) / 2
    return threshold


def bucc(
    source: Float,
    target: Float,
    gold: set[tuple[int, int]],
    *,
    k: int = K,
    seed: int = 0,
    training_share: float = TRAINING_SHARE,
    score: Score = "margin",
) -> Mined:
    """Mine (see `mine`), tune the threshold on one part, count on the other.

    source float32 `[n, dim]` and target float32 `[m, dim]`, unit vectors; gold: pairs of row
    numbers. training_share of the source rows, drawn with `seed`, tune. Raises InputError
    unless both parts have gold.
    """
    training = _training_part(len(source), seed, training_share)
    gold_by_part = {
        part: {pair for pair in gold if training[pair[0]] == part} for part in (True, False)
    }
    if not all(gold_by_part.values()):
        raise InputError(
            f"bucc: expected gold pairs in the training and in the test part, got "
            f"{len(gold_by_part[True])} and {len(gold_by_part[False])}"
        )
    candidates = mine(source, target, k=k, score=score)
    tuned = [c for c in candidates if training[c.source]]
    threshold = best_threshold(tuned, gold_by_part[True])
    extracted = {
        (c.source, c.target) for c in candidates if not training[c.source] and c.score >= threshold
    }
    right = len(extracted & gold_by_part[False])
    wanted = len(gold_by_part[False])
    return Mined(
        precision_percent=100 * right / len(extracted) if extracted else 0.0,
        recall_percent=100 * right / wanted,
        f1_percent=200 * right / (len(extracted) + wanted),
        threshold=threshold,
        gold_pairs=wanted,
        extracted_pairs=len(extracted),
    )


def _training_part(n: int, seed: int, share: float) -> Bool:
    part = np.zeros(n, np.bool_)
    part[np.random.default_rng(seed).permutation(n)[: round(share * n)]] = True
    return part
