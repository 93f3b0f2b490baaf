"""Files that are whole or not there: write, fsync, hash; folders that appear by one rename."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mexma.errors import StoreCorrupt

CHUNK_BYTES = 1 << 20

Progress = Callable[[int], object]
"""Called with the number of bytes done since the last call."""


def sync(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path, progress: Progress | None = None) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            hashed.update(chunk)
            if progress:
                progress(len(chunk))
    return hashed.hexdigest()


def write(path: Path, produce: Callable[[Callable[[bytes], object]], object]) -> str:
    """Write a new file from what `produce` passes to its argument; durable on return.

    Returns the SHA-256 of what was passed, which is what a later reading must find.
    """
    hashed = hashlib.sha256()
    with path.open("xb") as file:

        def take(part: bytes) -> None:
            hashed.update(part)
            file.write(part)

        produce(take)
        file.flush()
        os.fsync(file.fileno())
    return hashed.hexdigest()


def copy(source: Path, target: Path, progress: Progress | None = None) -> str:
    """Copy a file; the copy is durable on return. Returns the SHA-256 of what was read."""

    def produce(take: Callable[[bytes], object]) -> None:
        with source.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                take(chunk)
                if progress:
                    progress(len(chunk))

    return write(target, produce)


def write_manifest(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object with its own SHA-256 beside it; durable on return."""
    text = json.dumps(content, ensure_ascii=False, indent=1)
    whole = {"content": content, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    write(path, lambda take: take(json.dumps(whole, ensure_ascii=False, indent=1).encode()))


def read_manifest(path: Path) -> dict[str, Any]:
    """What `write_manifest` wrote. Raises StoreCorrupt naming the file for anything else."""
    try:
        whole = json.loads(path.read_bytes())
        content, expected = whole["content"], whole["sha256"]
        text = json.dumps(content, ensure_ascii=False, indent=1)
        found = hashlib.sha256(text.encode()).hexdigest()
    except FileNotFoundError as e:
        raise StoreCorrupt(f"{path} must be a manifest, there is no such file") from e
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise StoreCorrupt(f"{path} must be a manifest, it cannot be read: {e}") from e
    if found != expected or not isinstance(content, dict):
        raise StoreCorrupt(f"{path} must have SHA-256 {expected}, its content has {found}")
    return content


def verify(directory: Path, files: dict[str, str], progress: Progress | None = None) -> None:
    """Compare files (name -> SHA-256) with what lies in `directory`; StoreCorrupt names the first."""
    for name, expected in files.items():
        path = directory / name
        try:
            found = digest(path, progress)
        except OSError as e:
            raise StoreCorrupt(f"{path} must be readable: {e.strerror}") from e
        if found != expected:
            raise StoreCorrupt(f"{path} must have SHA-256 {expected}, it has {found}")
