"""A backbone built on the spot: two random layers and a tokenizer made from `training.phrases`.

For `tiny_cpu`: a whole training run in seconds without a file to fetch. It knows nothing.
"""

from __future__ import annotations

from collections import Counter

import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from training.chance import number
from training.checkpoint import Checkpoint
from training.encoder import Encoder, EncoderConfig, Pooling
from training.phrases import cldr_phrases

MAX_TOKENS = 64
HIDDEN = 64
LAYERS = 2
WORDS = 1000
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")


def miniature(pooling: Pooling) -> Checkpoint:
    """An untrained encoder of XLM-R's kind, `HIDDEN` wide; always the same one."""
    tokenizer = _tokenizer()
    config = EncoderConfig(
        vocabulary=tokenizer.get_vocab_size(), hidden=HIDDEN, layers=LAYERS, heads=4,
        intermediate=2 * HIDDEN, positions=MAX_TOKENS + 2, first_position=2, pad_id=1,
        norm_eps=1e-5, pooling=pooling,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(number("miniature"))
    encoder = Encoder(config).eval()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.05
            parameter.copy_(noise + (1 if name.endswith("norm.weight") else 0))
    return Checkpoint(
        encoder, tokenizer.to_str().encode(), max_tokens=MAX_TOKENS, source={"name": "miniature"}
    )


def _tokenizer() -> Tokenizer:
    """Unigram: every character of the phrases, and their commonest words."""
    texts = [text for phrase in cldr_phrases() for text in (phrase.text, phrase.english)]
    words = Counter("▁" + word for text in texts for word in text.split())
    characters = sorted({c for word in words for c in word})
    ranked = sorted((-n, word) for word, n in words.items() if len(word) > 1)[:WORDS]
    pieces = [(p, 0.0) for p in SPECIAL] + [(c, -12.0) for c in characters]
    pieces += [(word, -8.0) for _, word in ranked]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens([*SPECIAL, AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer
