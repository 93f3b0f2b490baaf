"""Approximate indexes on disk: derived files, each whole or not there, the newest two kept.

    index/
        g00000000000000012345.5f1c0a9e/     the number is its seq: rows above it are not in it
            vectors.faiss  rids.npy  sketches.npy  manifest.json
        .new-…  .gone-…                     never read, removed when found

FAISS's reader trusts its input, so every file's hash is compared with the manifest's before
anything is parsed, and the manifest's with its own.

Refuses to know: which rows exist now.
"""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from mexma.errors import StoreCorrupt
from service.store import durable
from service.store.approximate import Approximate, Shape
from service.store.loaded_faiss import faiss
from service.store.steps import reached

log = logging.getLogger(__name__)

FOLDER = "index"
VECTORS, RIDS, SKETCHES, MANIFEST = "vectors.faiss", "rids.npy", "sketches.npy", "manifest.json"
KEPT = 2
NEW, GONE = ".new-", ".gone-"
SCHEMA = 3


@dataclass(frozen=True)
class Generations:
    """The folder `index` of one collection. dim, fingerprint: the collection's."""

    collection: Path
    dim: int
    fingerprint: str

    @property
    def folder(self) -> Path:
        return self.collection / FOLDER

    def all(self) -> list[Path]:
        """The generations there are, newest first."""
        return sorted(self.folder.glob("g*.*"), reverse=True)

    def save(self, approximate: Approximate) -> Path:
        """Write a generation, durably. Raises OSError; then nothing of it is left."""
        name = f"g{approximate.seq:020d}.{secrets.token_hex(4)}"
        new, final = self.folder / f"{NEW}{name}", self.folder / name
        if not self.folder.exists():
            self.folder.mkdir()
            durable.sync(self.collection)
        self._remove_leftovers()
        try:
            new.mkdir()
            reached("generation: folder made")
            files = {
                VECTORS: durable.write(
                    new / VECTORS,
                    lambda take: faiss.write_index(
                        approximate.index, faiss.PyCallbackIOWriter(take)
                    ),
                )
            }
            reached("generation: index written")
            for file, array in ((RIDS, approximate.rids), (SKETCHES, approximate.sketches)):
                files[file] = durable.write(new / file, _saver(array))
            reached("generation: rows written")
            durable.write_manifest(new / MANIFEST, self._manifest(approximate, files))
            durable.sync(new)
            reached("generation: manifest written")
            new.rename(final)
            reached("generation: renamed")
            durable.sync(self.folder)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        reached("generation: durable")
        self.prune()
        return final

    def _manifest(self, approximate: Approximate, files: dict[str, str]) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "seq": approximate.seq,
            "count": len(approximate.rids),
            "dim": self.dim,
            "metric": "squared distance of vectors of length 1",
            "factory": approximate.shape.factory,
            "bytes": approximate.shape.bytes,
            "reach": approximate.reach,
            "depth": approximate.depth,
            "measured": approximate.measured,
            "fingerprint": self.fingerprint,
            "faiss": faiss.__version__,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "files": files,
        }

    def prune(self) -> None:
        """Remove all but the newest, and what a kill left behind."""
        for old in self.all()[KEPT:]:
            self.remove(old)
        reached("generation: older removed")

    def remove(self, generation: Path) -> None:
        """Remove one; by a rename first, so that no half of it is ever taken for whole."""
        gone = generation.with_name(GONE + generation.name)
        generation.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        for path in self.folder.glob(".*-*"):
            shutil.rmtree(path, ignore_errors=True)

    def verify(self, generation: Path, progress: durable.Progress | None = None) -> dict[str, Any]:
        """Compare all hashes; the manifest. Raises StoreCorrupt naming the file."""
        manifest = durable.read_manifest(generation / MANIFEST)
        if manifest.get("schema") != SCHEMA:
            raise StoreCorrupt(
                f"{generation} must have schema {SCHEMA}, it has {manifest.get('schema')}"
            )
        durable.verify(generation, manifest["files"], progress)
        return manifest

    def load(self, generation: Path) -> Approximate:
        """Read one. Raises StoreCorrupt where it does not verify or is not this collection's."""
        manifest = self.verify(generation)
        for what, expected in (
            ("dim", self.dim),
            ("fingerprint", self.fingerprint),
            ("faiss", faiss.__version__),
        ):
            if manifest[what] != expected:
                raise StoreCorrupt(
                    f"{generation} must have {what} {expected}, it has {manifest[what]}"
                )
        index = faiss.read_index(str(generation / VECTORS))
        rids = np.load(generation / RIDS, allow_pickle=False)
        sketches = np.load(generation / SKETCHES, allow_pickle=False)
        count = manifest["count"]
        if not index.ntotal == len(rids) == len(sketches) == count or index.d != self.dim:
            raise StoreCorrupt(
                f"{generation} must hold {count} vectors of dim {self.dim}, it holds "
                f"{index.ntotal} of {index.d}, {len(rids)} rids, {len(sketches)} sketches"
            )
        shape = Shape(manifest["factory"], manifest["bytes"])
        reach = tuple((float(recall), int(probes)) for recall, probes in manifest["reach"])
        return Approximate(
            shape,
            index,
            rids,
            sketches,
            manifest["seq"],
            reach,
            manifest["depth"],
            manifest["measured"],
        )

    def newest(self, fits: Callable[[Approximate], str | None]) -> Approximate | None:
        """The newest that verifies and `fits` (which says what is wrong, or None).

        Each that does not is named in the log and removed: the truth will make another.
        """
        for generation in self.all():
            try:
                found = self.load(generation)
                if (wrong := fits(found)) is None:
                    return found
                raise StoreCorrupt(f"{generation} does not belong to its collection: {wrong}")
            except (StoreCorrupt, RuntimeError, ValueError, OSError) as error:
                if not generation.exists():
                    continue  # its collection was dropped meanwhile
                log.error("an index is refused and will be made again: %s", error)
                self.remove(generation)
        return None


def _saver(array: Any) -> Callable[[Callable[[bytes], object]], object]:
    class Sink:
        def __init__(self, take: Callable[[bytes], object]):
            self.write = take

    def produce(take: Callable[[bytes], object]) -> None:
        np.save(Sink(take), array, allow_pickle=False)

    return produce
