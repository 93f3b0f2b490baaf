"""A checkpoint, run with torch: the one module of evaluation that knows training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.retrieval import Float
from evaluation.subject import Pieces, WordStates, in_batches, unit_vectors
from mexma.errors import DeviceUnavailable, InstallationError
from mexma.text import TextTokenizer, TokenBatch

try:
    import torch

    from training.checkpoint import load_checkpoint
except ImportError as error:
    raise InstallationError(
        f"a checkpoint needs torch to be evaluated, and {error}; install the extra train"
    ) from None


class CheckpointSubject:
    """An encoder in float32, as training left it."""

    def __init__(
        self,
        source: str,
        *,
        device: str = "cpu",
        threads: int = 0,
        pooling: str | None = None,
        prefix: str | None = None,
    ):
        """See `training.checkpoint.load_checkpoint`. Raises CheckpointError or
        DeviceUnavailable."""
        if device == "cuda" and not torch.cuda.is_available():
            raise DeviceUnavailable("device cuda was asked for, but torch finds none here")
        if threads:
            torch.set_num_threads(threads)
        checkpoint = load_checkpoint(source, pooling=pooling, prefix=prefix)
        self.encoder = checkpoint.encoder.to(device)
        self.device = device
        self.tokenizer = TextTokenizer(
            checkpoint.tokenizer_json, max_tokens=checkpoint.max_tokens, prefix=checkpoint.prefix
        )
        self._pieces = Pieces(
            checkpoint.tokenizer_json, prefix=checkpoint.prefix, max_tokens=checkpoint.max_tokens
        )
        self.truncated = 0
        shaping = {
            "weights": checkpoint.source.get("weights"),
            "tokenizer": self.tokenizer.hash,
            "pooling": self.encoder.config.pooling,
            "prefix": checkpoint.prefix,
            "max_tokens": checkpoint.max_tokens,
        }
        self.about: dict[str, Any] = {
            "kind": "checkpoint",
            "name": checkpoint.source.get("name", source),
            "fingerprint": hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[
                :16
            ],
            "precision": "fp32",
            "pooling": self.encoder.config.pooling,
            "prefix": checkpoint.prefix,
            "dim": self.encoder.config.dim,
            "device": device,
        }

    @property
    def has_token_states(self) -> bool:
        return True

    def vectors(self, texts: Sequence[str]) -> Float:
        """Unit vectors float32 `[n, dim]`, also where training leaves them at another length."""
        tokens = self.tokenizer.encode(texts)
        self.truncated += sum(t.seen > len(t) for t in tokens)
        out = np.empty((len(texts), self.encoder.config.dim), np.float32)
        for batch in in_batches([len(t) for t in tokens], str(self.about["name"])):
            padded = TokenBatch.pad([tokens[i].ids for i in batch], self.encoder.config.pad_id)
            with torch.inference_mode():
                out[batch] = self.encoder(*self._tensors(padded)).cpu().numpy()
        return unit_vectors(out, texts)

    def token_states(self, sentences: Sequence[Sequence[str]]) -> list[WordStates]:
        def run(batch: TokenBatch) -> Float:
            with torch.inference_mode():
                states: Float = self.encoder.token_states(*self._tensors(batch)).cpu().numpy()
            return states

        return self._pieces.states(sentences, run, self.encoder.config.pad_id)

    def _tensors(self, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            torch.from_numpy(batch.ids).to(self.device),
            torch.from_numpy(batch.mask).to(self.device),
        )
