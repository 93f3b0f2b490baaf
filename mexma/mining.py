"""Which sentences of two lists translate each other: bitext mining in memory.

Each sentence chooses its best match on the other side, over the whole of it, by ratio margin
(Artetxe and Schwenk 2019, arXiv 1811.01136) or by cosine. Three ways to make pairs of the choices:

    intersection   those that choose each other: the fewest, and the surest
    greedy         all choices from the best score down, each sentence once
    union          all choices; a sentence may be in several

Each holds the ones above it. Used by evaluation (BUCC) and by the service alike.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from mexma.neighbours import Float, K, best_by_cosine, both_ways_by_margin

Score = Literal["margin", "cosine"]
Method = Literal["intersection", "greedy", "union"]


class Candidate(NamedTuple):
    """A mined pair: indices into the two collections, and its margin or cosine."""

    source: int
    target: int
    score: float


def mine(
    source: Float,
    target: Float,
    *,
    k: int = K,
    score: Score = "margin",
    method: Method = "greedy",
    threshold: float | None = None,
) -> list[Candidate]:
    """Pairs that score at least `threshold`, best first; equal scores in order of their indices.

    source float32 `[n, dim]` and target float32 `[m, dim]`, unit vectors; where one side is empty
    there are no pairs. k: neighbours of the margin; where there are fewer, all of them. score:
    "margin", or "cosine" for vectors most of which have nothing in common: a margin divides
    by cosines that are then close to 0. Of equally good matches a sentence chooses the first, so
    of equal sentences of one side no more than the first is chosen.
    """
    if not len(source) or not len(target):
        return []
    if score == "margin":
        (forward, to), (backward, of) = both_ways_by_margin(source, target, k=k)
    else:
        (forward, to), (backward, of) = (
            best_by_cosine(source, target),
            best_by_cosine(target, source),
        )
    found = {
        (i, int(j)): float(s)
        for i, (s, j) in enumerate(zip(forward, to, strict=True))
        if method != "intersection" or of[j] == i
    }
    if method != "intersection":
        for j, (s, i) in enumerate(zip(backward, of, strict=True)):
            # The two directions add in another order: the same pair may differ in the last bit.
            found.setdefault((int(i), j), float(s))
    ranked = [
        Candidate(i, j, s)
        for (i, j), s in sorted(found.items(), key=lambda c: (-c[1], c[0]))
        if threshold is None or s >= threshold
    ]
    return _one_to_one(ranked) if method == "greedy" else ranked


def _one_to_one(ranked: list[Candidate]) -> list[Candidate]:
    """Of pairs, best first, those neither of whose sentences is in one before."""
    taken: tuple[set[int], set[int]] = (set(), set())
    accepted = []
    for candidate in ranked:
        if candidate.source not in taken[0] and candidate.target not in taken[1]:
            taken[0].add(candidate.source)
            taken[1].add(candidate.target)
            accepted.append(candidate)
    return accepted
