"""xsim++: as xsim, but the pool also holds corrupted copies of every English sentence.

After Chen et al. (2023, ACL, arXiv 2306.12907), with `evaluation.corruption`'s own copies: see
its NOTE. A query that finds a copy of its own translation has understood the topic and not the
sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.corruption import KINDS, PER_KIND, corrupt
from evaluation.retrieval import Float, Index, check_pools, is_wrong, percent
from mexma.neighbours import K, best_by_cosine, best_by_margin


@dataclass(frozen=True)
class HardPool:
    """texts: the sentences, in order, then their corruptions. kinds: of each text, "" for the
    sentences themselves. origin: for each text the number of the sentence it was made from."""

    texts: list[str]
    kinds: list[str]
    origin: list[int]


@dataclass(frozen=True)
class HardErrors:
    """In per cent of the queries. by_kind: misled by a copy of the own translation, by margin;
    other: found something made from another sentence, or that other sentence itself."""

    margin_percent: float
    cosine_percent: float
    by_kind: dict[str, float]
    other_percent: float
    copies: int


def hard_pool(sentences: Sequence[str], *, seed: int = 0, per_kind: int = PER_KIND) -> HardPool:
    """The pool of `sentences` (English) with at most `per_kind` corruptions of each kind.

    A corruption that is itself one of the sentences, or is there already, is left out.
    """
    texts, kinds = list(sentences), [""] * len(sentences)
    origin = list(range(len(texts)))
    present = set(texts)
    for number, sentence in enumerate(sentences):
        for corruption in corrupt(sentence, seed=seed, per_kind=per_kind):
            if corruption.text not in present:
                present.add(corruption.text)
                texts.append(corruption.text)
                kinds.append(corruption.kind)
                origin.append(number)
    return HardPool(texts, kinds, origin)


def xsimpp(queries: Float, targets: Float, pool: HardPool, *, k: int = K) -> HardErrors:
    """The error against a hard pool, by margin and by plain cosine.

    queries float32 `[n, dim]`: translations of the pool's first n texts, in order; targets
    float32 `[m, dim]`: the vectors of all its texts. Raises InputError when either is empty.
    """
    gold = pool.texts[: len(queries)]
    check_pools(queries, targets, gold, pool.texts)
    found = best_by_margin(queries, targets, k=k)[1]
    wrong = is_wrong(found, gold, pool.texts)
    misled = _misled(found, gold, pool)
    n = len(queries)
    by_kind = {kind: 100 * misled.count(kind) / n for kind in KINDS}
    return HardErrors(
        margin_percent=percent(wrong),
        cosine_percent=percent(is_wrong(best_by_cosine(queries, targets)[1], gold, pool.texts)),
        by_kind=by_kind,
        other_percent=100 * (int(wrong.sum()) - sum(map(bool, misled))) / n,
        copies=len(pool.texts) - pool.kinds.count(""),
    )


def _misled(found: Index, gold: Sequence[str], pool: HardPool) -> list[str]:
    """For each query the kind of the copy of its own translation that it found, or ""."""
    return [
        pool.kinds[i] if pool.kinds[i] and pool.texts[pool.origin[i]] == text else ""
        for i, text in zip(found, gold, strict=True)
    ]
