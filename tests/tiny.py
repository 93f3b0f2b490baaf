"""A two-layer encoder with a real-ish tokenizer, built on the spot; random, but the real shape.

For every test that needs a checkpoint or an artifact and not its quality.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path

import torch

from mexma.sample import tatoeba_sample
from model_export.export import Exported, export
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.encoder import Encoder, EncoderConfig

MAX_TOKENS = 64
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")


@cache
def tiny_tokenizer_json() -> bytes:
    """A Unigram tokenizer of XLM-R's kind: all characters of the sample, its commonest words."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    words = Counter("▁" + w for s in tatoeba_sample() for w in s.text.split())
    characters = Counter(c for word in words for c in word)
    common = [w for w, n in sorted(words.items(), key=lambda x: (-x[1], x[0])) if len(w) > 1][:1000]
    pieces = [(p, 0.0) for p in SPECIAL]
    pieces += [(c, -12.0) for c in sorted(characters)] + [(w, -8.0) for w in common]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return json.dumps(json.loads(tokenizer.to_str()), indent=1).encode()


def tiny_encoder(*, pooling: str = "mean", seed: int = 0, bert: bool = False) -> Encoder:
    """Two layers of 64, four heads, random weights; always the same ones for a seed."""
    vocabulary = len(json.loads(tiny_tokenizer_json())["model"]["vocab"])
    config = EncoderConfig(
        vocabulary=vocabulary, hidden=64, layers=2, heads=4, intermediate=128,
        positions=MAX_TOKENS + (0 if bert else 2), first_position=0 if bert else 2,
        pad_id=1, norm_eps=1e-5, pooling=pooling,
    )  # fmt: skip
    return random_encoder(config, seed)


def random_encoder(config: EncoderConfig, seed: int) -> Encoder:
    """Of any shape; always the same one for a seed."""
    generator = torch.Generator().manual_seed(seed)
    encoder = Encoder(config).eval()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.12
            parameter.copy_(noise + (1 if name.endswith("norm.weight") else 0))
    return encoder


def tiny_checkpoint(directory: Path, *, pooling: str = "mean", seed: int = 0) -> Checkpoint:
    """Write such a checkpoint to `directory` and load it again."""
    made = Checkpoint(
        tiny_encoder(pooling=pooling, seed=seed),
        tiny_tokenizer_json(),
        max_tokens=MAX_TOKENS,
        source={"name": "tiny"},
    )
    save_checkpoint(directory, made)
    return load_checkpoint(str(directory))


def tiny_artifact(
    directory: Path, *, precision: str = "fp32", seed: int = 0, pooling: str = "mean", **options
) -> Exported:
    """Export such a checkpoint to `directory`; options: of `model_export.export.export`."""
    checkpoint = Checkpoint(
        tiny_encoder(seed=seed, pooling=pooling),
        tiny_tokenizer_json(),
        max_tokens=MAX_TOKENS,
        source={"name": "tiny"},
    )
    options = {"sentences_per_language": 4} | options
    return export(checkpoint, directory, precision=precision, **options)
