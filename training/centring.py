"""Take the mean out of an encoder's sentence vectors before it is trained.

The vectors of a pretrained encoder share most of their length: those of multilingual-e5-small
have norm 4.7, their mean over texts of all languages has norm 4.2. Nothing is told apart by what
is common to all texts, yet every cosine contains it, which makes some vectors near to everything
(hubs; Suzuki et al. 2013, "Centering similarity measures to reduce hubs", EMNLP). Training could
take it out, but at a learning rate of 1e-4 no component moves by more than a few hundredths.

Both poolings are linear in the last layer's output, and its last step adds a bias; so the mean
is taken from that bias, and the encoder stays of the architecture that it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from mexma.text import TextTokenizer
from training.checkpoint import Checkpoint
from training.encoder import Layer
from training.errors import RecipeError
from training.validation import pooled_vectors


def centred(start: Checkpoint, tokenizer: TextTokenizer, texts: Sequence[str]) -> Checkpoint:
    """A copy of `start` whose sentence vectors of `texts`, not normalised, have the mean zero.

    Computed in float32 on the CPU, so that every rank finds the same. Token states of the last
    layer shift with them. Raises RecipeError where no text holds a token the tokenizer knows.
    """
    encoder = type(start.encoder)(start.encoder.config).eval()
    encoder.load_state_dict(start.encoder.state_dict())
    vectors = pooled_vectors(encoder, tokenizer, list(texts))
    known = vectors[vectors.any(1)]
    if not len(known):
        raise RecipeError("centring needs a text with a token that the tokenizer knows; none has")
    last = encoder.layers[-1]
    assert isinstance(last, Layer)  # noqa: S101  for the type checker
    with torch.no_grad():
        last.output_norm.bias.sub_(torch.from_numpy(known.mean(0, dtype=np.float64)).float())
    return replace(start, encoder=encoder)
