"""Our own engine for GPUs: an encoder over sequences without padding, in fp16.

`mexma/cuda/*.cpp` are compiled into `_engine` when the project is installed, without anything of CUDA: its
driver, its run-time compiler and its products (cuBLASLt) are loaded when a GPU is asked for, and
`kernels.cu` is compiled then, for the GPU at hand, in a third of a second. Of compute capability 8.0
(Ampere) or more.

A layer is four products, which add their biases, gelu (by its approximation with tanh) and what goes around
them themselves, attention by a kernel for short sequences, and two normalisations. Numbers between them are
fp16, sums fp32. Nothing depends on a batch's shape but the products' algorithms, which are chosen by its
size: so no plan is made for a length that was not seen before, and a vector differs from batch to batch by
fp16's rounding.

Refuses to know: files, graphs, text.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mexma.installation import not_built
from mexma.weights import EncoderWeights, Linear, Norm, Table

_engine: Any
try:
    from mexma.cuda import _engine
except ImportError as error:
    _engine = None
    NOT_BUILT = not_built("mexma.cuda._engine", "GPU", error)
else:
    NOT_BUILT = ""

Float = NDArray[np.float32]
KERNELS = Path(__file__).with_name("kernels.cu")

# Numbers that `_engine.set_vector` and `_engine.set_matrix` know weights by.
POSITIONS, EMBEDDING_NORM, ATTENTION_NORM, OUTPUT_NORM = 0, 1, 3, 5
QKV, ATTENTION_OUT, WIDEN, NARROW = range(4)
LARGEST = np.finfo(np.float16).max
PIECE_ROWS = 16_384


@dataclass(frozen=True, slots=True)
class Libraries:
    """Files, or names that the system's loader knows. driver: libcuda. compiler: NVRTC. products:
    cuBLASLt."""

    driver: str
    compiler: str
    products: str

    @classmethod
    def found(cls) -> Libraries:
        """Those of pip's packages, where they are installed, as the extra `gpu` does; else the system's."""
        return cls("libcuda.so.1", _library("nvrtc"), _library("cublasLt"))


def _library(name: str) -> str:
    """The newest lib{name}.so of pip's packages of CUDA, which the loader does not find by itself."""
    versions = (13, 12)
    for version in versions:
        for folder in map(Path, sys.path):
            for found in sorted(folder.glob(f"nvidia/*/lib/lib{name}.so.{version}")):
                return str(found)
    return f"lib{name}.so.{versions[0]}"


class CudaEncoder:
    """Weights on the first GPU. `run` may be called from several threads, whose work the GPU overlaps."""

    def __init__(
        self,
        weights: EncoderWeights,
        *,
        mean_pooling: bool,
        normalise: bool,
        libraries: Libraries | None = None,
    ):
        """Round `weights` to fp16 and copy them to the GPU.

        Raises RuntimeError where there is no GPU, no library of CUDA, or nothing that computes on it, which
        a first text shows; ValueError for weights that the kernels do not take: heads of other than 32, 64 or
        128 components, or numbers that fp16 does not have.
        """
        if NOT_BUILT:
            raise RuntimeError(NOT_BUILT)
        places, hidden = weights.positions.shape
        self._hidden, self._head, self._normalise = hidden, weights.head, normalise
        found = libraries or Libraries.found()
        self._handle = _engine.create(
            hidden, weights.heads, weights.layers[0].narrow.matrix.shape[0], len(weights.layers),
            places, weights.norm_eps, mean_pooling, normalise and weights.head is None,
            KERNELS.read_text(encoding="utf-8"), found.driver, found.compiler, found.products,
        )  # fmt: skip
        self.device: str = _engine.device(self._handle)
        table = weights.table
        _engine.set_table(self._handle, _half_rows(table, hidden), table.rows)
        self._vector(-1, POSITIONS, weights.positions)
        self._norm(-1, EMBEDDING_NORM, weights.embedding_norm)
        for index, layer in enumerate(weights.layers):
            # Scores come out as powers of 2, which exp2 takes as they are.
            scale = np.float32(np.log2(np.e) / np.sqrt(hidden // weights.heads))
            query = Linear(layer.query.matrix * scale, layer.query.bias * scale)
            parts = (query, layer.key, layer.value)
            qkv = Linear(
                np.concatenate([part.matrix for part in parts], 1),
                np.concatenate([part.bias for part in parts]),
            )
            products = (qkv, layer.attention_out, layer.widen, layer.narrow)
            for which, linear in enumerate(products):
                what = f"product {which} of layer {index}"
                _engine.set_matrix(
                    self._handle, index, which,
                    _half(linear.matrix.T, what), _half(linear.bias, what),
                )  # fmt: skip
            self._norm(index, ATTENTION_NORM, layer.attention_norm)
            self._norm(index, OUTPUT_NORM, layer.output_norm)
        # What cannot compute shows now, where another engine can still be chosen: both ways of `Engine::run`.
        for lengths in ([2, 1], [1]):
            ids = np.zeros(sum(lengths), np.int64)
            if not np.isfinite(self.run(ids, np.array(lengths, np.int32))).all():
                raise ValueError("fp16 does not hold what this model computes for one token")

    def run(self, ids: NDArray[np.int64], lengths: NDArray[np.int32]) -> Float:
        """Vectors float32 `[n, dim]`.

        ids: int64 `[tokens]`, of all sequences one after the other. lengths: int32 `[n]`, of each
        sequence. Raises IndexError for a length or an id that the model does not have, RuntimeError
        where the GPU fails. Where states grow beyond fp16's numbers (65,504) vectors are not finite.
        """
        vectors = np.empty((len(lengths), self._hidden), np.float32)
        _engine.run(self._handle, ids, lengths, vectors, None)
        if self._head is None:
            return vectors
        turned: Float = np.tanh(vectors @ self._head.matrix + self._head.bias)
        if self._normalise:
            turned /= np.maximum(np.linalg.norm(turned, axis=1, keepdims=True), 1e-12)
        return turned

    def token_states(self, ids: NDArray[np.int64], lengths: NDArray[np.int32]) -> Float:
        """The last layer's states float32 `[tokens, hidden]`; otherwise as `run`."""
        vectors = np.empty((len(lengths), self._hidden), np.float32)
        states = np.empty((len(ids), self._hidden), np.float16)
        _engine.run(self._handle, ids, lengths, vectors, states)
        return states.astype(np.float32)

    def _norm(self, layer: int, which: int, norm: Norm) -> None:
        self._vector(layer, which, norm.weight)
        self._vector(layer, which + 1, norm.bias)

    def _vector(self, layer: int, which: int, values: Float) -> None:
        _engine.set_vector(self._handle, layer, which, np.ascontiguousarray(values, np.float32))


def _half_rows(table: Table, hidden: int) -> NDArray[np.float16]:
    """The token table, widened and rounded piece by piece: in fp32 it may be a gigabyte."""
    if table.bits == 16:
        return table.codes.view(np.float16)
    rows = np.empty((table.rows, hidden), np.float16)
    for start in range(0, table.rows, PIECE_ROWS):
        stop = min(start + PIECE_ROWS, table.rows)
        rows[start:stop] = _half(table.widened(start, stop), "the token table")
    return rows


def _half(values: Float, what: str) -> NDArray[np.float16]:
    """Rounded, and C-contiguous. Raises ValueError where fp16 has no such number."""
    if not np.abs(values).max() <= LARGEST:  # also when one is not a number
        raise ValueError(f"{what} has numbers beyond fp16's")
    return np.ascontiguousarray(values, np.float16)
