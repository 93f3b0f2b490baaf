"""Batches of sentences that mean nearly the same, whose negatives are hard to tell apart.

In-batch negatives drawn at random are mostly about something else, and after the first few thousand
pairs teach little. Here the English sentences that a run will read are embedded once, by the encoder that
it starts from, and a batch takes groups of near ones (negatives from the neighbourhood of an earlier model:
Xiong et al. 2021, "ANCE", arXiv 2007.00808, section 3; whole batches of neighbours: Sachidananda et al. 2023,
"Global Selection of Contrastive Batches via Optimization on Sample Permutations", ICML).

What lies on disk beside the run is read again on resuming, so that groups stay what they were; vectors are
whole numbers, of which `training.groups` makes the same groups on any machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from training.corpus import Corpus
from training.errors import RunStateError
from training.ranks import Ranks

Ids = NDArray[np.int64]
Embed = Callable[[list[str]], NDArray[np.float32]]

FILE = "alike.npz"
SCALE = 512
"""Of components in whole numbers: those of a vector of length 1 are mostly within a tenth."""
AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class Alike:
    """vectors: int8 `[n, dim]`, of distinct English sentences. row: int32 `[pairs of the corpus]`, which of
    them is a pair's; -1 for pairs that the run does not read."""

    vectors: NDArray[np.int8]
    row: NDArray[np.int32]

    def vectors_of(self, pairs: Ids) -> NDArray[np.int8]:
        """Of the English sentences of some pairs (by number), int8 `[len(pairs), dim]`."""
        vectors: NDArray[np.int8] = self.vectors[self.row[pairs]]
        return vectors


def find_alike(
    out: Path, corpus: Corpus, pairs: Ids, embed: Embed, ranks: Ranks, *, start: str, quiet: bool
) -> Alike:
    """Of the run in `out`, which reads these pairs of its corpus. embed: texts to L2-normalised float32
    `[n, dim]`, asked on the first rank only, where there is no file of an earlier start.

    start: names the starting weights. Raises RunStateError where the file is of other pairs or weights.
    """
    read = np.unique(pairs)
    encoded = corpus.targets.take(read).dictionary_encode()
    row = np.full(len(corpus), -1, np.int32)
    row[read] = encoded.indices.to_numpy(zero_copy_only=False)
    found = None
    if ranks.first:
        belongs = f"{corpus.fingerprint} {len(read)} {start}"
        found = _kept(out / FILE, belongs)
        if found is None:
            found = _embedded(encoded.dictionary.to_pylist(), embed, quiet=quiet)
            _keep(out / FILE, found, belongs)
    [found, *_] = ranks.gather(found)
    assert found is not None  # noqa: S101  the first rank's
    return Alike(found, row)


def _embedded(texts: Sequence[str], embed: Embed, *, quiet: bool) -> NDArray[np.int8]:
    parts = []
    with tqdm(total=len(texts), unit="sentence", desc="grouping", disable=quiet) as bar:
        for start in range(0, len(texts), AT_ONCE):
            some = list(texts[start : start + AT_ONCE])
            parts.append(np.rint(embed(some) * SCALE).clip(-127, 127).astype(np.int8))
            bar.update(len(some))
    return np.concatenate(parts)


def _kept(file: Path, belongs: str) -> NDArray[np.int8] | None:
    if not file.exists():
        return None
    with np.load(file, allow_pickle=False) as there:
        if str(there["belongs"]) != belongs:
            raise RunStateError(
                f"{file}: is of pairs and weights {there['belongs']}, expected {belongs}; a run needs "
                "the files and settings it was started with"
            )
        vectors: NDArray[np.int8] = there["vectors"]
    return vectors


def _keep(file: Path, vectors: NDArray[np.int8], belongs: str) -> None:
    """Whole or not there, whatever stops it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{FILE}.new")
    with new.open("wb") as out:
        np.savez(out, vectors=vectors, belongs=np.array(belongs))
        out.flush()
        os.fsync(out.fileno())
    new.rename(file)
