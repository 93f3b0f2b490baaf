"""Weights that do not fit each other, raw calls of the binding, and damaged files.

Cases as in `tests.sanitize.calls`: each is refused with a clear exception, or does no harm.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from mexma import native
from mexma.artifact import MODEL, Artifact, read_manifest
from mexma.errors import ArtifactError
from mexma.onnx_file import read_graph
from mexma.weights import EncoderWeights, Linear, Norm, Table, read_weights
from tests.mexma.test_native import VOCABULARY, run
from tests.sanitize.calls import Rng, any_batch, any_engine, any_weights, pick

EDGES = (-(2**63), -(2**31) - 1, -1, 0, 2**31 - 1, 2**31, 2**32, 2**63 - 1)


def _changed(array: np.ndarray, rng: Rng) -> np.ndarray:
    """Another shape: rows or columns fewer or more, turned, flat, none."""
    way = int(rng.integers(6))
    axis = int(rng.integers(array.ndim))
    if way == 0:
        return np.delete(array, 0, axis)
    if way == 1:
        return np.concatenate([array, array], axis)
    if way == 2:
        return array.T if array.ndim > 1 else array[:0]
    if way == 3:
        return array.reshape(-1)
    if way == 4:
        return array.reshape(-1, 1)
    return np.pad(array, [(0, 32) if i == axis else (0, 0) for i in range(array.ndim)])


def _ill(weights: EncoderWeights, rng: Rng) -> EncoderWeights:
    """One part of another shape."""
    part = pick(rng, ["table", "positions", "embedding_norm", "layer", "layer", "head", "heads"])
    if part == "heads":
        return replace(weights, heads=pick(rng, [-1, 0, 1, 3, 5, 7, 1000, 2**31]))
    if part == "positions":
        return replace(weights, positions=_changed(weights.positions, rng))
    if part == "table":
        table = weights.table
        rows = pick(rng, [*EDGES, VOCABULARY + 1, 2**54, 2**55, 2**56, 2**57, 2**58, 2**59, 2**60])
        scales = None if table.scales is None else _changed(table.scales, rng)
        return replace(weights, table=pick(rng, [
            replace(table, rows=rows), replace(table, codes=_changed(table.codes, rng)),
            replace(table, scales=scales), Table(table.codes[:0], table.scales, table.bits, rows),
            Table(table.codes[:0], None if scales is None else scales[:0], table.bits, rows),
        ]))  # fmt: skip
    if part == "layer":
        if rng.random() < 0.1:
            return replace(weights, layers=[])
        index = int(rng.integers(len(weights.layers)))
        layer = weights.layers[index]
        name = pick(rng, [f.name for f in fields(layer)])
        ill = replace(layer, **{name: _ill_pair(getattr(layer, name), rng)})
        return replace(weights, layers=[*weights.layers[:index], ill, *weights.layers[index + 1 :]])
    pair = getattr(weights, part) or Linear(np.ones((9, 9), np.float32), np.ones(9, np.float32))
    return replace(weights, **{part: _ill_pair(pair, rng)})


def _ill_pair(pair: Linear | Norm, rng: Rng) -> Any:
    names = [f.name for f in fields(pair)]
    if isinstance(pair, Linear) and rng.random() < 0.3:  # of a right number of values
        return Linear(np.ascontiguousarray(pair.matrix.T), np.resize(pair.bias, len(pair.matrix)))
    name = pick(rng, names)
    return replace(pair, **{name: _changed(getattr(pair, name), rng)})


def ill_weights(rng: Rng, kernel: str) -> None:
    """Parts that are not of each other's shapes are refused, or do no harm."""
    weights = any_weights(rng)
    try:
        engine = any_engine(_ill(weights, rng), rng, kernel)
    except (ValueError, OverflowError):
        return
    try:
        run(engine, any_batch(rng, len(weights.positions), 300))
    except (IndexError, ValueError):
        return


def raw_calls(rng: Rng, kernel: str) -> None:
    """The binding itself, called in any order with any numbers."""
    binding: Any = native._engine
    refused = (ValueError, IndexError, OverflowError, TypeError, BufferError)
    small = (-(2**31), -1, 0, 1, 2, 31, 32, 33, 64, 2**16, 2**31 - 1)
    numbers: list[Any] = [32, 2, 16, 32, 1, 32, 8, 1e-5, 1, False, True, 2, 64]
    for _ in range(int(rng.integers(3))):
        at = int(rng.integers(len(numbers)))
        if at not in (7, 9, 10):
            # Without what would only start thousands of threads or fill the memory.
            numbers[at] = pick(rng, [n for n in small if at not in (4, 11) or n < 65])
    try:
        handle = binding.create(pick(rng, [kernel, kernel, kernel, "abacus"]), *numbers)
    except refused:
        return
    for _ in range(40):
        buffer = np.zeros(int(pick(rng, [0, 1, 31, 32, 33, 256, 1024, 3072, 4096])), np.float32)
        given = pick(rng, [buffer, buffer.tobytes()[:-1], b"", buffer.reshape(-1)[::2], None])
        layer, which = (int(pick(rng, [-(2**31), -1, 0, 0, 1, 2**31 - 1])) for _ in range(2))
        which = pick(rng, [which, int(rng.integers(10))])
        k, n = (pick(rng, [-32, 0, 1, 16, 32, 64, 96, 2**31 - 1]) for _ in range(2))
        bias, rows = np.zeros(abs(n) % 999, np.float32), pick(rng, [*EDGES, 8, 2**56, 2**57, 2**60])
        one, ids, vectors = (
            np.ones(2, np.int32),
            np.zeros(2, np.int64),
            np.zeros((2, 32), np.float32),
        )
        call: tuple[str, tuple[Any, ...]] = pick(rng, [
            ("set_vector", (layer, which, given)), ("set_matrix", (layer, which, given, k, n, bias)),
            ("set_table", (which, given, given, rows)), ("run", (given, one, vectors, None)),
            ("run", (ids, one, given, given)), ("run", (given, given, given, given)),
        ])  # fmt: skip
        try:
            getattr(binding, call[0])(handle, *call[1])
        except refused:
            continue


class Files:
    """A small artifact's files, damaged anew for each case."""

    def __init__(self, whole: Path, place: Path):
        self.manifest = read_manifest(whole)
        self.content = (whole / MODEL).read_bytes()
        self.place = place
        # Damage is where the structure is: in random weights' bytes it is only other weights.
        taken = np.zeros(len(self.content), bool)
        for weight in read_graph(whole / MODEL).weights.values():
            if weight.stored.nbytes > 64:
                at = self.content.find(weight.stored.tobytes())
                taken[at : at + weight.stored.nbytes] = True
        self.structure = np.flatnonzero(~taken)

    def damaged(self, rng: Rng, kernel: str) -> None:
        """A damaged model file, and a manifest that says otherwise, are refused, or do no harm."""
        content = bytearray(self.content)
        if rng.random() < 0.2:
            del content[int(pick(rng, self.structure)) :]
        elif rng.random() < 0.1:
            content[:16] = rng.bytes(16)
        else:
            for _ in range(int(rng.integers(3))):
                at = int(pick(rng, self.structure))
                content[at] = int(pick(rng, [0, 255, content[at] ^ 1 << int(rng.integers(8))]))
        manifest = self.manifest
        if rng.random() < 0.3:
            name = pick(rng, list(manifest.architecture))
            value = pick(rng, [-1, 0, 1, 3, 2**40, "x", None, manifest.architecture[name]])
            manifest = replace(manifest, architecture=manifest.architecture | {name: value})
        elif rng.random() < 0.3:
            name = pick(rng, ["dim", "max_tokens"])
            manifest = replace(manifest, **{name: pick(rng, [1, 63, 65, 2**31])})
        (self.place / MODEL).write_bytes(content)
        try:
            weights = read_weights(Artifact(self.place, manifest))
            engine = any_engine(weights, rng, kernel)
        except (ArtifactError, ValueError):
            return
        assert engine._dim == manifest.dim
        for length in (1, min(manifest.max_tokens, 200)):
            ids = rng.integers(0, min(weights.table.rows, manifest.vocabulary_size), length)
            assert run(engine, [ids] * 3).shape == (3, manifest.dim)
