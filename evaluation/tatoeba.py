"""Tatoeba accuracy: is the nearest sentence of the other side the translation?

Artetxe and Schwenk (2019, arXiv 1812.10464) made the test set, XTREME (Hu et al. 2020, arXiv
2003.11080) took 36 of its languages. Plain cosine, one pool per language. Both count indices;
here texts decide, so the few duplicates are no errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.retrieval import Float, check_pools, is_wrong, percent
from mexma.neighbours import best_by_cosine

XTREME_36 = (
    "afr", "ara", "ben", "bul", "cmn", "deu", "ell", "est", "eus", "fin", "fra", "heb",
    "hin", "hun", "ind", "ita", "jav", "jpn", "kat", "kaz", "kor", "mal", "mar", "nld",
    "pes", "por", "rus", "spa", "swh", "tam", "tel", "tgl", "tha", "tur", "urd", "vie",
)  # fmt: skip


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy in per cent: forward from source to target, backward the other way."""

    forward_percent: float
    backward_percent: float
    pairs: int


def accuracy(
    source: Float, target: Float, source_texts: Sequence[str], target_texts: Sequence[str]
) -> Accuracy:
    """Both directions over one language's pairs.

    source, target: unit vectors float32 `[n, dim]` of the texts, translations in the same
    row. Raises InputError when there are none.
    """
    check_pools(source, target, target_texts, target_texts)
    forward = is_wrong(best_by_cosine(source, target)[1], target_texts, target_texts)
    backward = is_wrong(best_by_cosine(target, source)[1], source_texts, source_texts)
    return Accuracy(100 - percent(forward), 100 - percent(backward), len(source))


def xtreme_mean(values: Mapping[str, float]) -> float | None:
    """The mean over XTREME's 36 languages, None unless every one of them is there.

    values: language (ISO 639-3) -> number.
    """
    if not set(values) >= set(XTREME_36):
        return None
    return float(np.mean([values[lang] for lang in XTREME_36]))
