"""What is evaluated: something that turns texts into unit vectors, and says what it is.

Three kinds, told apart by how they are named: a service by its URL, an artifact by its
manifest, anything else that is a directory is taken for a checkpoint. The metrics see only
`Subject`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from evaluation.retrieval import Float, Index
from mexma.artifact import MANIFEST
from mexma.batching import split_batches
from mexma.encoder import MAX_BATCH_ITEMS, MAX_BATCH_TOKENS, OnnxEncoder
from mexma.errors import InputError, NonFiniteVector
from mexma.session import Device
from mexma.text import TokenBatch


class WordStates(NamedTuple):
    """Of one sentence. states: float32 `[pieces, hidden]`, without special tokens. word: int64
    `[pieces]`, the number of the word each piece belongs to."""

    states: Float
    word: Index


class Subject(Protocol):
    """An encoder under evaluation.

    about: kind, name, fingerprint and whatever else identifies it. truncated: texts that were
    cut so far.
    """

    about: dict[str, Any]
    truncated: int

    @property
    def has_token_states(self) -> bool: ...

    def vectors(self, texts: Sequence[str]) -> Float:
        """Unit vectors float32 `[n, dim]`, in order. Raises MexmaError."""
        ...

    def token_states(self, sentences: Sequence[Sequence[str]]) -> list[WordStates]:
        """States of sentences given as words; only where `has_token_states`."""
        ...


class ArtifactSubject:
    """An artifact, run in this process."""

    def __init__(self, path: Path, *, device: Device = "cpu", threads: int = 0):
        """Raises ArtifactError or DeviceUnavailable."""
        self.encoder = OnnxEncoder(path, device=device, threads=threads)
        manifest = self.encoder.manifest
        self.truncated = 0
        self.about: dict[str, Any] = {
            "kind": "artifact",
            "name": manifest.name,
            "fingerprint": manifest.fingerprint,
            "precision": manifest.precision,
            "pooling": manifest.pooling,
            "prefix": manifest.prefix,
            "dim": manifest.dim,
            "device": device,
        }
        self._pieces = Pieces(
            (path / "tokenizer.json").read_bytes(),
            prefix=manifest.prefix,
            max_tokens=manifest.max_tokens,
        )

    @property
    def has_token_states(self) -> bool:
        return self.encoder.manifest.token_output_name is not None

    def vectors(self, texts: Sequence[str]) -> Float:
        tokens = self.encoder.tokenizer.encode(texts)
        self.truncated += sum(t.seen > len(t) for t in tokens)
        out = np.empty((len(texts), self.encoder.manifest.dim), np.float32)
        for batch in in_batches([len(t) for t in tokens], self.about["name"]):
            out[batch] = self.encoder.run([tokens[i].ids for i in batch])
        return unit_vectors(out, texts)

    def token_states(self, sentences: Sequence[Sequence[str]]) -> list[WordStates]:
        return self._pieces.states(
            sentences, self.encoder.session.token_states, self.encoder.manifest.pad_id
        )


class Pieces:
    """Words to token ids, remembering which piece came from which word."""

    def __init__(self, tokenizer_json: bytes, *, prefix: str, max_tokens: int):
        self._tokenizer = Tokenizer.from_buffer(tokenizer_json)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self._prefix = prefix.split()

    def states(self, sentences: Sequence[Sequence[str]], run: Any, pad_id: int) -> list[WordStates]:
        """run: TokenBatch -> token states float32 `[n, longest, hidden]`."""
        encoded = [
            self._tokenizer.encode([*self._prefix, *words], is_pretokenized=True)
            for words in sentences
        ]
        ids = [np.array(e.ids, np.int64) for e in encoded]
        out: dict[int, WordStates] = {}
        for batch in in_batches([len(i) for i in ids], "token states"):
            states = run(TokenBatch.pad([ids[i] for i in batch], pad_id))
            for row, i in enumerate(batch):
                word = np.array([-1 if w is None else w for w in encoded[i].word_ids], np.int64)
                word -= len(self._prefix)
                kept = np.flatnonzero(word >= 0)
                out[i] = WordStates(np.asarray(states[row, kept], np.float32), word[kept])
        return [out[i] for i in range(len(sentences))]


def in_batches(lengths: Sequence[int], title: str) -> Iterable[list[int]]:
    """Batches of indices of similar length, with a progress bar that counts texts."""
    with tqdm(total=len(lengths), desc=title, unit="text", disable=None, leave=False) as bar:
        for batch in split_batches(lengths, max_tokens=MAX_BATCH_TOKENS, max_items=MAX_BATCH_ITEMS):
            yield batch
            bar.update(len(batch))


def unit_vectors(vectors: Float, texts: Sequence[str]) -> Float:
    """`vectors` float32 `[n, dim]` with rows of length 1. Raises NonFiniteVector."""
    bad = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(bad):
        item = int(bad[0])
        raise NonFiniteVector(
            f"the encoder gave NaN or infinity for {texts[item][:80]!r}, and for {len(bad) - 1} "
            "texts more",
            item=item,
        )
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    norms[norms == 0] = 1
    return np.asarray(vectors / norms, np.float32)


class VectorTable:
    """Every distinct text is embedded once, however many metrics and languages ask for it."""

    def __init__(self, subject: Subject):
        self._subject = subject
        self._row: dict[str, int] = {}
        self._vectors: Float | None = None

    def __len__(self) -> int:
        return len(self._row)

    def load(self, texts: Iterable[str]) -> None:
        """Embed those of `texts` that are new, all together, so that they batch well."""
        new = [text for text in dict.fromkeys(texts) if text not in self._row]
        if not new:
            return
        try:
            vectors = self._subject.vectors(new)
        except InputError as error:
            if error.item is None:
                raise
            raise InputError(f"text {new[error.item][:80]!r}: {error}", item=error.item) from None
        for text in new:
            self._row[text] = len(self._row)
        old = self._vectors
        self._vectors = vectors if old is None else np.vstack([old, vectors])

    def of(self, texts: Sequence[str]) -> Float:
        """Unit vectors float32 `[n, dim]` of `texts`, n >= 1."""
        self.load(texts)
        if self._vectors is None:
            raise InputError("embedding: expected at least one text, got none")
        return self._vectors[[self._row[text] for text in texts]]


def open_subject(
    name: str,
    *,
    device: Device = "cpu",
    threads: int = 0,
    pooling: str | None = None,
    prefix: str | None = None,
    model: str | None = None,
) -> Subject:
    """The subject called `name`: a URL, an artifact directory or a checkpoint directory.

    device and threads are the service's own business there; pooling and prefix are for Hugging
    Face checkpoints that do not say, model for services that serve several. Raises MexmaError when it
    cannot be opened, and InputError for what is not for it.
    """
    remote = name.startswith(("http://", "https://"))
    path = Path(name)
    fixed = remote or (path / MANIFEST).is_file()
    for option, given in (("--pooling", pooling), ("--prefix", prefix)):
        if fixed and given is not None:
            raise InputError(
                f"{option} is for checkpoints; {name} is {'a service' if remote else 'an artifact'}, "
                "which has its own"
            )
    if model is not None and not remote:
        raise InputError(f"--model is for services, to which {name} is none")
    if remote:
        from evaluation.remote import ServiceSubject  # noqa: PLC0415  needs httpx

        return ServiceSubject(name, model=model)
    if fixed:
        return ArtifactSubject(path, device=device, threads=threads)
    if not path.is_dir():
        raise InputError(
            f"{name}: expected a checkpoint directory, an artifact directory or a URL, found none"
        )
    # torch takes seconds to import, and need not be there for the other kinds.
    from evaluation.checkpoint import CheckpointSubject  # noqa: PLC0415

    return CheckpointSubject(name, device=device, threads=threads, pooling=pooling, prefix=prefix)
