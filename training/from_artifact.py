"""An encoder to train further, out of the artifact that is served.

A checkpoint has the weights as they were trained; an artifact as they are served, which for `compact` is
in 4 and 8 bits. What is read here computes what the artifact does, and a compact export of it
finds the token table's blocks again exactly.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mexma.artifact import Manifest, open_artifact
from mexma.errors import ArtifactError, CheckpointError
from mexma.weights import EncoderWeights, Linear, Norm, read_weights
from training.encoder import Encoder, EncoderConfig

LINEARS = ("query", "key", "value", "attention_out", "widen", "narrow")
NORMS = ("attention_norm", "output_norm")


def read_artifact(path: Path) -> tuple[Encoder, bytes, Manifest]:
    """The encoder, its tokenizer.json and the manifest. Raises CheckpointError."""
    try:
        artifact = open_artifact(path)
        weights = read_weights(artifact)
        config = EncoderConfig(**artifact.manifest.architecture)
    except (ArtifactError, TypeError) as error:
        raise CheckpointError(
            f"{error}; an artifact can be trained further where it is fp32, compact or fp16"
        ) from None
    encoder = Encoder(config)
    encoder.load_state_dict(_tensors(weights, config), strict=True)
    return encoder, artifact.tokenizer_json(), artifact.manifest


def _tensors(weights: EncoderWeights, config: EncoderConfig) -> dict[str, torch.Tensor]:
    """The encoder's own names. Positions that are never used are zero, and the segment's vector is added to
    the others already."""
    places = np.zeros((config.positions, config.hidden), np.float32)
    places[config.first_position :] = weights.positions
    found: dict[str, NDArray[np.float32]] = {
        "embeddings.words.weight": weights.table.widened(),
        "embeddings.positions.weight": places,
        "embeddings.segment": np.zeros(config.hidden, np.float32),
        **_norm("embeddings.norm", weights.embedding_norm),
    }
    for n, layer in enumerate(weights.layers):
        for name in LINEARS:
            found |= _linear(f"layers.{n}.{name}", getattr(layer, name))
        for name in NORMS:
            found |= _norm(f"layers.{n}.{name}", getattr(layer, name))
    if weights.head is not None:
        found |= _linear("head", weights.head)
    return {name: torch.from_numpy(np.array(array)) for name, array in found.items()}


def _linear(name: str, linear: Linear) -> dict[str, NDArray[np.float32]]:
    return {f"{name}.weight": linear.matrix.T, f"{name}.bias": linear.bias}


def _norm(name: str, norm: Norm) -> dict[str, NDArray[np.float32]]:
    return {f"{name}.weight": norm.weight, f"{name}.bias": norm.bias}
