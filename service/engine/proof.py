"""What a model shows before it answers in another's place.

Its vectors are finite and of length 1, they are the same alone as in a batch, and sentences find
their translations about as often as they do by the model that serves. All of it runs through the
batcher and the engine that will serve, and warms them.

Refuses to know: where models come from, what is done with one that fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import groupby

import numpy as np

from mexma.errors import EngineError, ReloadRefused
from mexma.neighbours import nearest
from mexma.sample import tatoeba_sample
from service.canaries import BOUND, SENTENCES, lowest_cosine
from service.engine.embedder import Embedder
from service.store.protocol import Vectors

PER_LANGUAGE = 20
"""Sentences in each of the sample's 41 languages. Of two models that differ by chance alone the rates
differ by 0.7 points then (one standard deviation, for errors that they mostly share)."""
LENGTH_BOUND = 1e-3
ROWS = 32


async def check_vectors(embedder: Embedder, *, limit_s: float) -> None:
    """Raises ReloadRefused, EngineError, or TimeoutError when a batch takes longer than `limit_s`."""
    texts = [*SENTENCES, " ".join(SENTENCES * 40)]
    together = await _vectors(embedder, texts, limit_s)
    dim = embedder.encoder.manifest.dim
    if together.shape != (len(texts), dim):
        raise ReloadRefused(f"its vectors have {together.shape[1]} components, not {dim}")
    off = float(np.abs(np.linalg.norm(together, axis=1) - 1).max())
    if not off <= LENGTH_BOUND:
        raise ReloadRefused(
            f"its vectors are not of length 1: off by {off:.4f}, at most {LENGTH_BOUND} is expected"
        )
    alone = np.vstack([await _vectors(embedder, [text], limit_s) for text in texts])
    if (found := lowest_cosine(together, alone)) < BOUND:
        raise ReloadRefused(
            "a sentence's vector depends on what is in its batch: cosine "
            f"{found:.4f} to the one computed alone, at least {BOUND} is expected"
        )


async def translation_rate(embedder: Embedder, *, limit_s: float) -> float:
    """Share of sentences, in 41 languages, whose nearest English one is their translation.

    Raises EngineError, Overloaded, or TimeoutError when a batch takes longer than `limit_s`, waiting
    included.
    """
    sources, groups, english = _pairs()
    vectors = await _vectors(embedder, [*sources, *english.values()], limit_s)
    of_sources, of_english = vectors[: len(sources)], vectors[len(sources) :]
    _, found = await asyncio.to_thread(nearest, of_sources, of_english, 1)
    texts = [*english.values()]
    right = [texts[j] == english[group] for group, (j,) in zip(groups, found, strict=True)]
    return float(np.mean(right))


def _pairs() -> tuple[list[str], list[int], dict[int, str]]:
    """Sentences, the group of each, and these groups' English sentences."""
    sample = tatoeba_sample()
    others = sorted((s for s in sample if s.lang != "en"), key=lambda s: (s.lang, s.group))
    chosen = [s for _, of in groupby(others, lambda s: s.lang) for s in [*of][:PER_LANGUAGE]]
    wanted = {s.group for s in chosen}
    english = {s.group: s.text for s in sample if s.lang == "en" and s.group in wanted}
    return [s.text for s in chosen], [s.group for s in chosen], english


async def _vectors(embedder: Embedder, texts: Sequence[str], limit_s: float) -> Vectors:
    """Float32 `[n, dim]`, computed and not remembered; small batches that give way to requests."""
    tokenizer = embedder.encoder.tokenizer
    ids = [tokens.ids for tokens in await asyncio.to_thread(tokenizer.encode, texts)]
    rows = min(ROWS, embedder.settings.max_batch_items)
    parts: list[Vectors] = []
    for start in range(0, len(ids), rows):
        async with asyncio.timeout(limit_s):
            job = await embedder.batcher.submit(
                ids[start : start + rows], lane="bulk", client="proof", fresh=True
            )
        if job.errors:
            raise job.errors[min(job.errors)]
        if job.vectors is None:
            raise EngineError("inference gave no vectors")
        parts.append(job.vectors)
    return np.vstack(parts)
