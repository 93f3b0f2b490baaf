"""What a training checkpoint directory holds, and whether it is complete. No tensors.

    checkpoint/
        mexma.json           this file's business: pooling, prefix, limits, hashes
        config.json          the backbone's Hugging Face configuration
        model.safetensors    the backbone's weights under their Hugging Face names
        tokenizer.json

The layout is a Hugging Face model directory plus `mexma.json`, so `transformers` opens it
too. `mexma.json` is written last: a directory without it is not a finished checkpoint.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mexma.artifact import POOLINGS, FileRecord, hash_file
from mexma.errors import CheckpointError

DESCRIPTION = "mexma.json"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
FILES = (CONFIG, WEIGHTS, TOKENIZER)
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class CheckpointDescription:
    """The content of `mexma.json`.

    pooling: how token states become a sentence vector. max_tokens: longest input, special
    tokens included. prefix: put before every text. step: optimiser steps taken so far.
    source: where the weights started from, and licences. files: hashes of the others.
    """

    pooling: str
    max_tokens: int
    prefix: str
    step: int
    source: dict[str, Any]
    files: dict[str, FileRecord]
    schema_version: int = SCHEMA_VERSION


def is_checkpoint(path: Path) -> bool:
    """Does `path` carry our description? (Whether it is intact is another question.)"""
    return (path / DESCRIPTION).is_file()


def open_checkpoint(path: Path) -> CheckpointDescription:
    """Verify a checkpoint completely. Raises CheckpointError, one sentence each."""
    file = path / DESCRIPTION
    if not file.is_file():
        raise CheckpointError(f"{path}: no {DESCRIPTION}; not a finished checkpoint")
    try:
        raw = json.loads(file.read_bytes())
        version = raw["schema_version"]
        if version > SCHEMA_VERSION:
            raise CheckpointError(
                f"{file}: schema version {version} is newer than {SCHEMA_VERSION}, the newest "
                "this version reads"
            )
        raw["files"] = {name: FileRecord(**record) for name, record in raw["files"].items()}
        description = CheckpointDescription(
            **{f.name: raw[f.name] for f in fields(CheckpointDescription)}
        )
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file}: not valid JSON: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: malformed: {type(error).__name__} {error}") from None
    if description.pooling not in POOLINGS:
        raise CheckpointError(
            f"{file}: pooling must be one of {', '.join(POOLINGS)}, found {description.pooling!r}"
        )
    for name in FILES:
        if name not in description.files:
            raise CheckpointError(f"{file}: lists no {name}")
        if not (path / name).is_file():
            raise CheckpointError(f"{path / name}: listed in {DESCRIPTION} but missing")
        found = hash_file(path / name)
        if found != description.files[name]:
            raise CheckpointError(
                f"{path / name}: expected {description.files[name].bytes} bytes with SHA-256 "
                f"{description.files[name].sha256[:16]}…, found {found.bytes} bytes with "
                f"{found.sha256[:16]}…"
            )
    return description


def describe_checkpoint(
    path: Path, *, pooling: str, max_tokens: int, prefix: str, step: int, source: dict[str, Any]
) -> CheckpointDescription:
    """Hash the files in `path` and write `mexma.json`, which makes it a checkpoint."""
    description = CheckpointDescription(
        pooling=pooling,
        max_tokens=max_tokens,
        prefix=prefix,
        step=step,
        source=source,
        files={name: hash_file(path / name) for name in FILES},
    )
    (path / DESCRIPTION).write_text(json.dumps(asdict(description), indent=2) + "\n")
    return description
