"""How well held-out pairs find each other: what "best" means during a run.

For each held-out part and language: the share of texts whose nearest English sentence, by
cosine among all English ones of that part, is their translation; and the share of English
sentences whose nearest text among the language's is theirs. A text equal to the right one is
right. This is for choosing between steps and settings; `mexma-evaluate` says how good a model is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mexma.batching import split_batches
from mexma.errors import InputError
from mexma.neighbours import nearest
from mexma.text import TextTokenizer
from training.chance import number
from training.corpus import Corpus
from training.encoder import Encoder
from training.packing import Packed, sentence_vectors, token_states

FEWEST = 10
"""Languages with fewer held-out pairs are left out of the mean: chance rules there."""

FEW = 100
"""Of so many pairs one more found is a percent: a part with fewer is too small to choose by."""

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class HeldOut:
    """A part's chosen pairs: texts and their English translations, by language."""

    name: str
    pairs: dict[str, list[tuple[str, str]]]

    @property
    def size(self) -> int:
        """How many there are, in all languages."""
        return sum(len(rows) for rows in self.pairs.values())


@dataclass(frozen=True)
class Scores:
    """Of one part: language -> share found (to English, from English), and number of pairs."""

    name: str
    languages: dict[str, tuple[float, float, int]]

    @property
    def mean(self) -> tuple[float, float]:
        """Over languages with enough pairs, each counting the same (all, where none has)."""
        rows = [x for x in self.languages.values() if x[2] >= FEWEST] or [*self.languages.values()]
        return float(np.mean([x[0] for x in rows])), float(np.mean([x[1] for x in rows]))


def choose_pairs(held_out: dict[str, Corpus], *, pairs: int) -> list[HeldOut]:
    """At most about `pairs` of each part, in equal shares of its languages; always the same ones."""
    parts = []
    for name, corpus in held_out.items():
        share = max(FEWEST, pairs // max(1, len(corpus.names)))
        chosen = {}
        for code, language in enumerate(corpus.names):
            ids = np.flatnonzero(corpus.languages == code)
            texts = zip(*corpus.pairs(ids), strict=True)
            ranked = sorted({b: a for a, b in texts}.items(), key=lambda x: number(x[0]))
            chosen[language] = [(a, b) for b, a in ranked[:share]]
        parts.append(HeldOut(name, chosen))
    return parts


def validate(parts: list[HeldOut], embed: Callable[[list[str]], Vectors]) -> list[Scores]:
    """Score each part. embed: texts to L2-normalised float32 `[n, dim]`."""
    return [_score(part, embed) for part in parts]


def score_of(scores: list[Scores]) -> float | None:
    """One number to compare checkpoints by: mean of both directions over parts, in [0, 1]."""
    return float(np.mean([s.mean for s in scores])) if scores else None


def _score(part: HeldOut, embed: Callable[[list[str]], Vectors]) -> Scores:
    unique = sorted({text for rows in part.pairs.values() for pair in rows for text in pair})
    vectors = dict(zip(unique, embed(unique), strict=True))
    pool = sorted({b for rows in part.pairs.values() for _, b in rows})
    english = np.stack([vectors[b] for b in pool])
    languages = {}
    for language, rows in part.pairs.items():
        texts = np.stack([vectors[a] for a, _ in rows])
        own = np.stack([vectors[b] for _, b in rows])
        _, forth = nearest(texts, english, 1)
        _, back = nearest(own, texts, 1)
        to = [pool[i] == b for i, (_, b) in zip(forth[:, 0], rows, strict=True)]
        fro = [rows[i][0] == a for i, (a, _) in zip(back[:, 0], rows, strict=True)]
        languages[language] = (float(np.mean(to)), float(np.mean(fro)), len(rows))
    return Scores(part.name, languages)


def embed_texts(encoder: Encoder, tokenizer: TextTokenizer, texts: list[str]) -> Vectors:
    """L2-normalised vectors float32 `[n, dim]` of texts.

    A text without a token the tokenizer knows gets the zero vector, which finds nothing.
    """
    vectors = torch.from_numpy(pooled_vectors(encoder, tokenizer, texts))
    unit: Vectors = torch.nn.functional.normalize(vectors, dim=-1).numpy()
    return unit


@torch.no_grad()
def pooled_vectors(
    encoder: Encoder, tokenizer: TextTokenizer, texts: list[str], *, max_tokens: int = 4096
) -> Vectors:
    """Sentence vectors float32 `[n, dim]` of texts, not normalised, in batches of `max_tokens`.

    A text without a token the tokenizer knows gets the zero vector.
    """
    device = next(encoder.parameters()).device
    tokens = [_ids(tokenizer, text) for text in texts]
    out = np.zeros((len(texts), encoder.config.hidden), np.float32)
    usable = [i for i, ids in enumerate(tokens) if ids is not None]
    found = [ids for ids in tokens if ids is not None]
    lengths = [len(ids) for ids in found]
    for rows in split_batches(lengths, max_tokens=max_tokens, max_items=256):
        packed = Packed.of([found[i] for i in rows]).to(device)
        vectors = sentence_vectors(encoder, token_states(encoder, packed), packed)
        out[[usable[i] for i in rows]] = vectors.cpu().numpy()
    return out


def _ids(tokenizer: TextTokenizer, text: str) -> NDArray[np.int64] | None:
    try:
        return tokenizer.encode([text])[0].ids
    except InputError:
        return None
