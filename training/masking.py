"""Which tokens are masked, and by what: a pure function of seed, step, sample and side.

The recipe is BERT's (Devlin et al. 2019, section 3.1) at MEXMA's rate (arXiv 2409.12737,
section 4.1): each ordinary token is chosen with probability 0.4; of the chosen, 80 % become
the mask token, 10 % a random ordinary token, 10 % stay. Special tokens are never chosen.

A sequence with ordinary tokens of which none was chosen has the one with the lowest draw
chosen, so that every pair takes part; a sequence of special tokens only has none. Nothing is
drawn twice, so there is nothing that might not end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.chance import draw, number, uniform
from training.errors import RecipeError

Ids = NDArray[np.int64]

MASK_TOKENS = ("<mask>", "[MASK]")


@dataclass(frozen=True)
class Vocabulary:
    """What masking must know of a tokenizer.

    special: bool `[size]`, True for tokens that are no text. ordinary: int64, ids of the
    others. mask_id: the mask token, None where the tokenizer has none.
    """

    special: NDArray[np.bool_]
    ordinary: Ids
    mask_id: int | None

    @classmethod
    def of(cls, tokenizer_json: bytes, size: int) -> Vocabulary:
        """Read it from `tokenizer.json`; size: rows of the embedding table, int64 ids below it.

        Rows of the table beyond the tokenizer's vocabulary count as special: no text has them.
        """
        raw = json.loads(tokenizer_json)
        vocab = raw["model"]["vocab"]
        special = np.ones(size, bool)
        known = range(len(vocab)) if isinstance(vocab, list) else vocab.values()
        special[list(known)] = False
        mask_id = None
        for token in raw["added_tokens"]:
            special[token["id"]] = token["special"]
            if token["content"] in MASK_TOKENS:
                mask_id = token["id"]
        return cls(special, np.flatnonzero(~special), mask_id)


def mask_tokens(
    sequences: Sequence[Ids],
    sample_ids: NDArray[np.int64],
    vocabulary: Vocabulary,
    *,
    seed: int,
    step: int,
    side: str,
    rate: float = 0.4,
) -> tuple[list[Ids], list[NDArray[np.bool_]]]:
    """Mask a batch of token sequences.

    sequences: int64 `[length]` each. sample_ids: int64 `[n]`, what the mask hangs on besides
    seed, step and side ("src" or "trg"). Returns the masked sequences and, for each, bool
    `[length]`: True where a token is to be predicted. Raises RecipeError for a tokenizer
    without a mask token.
    """
    if vocabulary.mask_id is None:
        raise RecipeError(
            f"unmasking needs one of the tokens {' or '.join(MASK_TOKENS)}, and the tokenizer has none"
        )
    lengths = np.array([len(s) for s in sequences])
    rows = np.repeat(np.arange(len(sequences)), lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    ids = np.concatenate(sequences)
    places = np.arange(len(ids)) - starts[rows]
    key = (seed, step, number(side), np.asarray(sample_ids)[rows], places)

    chance = np.where(vocabulary.special[ids], 2.0, uniform(*key, 0))  # 2: never
    lowest = np.minimum.reduceat(chance, starts)[rows]
    chosen = (chance < rate) | ((chance == lowest) & (lowest < 2))
    fate = uniform(*key, 1)
    other = vocabulary.ordinary[draw(*key, 2) % np.uint64(len(vocabulary.ordinary))]
    masked = np.where(chosen & (fate < 0.8), vocabulary.mask_id, ids)
    masked = np.where(chosen & (fate >= 0.8) & (fate < 0.9), other, masked)
    cuts = starts[1:]
    return np.split(masked, cuts), np.split(chosen, cuts)
