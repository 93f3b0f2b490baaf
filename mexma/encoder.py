"""Text to sentence vectors: a tokenizer and a session that belong together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mexma.artifact import Artifact, Manifest, open_artifact
from mexma.batching import split_batches
from mexma.errors import ArtifactError, NonFiniteVector
from mexma.session import Device, Engine, Session
from mexma.text import TextTokenizer, TokenBatch

# On 2 cores 1,338 sentences/s (ONNX Runtime 435), with 32 items 1,307 (419), with 128 the same as with 64.
MAX_BATCH_TOKENS = 1024
MAX_BATCH_ITEMS = 64


class Encoder(Protocol):
    """What the service needs of an encoder; a test may hand it a fake."""

    manifest: Manifest
    tokenizer: TextTokenizer

    @property
    def fingerprint(self) -> str:
        """Identifies the vectors; see `mexma.artifact.Manifest.fingerprint`."""
        ...

    @property
    def engine(self) -> str:
        """What computes, and why it is not the native engine where it is not; for people."""
        ...

    @property
    def pads(self) -> bool:
        """Whether a batch costs `n * longest` tokens, and not only those that it has."""
        ...

    @property
    def streams(self) -> int:
        """On how many threads `run` may be called at once so that the cores are used best."""
        ...

    def run(self, sequences: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Vectors float32 `[n, dim]` of `n >= 1` token sequences, as one batch."""
        ...

    def token_states(self, sequences: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        """The states of the tokens of each of them, float32 `[length, hidden]`, as one batch. Only where
        the manifest names an output for them; raises EngineError."""
        ...


def tokenizer_of(artifact: Artifact) -> TextTokenizer:
    """The tokenizer of a verified artifact. Raises ArtifactError."""
    manifest = artifact.manifest
    try:
        return TextTokenizer(
            artifact.tokenizer_json(), max_tokens=manifest.max_tokens, prefix=manifest.prefix
        )
    except ValueError as error:
        raise ArtifactError(f"{artifact.path}: {error}") from None


class OnnxEncoder:
    """An artifact, loaded."""

    def __init__(
        self, path: Path, *, device: Device = "cpu", threads: int = 0, engine: Engine = "auto"
    ):
        """Verify and load the artifact at `path`.

        Raises ArtifactError or DeviceUnavailable; see `open_artifact` and `Session`.
        """
        artifact = open_artifact(path)
        self.manifest = artifact.manifest
        self.tokenizer = tokenizer_of(artifact)
        self._artifact = artifact
        self._open = partial(Session, artifact, device=device, threads=threads, engine=engine)
        self.session = self._open()

    def renew(self) -> None:
        """Load the model into a new session; a call that hangs in the old one keeps that alone.

        Raises as the constructor does, and goes on with the old session then. So it does where
        another artifact has taken this one's place, which may not answer by this one's fingerprint, and where
        the engine that computed so far cannot be had again: batches are made for it.
        """
        found = open_artifact(self._artifact.path)
        if found.fingerprint != self.fingerprint:
            raise ArtifactError(
                f"{found.path}: expected the artifact {self.fingerprint} that was loaded from there, "
                f"found {found.fingerprint}"
            )
        again = self._open(engine=self.session.engine)
        again.reason = self.session.reason
        self.session = again

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def engine(self) -> str:
        session = self.session
        reason = f" (not native: {session.reason})" if session.reason else ""
        return f"{session.engine}, {session.arithmetic}{reason}"

    @property
    def pads(self) -> bool:
        return self.session.pads

    @property
    def streams(self) -> int:
        return self.session.streams

    def run(self, sequences: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        return self.session.run(TokenBatch.pad(sequences, self.manifest.pad_id))

    def token_states(self, sequences: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        states = self.session.token_states(TokenBatch.pad(sequences, self.manifest.pad_id))
        # Copied: a slice of the batch would keep all of it in memory.
        return [row[: len(ids)].copy() for row, ids in zip(states, sequences, strict=True)]


def encode(
    encoder: Encoder,
    texts: Sequence[str],
    *,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    max_batch_items: int = MAX_BATCH_ITEMS,
) -> NDArray[np.float32]:
    """Vectors float32 `[len(texts), dim]`, in the order of `texts`, outside any server.

    Length-grouped. Texts beyond the encoder's limit are truncated on the right. Raises InputError for
    texts that cannot be embedded, and NonFiniteVector.
    """
    sequences = [t.ids for t in encoder.tokenizer.encode(texts)]
    out = np.empty((len(sequences), encoder.manifest.dim), np.float32)
    lengths = [len(s) for s in sequences]
    for batch in split_batches(lengths, max_tokens=max_batch_tokens, max_items=max_batch_items):
        out[batch] = encoder.run([sequences[i] for i in batch])
        finite = np.isfinite(out[batch]).all(axis=1)
        if not finite.all():
            item = batch[int(np.argmin(finite))]
            raise NonFiniteVector(f"item {item}: its vector is not finite", item=item)
    return out
