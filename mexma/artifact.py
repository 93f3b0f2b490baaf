"""A model directory that can prove it is what was exported.

    models/default/
        manifest.json      what it is: hashes, shapes, source, parity and quality numbers
        model.onnx         the graph: token ids and mask in, normalised sentence vector out
        model.onnx.data    weights, where they are kept outside the graph
        tokenizer.json
        README.md          the model card; for people, so the one file not hashed

Refuses to know: any inference runtime, torch, HTTP. Every byte is hashed before anything
parses it. The fingerprint is a hash over the file hashes and the settings that shape a
vector, so it changes when, and only when, the vectors can; it does not cover the numbers
that describe the model.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from mexma.errors import ArtifactError

SCHEMA_VERSION = 1
LONGEST_NAME = 200
"""Of a model, in characters."""
MANIFEST = "manifest.json"
MODEL = "model.onnx"
EXTERNAL = f"{MODEL}.data"
"""Weights beyond what one ONNX file can hold, or that two graphs share."""
PACKED = "packed.onnx"
"""The same weights over tokens laid end to end, for CUDA alone; artifacts in fp16 have it."""
TOKENIZER = "tokenizer.json"
CARD = "README.md"

POOLINGS = ("first_token", "mean")
PRECISIONS = ("fp32", "fp16", "int8", "compact")


@dataclass(frozen=True)
class FileRecord:
    """What one file must be: its SHA-256 as hex, and its size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    dim: components of the sentence vector. max_tokens: longest input, special tokens
    included. prefix: put before every text. input_names and output_name: of the graph,
    int64 `[batch, length]` twice (ids, mask) and float32 `[batch, dim]`. token_output_name:
    float32 `[batch, length, hidden]`, where it was exported. source: where the weights come
    from and under which licence. parity and quality: measurements, free form.
    """

    name: str
    dim: int
    max_tokens: int
    vocabulary_size: int
    pad_id: int
    pooling: str
    precision: str
    prefix: str
    files: dict[str, FileRecord]
    input_names: tuple[str, str] = ("input_ids", "attention_mask")
    output_name: str = "sentence_embedding"
    token_output_name: str | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    exporter: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @cached_property  # asked for with every request
    def fingerprint(self) -> str:
        """16 hex digits that identify the vectors this artifact produces."""
        shaping = {
            "files": {name: record.sha256 for name, record in sorted(self.files.items())},
            "max_tokens": self.max_tokens,
            "pooling": self.pooling,
            "prefix": self.prefix,
            "output": self.output_name,
        }
        text = json.dumps(shaping, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> str:
        return json.dumps(
            {"fingerprint": self.fingerprint, **asdict(self)}, indent=2, ensure_ascii=False
        )


@dataclass(frozen=True)
class Artifact:
    """A verified model directory."""

    path: Path
    manifest: Manifest

    @property
    def model(self) -> Path:
        return self.path / MODEL

    @property
    def packed(self) -> Path | None:
        """The graph over tokens laid end to end, where there is one."""
        return self.path / PACKED if PACKED in self.manifest.files else None

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    def tokenizer_json(self) -> bytes:
        return (self.path / TOKENIZER).read_bytes()


def no_model_name(name: str) -> str | None:
    """Why a model cannot be called so, by which clients ask for it and which stands in logs and metrics; None
    where it can."""
    if name and len(name) <= LONGEST_NAME and name.isprintable() and name == name.strip():
        return None
    return (
        f"expected a name of 1 to {LONGEST_NAME} printable characters, without spaces around it, "
        f"found {name[:LONGEST_NAME]!r}"
    )


def hash_file(path: Path) -> FileRecord:
    """SHA-256 and size of a file, read in pieces."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileRecord(digest, os.fstat(file.fileno()).st_size)


def open_artifact(path: Path) -> Artifact:
    """Verify `path` completely and return it. Raises ArtifactError, one sentence each."""
    manifest = read_manifest(path)
    for name, expected in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise ArtifactError(f"{file}: listed in the manifest but missing")
        size = file.stat().st_size
        if size != expected.bytes:
            hint = " (truncated?)" if size < expected.bytes else ""
            raise ArtifactError(f"{file}: expected {expected.bytes} bytes, found {size}{hint}")
        found = hash_file(file).sha256
        if found != expected.sha256:
            raise ArtifactError(
                f"{file}: expected SHA-256 {expected.sha256[:16]}…, found {found[:16]}…; "
                "the file is damaged or was changed after export"
            )
    return Artifact(path, manifest)


def read_manifest(path: Path) -> Manifest:
    """Parse and check `manifest.json` alone. Raises ArtifactError."""
    if not path.is_dir():
        raise ArtifactError(
            f"{path}: expected a model directory, found none (mexma-export makes one, also from "
            "the name of a model on the hub)"
        )
    file = path / MANIFEST
    try:
        raw = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(
            f"{path}: no {MANIFEST}; not an artifact (mexma-export makes one)"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ArtifactError(f"{file}: expected a JSON object, found {type(raw).__name__}")
    version = raw.get("schema_version")
    if not isinstance(version, int) or version < 1:
        raise ArtifactError(f"{file}: schema_version must be a positive integer, found {version!r}")
    if version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{file}: schema version {version} is newer than {SCHEMA_VERSION}, the newest "
            "this version reads; upgrade the service"
        )
    return _parse(file, raw)


def _parse(file: Path, raw: dict[str, Any]) -> Manifest:
    claimed = raw.pop("fingerprint", None)
    known = {f.name for f in fields(Manifest)}
    if unknown := sorted(set(raw) - known):
        raise ArtifactError(
            f"{file}: unknown field {unknown[0]!r} for schema {raw['schema_version']}"
        )
    kinds: dict[str, type | tuple[type, ...]] = {
        "name": str, "dim": int, "max_tokens": int, "vocabulary_size": int, "pad_id": int,
        "pooling": str, "precision": str, "prefix": str, "files": dict,
    }  # fmt: skip
    for name, kind in kinds.items():
        if name not in raw:
            raise ArtifactError(f"{file}: field {name!r} is missing")
        if not isinstance(raw[name], kind) or isinstance(raw[name], bool):
            raise ArtifactError(f"{file}: field {name!r} has the wrong type, found {raw[name]!r}")
    for name in ("dim", "max_tokens", "vocabulary_size"):
        if raw[name] < 1:
            raise ArtifactError(f"{file}: {name} must be positive, found {raw[name]}")
    for name, allowed in (("pooling", POOLINGS), ("precision", PRECISIONS)):
        if raw[name] not in allowed:
            raise ArtifactError(
                f"{file}: {name} must be one of {', '.join(allowed)}, found {raw[name]!r}"
            )
    if why := no_model_name(raw["name"]):
        raise ArtifactError(f"{file}: {why}")
    files = _parse_files(file, raw["files"])
    names = raw.get("input_names", Manifest.input_names)
    if not (isinstance(names, list | tuple) and len(names) == 2):
        raise ArtifactError(f"{file}: input_names must be two names, found {names!r}")
    manifest = Manifest(**{**raw, "files": files, "input_names": tuple(names)})
    if claimed is not None and claimed != manifest.fingerprint:
        raise ArtifactError(
            f"{file}: claims fingerprint {claimed}, but its content has {manifest.fingerprint}"
        )
    return manifest


def _parse_files(file: Path, raw: dict[str, Any]) -> dict[str, FileRecord]:
    files = {}
    for name, record in raw.items():
        if Path(name).name != name or name in (".", ".."):
            raise ArtifactError(f"{file}: file name {name!r} leaves the model directory")
        try:
            files[name] = FileRecord(str(record["sha256"]), int(record["bytes"]))
        except (KeyError, TypeError, ValueError):
            raise ArtifactError(f"{file}: the record of file {name!r} is malformed") from None
    for name in (MODEL, TOKENIZER):
        if name not in files:
            raise ArtifactError(f"{file}: lists no {name}")
    return files


def check_replaceable(target: Path, source: Path | None = None) -> None:
    """Whether an artifact may be put where `target` is: nothing, an empty directory, or an artifact, and
    nothing that `source` lies in. Raises ArtifactError: what is replaced is gone."""
    if source is not None and source.exists() and source.resolve().is_relative_to(target.resolve()):
        raise ArtifactError(
            f"{target}: the source {source} lies in it and would be replaced with it; choose another place"
        )
    if not target.exists():
        return
    if not target.is_dir():
        raise ArtifactError(f"{target}: expected a place for a directory, it is a file")
    known = (MANIFEST, MODEL, EXTERNAL, PACKED, TOKENIZER, CARD)
    if others := sorted(path.name for path in target.iterdir() if path.name not in known):
        raise ArtifactError(
            f"{target}: expected nothing there, or an artifact to replace; it holds {others[0]!r}"
            + (f" and {len(others) - 1} more that are no part of one" if len(others) > 1 else "")
        )


@contextmanager
def replace_directory(target: Path) -> Iterator[Path]:
    """Write a directory so that it appears whole or not at all.

    Yields a temporary directory beside `target`; when the block ends well, every file in
    it is synced and it takes the name `target`, replacing what was there. When the block
    raises, it is removed and `target` stays as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        _sync(temporary)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
            target.rename(old / target.name)
            temporary.rename(target)
            shutil.rmtree(old)
        else:
            temporary.rename(target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def is_artifact(path: Path) -> bool:
    """Whether this is meant to be one; `open_artifact` says whether it is whole."""
    return (path / MANIFEST).is_file() and (path / MODEL).is_file()


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into `path`."""
    (path / MANIFEST).write_text(manifest.to_json() + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
