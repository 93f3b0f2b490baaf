"""A stand-in encoder: instant, deterministic, and able to misbehave on command."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from mexma.artifact import FileRecord, Manifest
from mexma.text import TextTokenizer


def _vocabulary() -> dict[str, int]:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return {"<s>": 0, "<pad>": 1, "</s>": 2} | {c: i + 3 for i, c in enumerate(alphabet)}


def byte_tokenizer_json() -> bytes:
    """A tokenizer with one token per byte of UTF-8 and `<s>`, `</s>` around them."""
    tokenizer = Tokenizer(models.BPE(vocab=_vocabulary(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer.to_str().encode()


def vector_of(ids: NDArray[np.int64], dim: int) -> NDArray[np.float32]:
    """The vector, float32 `[dim]`, that the fake gives to a sequence; of length 1."""
    seed = int.from_bytes(hashlib.sha256(ids.tobytes()).digest()[:8], "little")
    vector = np.random.default_rng(seed).standard_normal(dim).astype(np.float32)
    return vector / np.linalg.norm(vector)


class FakeEncoder:
    """Vectors from a hash of the tokens.

    broken: every batch raises. poison: a sequence holding this token id makes its whole batch
    raise. gate: cleared, it holds every batch until it is set. wrong: vectors are others'.
    renewed: how often the model was loaded again. batches: the lengths in each batch that was run.
    """

    def __init__(self, *, dim: int = 16, max_tokens: int = 64, name: str = "fake"):
        record = FileRecord(hashlib.sha256(name.encode()).hexdigest(), 1)
        self.manifest = Manifest(
            name=name, dim=dim, max_tokens=max_tokens, vocabulary_size=259, pad_id=1,
            pooling="mean", precision="fp32", prefix="", token_output_name="token_states",
            files={"model.onnx": record, "tokenizer.json": record},
        )  # fmt: skip
        self.tokenizer = TextTokenizer(byte_tokenizer_json(), max_tokens=max_tokens)
        self.engine = "fake"
        self.pads = True
        self.streams = 1
        self.broken = False
        self.poison: int | None = None
        self.not_finite: int | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.wrong = False
        self.renewed = 0
        self.batches: list[list[int]] = []

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    def run(self, sequences: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        self.batches.append([len(s) for s in sequences])
        assert self.gate.wait(30), "the test forgot to open the gate"
        if self.broken:
            raise RuntimeError("broken")
        if self.poison is not None and any(self.poison in s for s in sequences):
            raise RuntimeError("poisoned")
        vectors = np.stack([vector_of(s, self.manifest.dim) for s in sequences])
        if self.wrong:
            vectors = -vectors
        if self.not_finite is not None:
            vectors[[self.not_finite in s for s in sequences]] = np.nan
        return vectors

    def token_states(self, sequences: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        """Of each token the vector of a sequence of it alone; misbehaves as `run` does."""
        self.run(sequences)
        states = [
            np.stack([vector_of(ids[i : i + 1], self.manifest.dim) for i in range(len(ids))])
            for ids in sequences
        ]
        for ids, one in zip(sequences, states, strict=True):
            one[ids == self.not_finite] = np.nan
        return states

    def renew(self) -> None:
        """A new session computes what it should."""
        self.renewed += 1
        self.wrong = False

    def vector(self, text: str) -> NDArray[np.float32]:
        """What the service must answer for `text`."""
        return vector_of(self.tokenizer.encode([text])[0].ids, self.manifest.dim)

    def token(self, character: str) -> int:
        """The id of an ASCII letter's or digit's token."""
        return _vocabulary()[character]


def text_of(ids: NDArray[np.int64]) -> str:
    """The text of a sequence of the byte tokenizer; ASCII letters, digits and spaces only."""
    characters = {i: c for c, i in _vocabulary().items()}
    return "".join(characters[i] for i in ids.tolist()[1:-1]).replace("Ġ", " ")
