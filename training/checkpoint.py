"""Save and load an encoder with all that belongs to it.

Our own layout is described in `mexma.checkpoint`; anything else is read by
`training.hugging_face`. Either way the result is one `Checkpoint`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import save_file

from mexma.artifact import is_artifact, replace_directory
from mexma.checkpoint import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    CheckpointDescription,
    describe_checkpoint,
    is_checkpoint,
    open_checkpoint,
)
from mexma.errors import CheckpointError
from mexma.text import TextTokenizer
from training import hugging_face
from training.encoder import Encoder, EncoderConfig, Pooling
from training.from_artifact import read_artifact

POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


@dataclass
class Checkpoint:
    """An encoder (float32, on the CPU, in evaluation mode) and its surroundings.

    max_tokens: longest input, special tokens included. prefix: put before every text.
    source: where the weights come from: `name` and `weights`, file name -> SHA-256.
    """

    encoder: Encoder
    tokenizer_json: bytes
    max_tokens: int
    prefix: str = ""
    source: dict[str, Any] = field(default_factory=dict)


def load_checkpoint(
    source: str,
    *,
    pooling: str | None = None,
    prefix: str | None = None,
    max_tokens: int | None = None,
) -> Checkpoint:
    """Read `source`: our checkpoint, an artifact in fp32, compact or fp16, a Hugging Face directory, or a hub
    name "owner/model".

    pooling: "first_token" or "mean"; needed when the source does not say, refused when it
    says something else. prefix and max_tokens replace the source's own. Raises
    CheckpointError, one sentence each.
    """
    asked = None if pooling is None else _pooling(pooling)
    path = Path(source)
    name = source
    if path.is_dir():
        name = path.resolve().name
    elif source.count("/") == 1 and not source.startswith((".", "/", "~")):
        path = hugging_face.fetch(source)
    else:
        raise CheckpointError(f"{source}: expected a directory or a hub name, found neither")

    description = open_checkpoint(path) if is_checkpoint(path) else None
    if description is None and is_artifact(path) and not (path / "config.json").is_file():
        return _from_artifact(source, path, asked, prefix, max_tokens)
    directory = hugging_face.transformer_directory(path)
    config = hugging_face.read_config(directory)
    head = None
    if description is not None:
        config = replace(config, pooling=_pooling(description.pooling))
    elif (path / "modules.json").is_file():
        config, head = hugging_face.read_modules(path, config)
    else:
        config = replace(config, pooling=_named_pooling(source, asked))
    _check_pooling(source, config.pooling, asked)

    encoder, hashes = hugging_face.read_encoder(directory, config)
    if encoder.head is not None and head is not None:
        hugging_face.load_head(encoder.head, head)
    tokenizer_json = _read_tokenizer(directory, config)
    known = description.max_tokens if description else hugging_face.read_limits(directory)
    limit = max_tokens or min(known or config.max_tokens, config.max_tokens)
    _check_limit(source, limit, config.max_tokens)
    kept_prefix = description.prefix if description else hugging_face.read_prompt(path)
    origin = description.source if description else {"name": name}
    return Checkpoint(
        encoder=encoder,
        tokenizer_json=tokenizer_json,
        max_tokens=limit,
        prefix=kept_prefix if prefix is None else prefix,
        source={**origin, "weights": hashes},
    )


def _from_artifact(
    source: str, path: Path, pooling: Pooling | None, prefix: str | None, max_tokens: int | None
) -> Checkpoint:
    encoder, tokenizer_json, manifest = read_artifact(path)
    _check_pooling(source, manifest.pooling, pooling)
    limit = max_tokens or manifest.max_tokens
    _check_limit(source, limit, manifest.max_tokens)
    hashes = {name: record.sha256 for name, record in manifest.files.items()}
    return Checkpoint(
        encoder=encoder,
        tokenizer_json=tokenizer_json,
        max_tokens=limit,
        prefix=manifest.prefix if prefix is None else prefix,
        source={**manifest.source, "name": manifest.name, "weights": hashes},
    )


def _check_limit(source: str, limit: int, most: int) -> None:
    if not 3 <= limit <= most:
        raise CheckpointError(
            f"{source}: max_tokens must be 3 to {most}, the most it has positions for, got {limit}"
        )


def _check_pooling(source: str, own: str, asked: Pooling | None) -> None:
    if asked not in (None, own):
        raise CheckpointError(f"{source}: pools by {own}, but {asked} was asked for")


def save_checkpoint(
    path: Path,
    checkpoint: Checkpoint,
    *,
    step: int = 0,
    more: Callable[[Path], None] | None = None,
) -> CheckpointDescription:
    """Write our layout to `path`, whole or not at all; step: optimiser steps taken so far.

    more: writes further files into the directory it is given, which become part of the whole.
    `transformers` opens the result too. Raises CheckpointError for an encoder with a dense
    head, for which the layout has no place.
    """
    encoder = checkpoint.encoder
    config = encoder.config
    if encoder.head is not None:
        raise CheckpointError(f"{path}: an encoder with a dense head cannot be saved")
    parameters = dict(encoder.named_parameters())
    tensors = {}
    for ours, theirs in hugging_face.tensor_names(config).items():
        tensor = parameters[ours].detach().to("cpu", torch.float32).contiguous()
        tensors[theirs] = tensor[None] if ours == "embeddings.segment" else tensor
    with replace_directory(path) as directory:
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
        (directory / CONFIG).write_text(json.dumps(_hugging_face_config(config), indent=2) + "\n")
        (directory / TOKENIZER).write_bytes(checkpoint.tokenizer_json)
        if more is not None:
            more(directory)
        return describe_checkpoint(
            directory,
            pooling=config.pooling,
            max_tokens=checkpoint.max_tokens,
            prefix=checkpoint.prefix,
            step=step,
            source=checkpoint.source,
        )


def _hugging_face_config(config: EncoderConfig) -> dict[str, Any]:
    bert = config.first_position == 0
    return {
        "architectures": ["BertModel" if bert else "XLMRobertaModel"],
        "model_type": "bert" if bert else "xlm-roberta",
        "vocab_size": config.vocabulary,
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.intermediate,
        "max_position_embeddings": config.positions,
        "type_vocab_size": 1,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": "gelu",
        "pad_token_id": config.pad_id,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": 0.0,
    }


def _pooling(name: str) -> Pooling:
    for known in POOLINGS:
        if name == known:
            return known
    raise CheckpointError(f"pooling must be one of {', '.join(POOLINGS)}, got {name!r}")


def _named_pooling(source: str, asked: Pooling | None) -> Pooling:
    if found := hugging_face.KNOWN_POOLING.get(source) or asked:
        return found
    raise CheckpointError(
        f"{source}: has no modules.json to say how token states become a vector; "
        f"say it with --pooling {' or --pooling '.join(POOLINGS)}"
    )


def _read_tokenizer(directory: Path, config: EncoderConfig) -> bytes:
    file = directory / TOKENIZER
    if not file.is_file():
        raise CheckpointError(f"{file}: expected this file, found none")
    content = file.read_bytes()
    try:
        size = TextTokenizer(content, max_tokens=config.max_tokens).vocabulary_size
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from None
    if size > config.vocabulary:
        raise CheckpointError(
            f"{file}: has {size} tokens, but the embedding table only {config.vocabulary} rows"
        )
    return content
