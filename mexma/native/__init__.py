"""Our own engine: an encoder over sequences without padding, in C++.

`mexma/native/*.cpp` are compiled into `_engine` when the project is installed, if there is a
compiler. Each kernel is for one instruction set; which of them can run is asked of the
processor at run time:

    amx               products and attention in bf16 on tiles (Xeons from Sapphire Rapids on)
    avx512_bf16_vnni  as avx512_bf16; products that end in a sum with the residual in int8
    avx512_bf16       products in bf16, those of attention too
    avx512_vnni       products in int16, those that end in a sum with the residual in int8
    avx512, avx2, portable    fp32

Some processors multiply pairs of bf16 no faster than fp32 (Xeons), others twice as fast (Zen 5), and so with
bytes. It is measured, in a millisecond or two, when the kernels are listed first.

Tokens of all sequences lie one after the other. A row's sums are always taken in the same order,
so a vector is the same to the last bit whatever it is batched with and however many threads there
are; kernels differ from each other within their arithmetic.

Refuses to know: files, graphs, text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mexma.installation import not_built
from mexma.weights import EncoderWeights, Linear, Norm

_engine: Any
try:
    from mexma.native import _engine
except ImportError as error:
    _engine = None
    NOT_BUILT = not_built("mexma.native._engine", "native", error)
else:
    NOT_BUILT = ""

Float = NDArray[np.float32]
Arithmetic = Literal["fp32", "bf16", "bf16 and int8", "int16 and int8"]

KERNELS = (
    "amx", "avx512_bf16_vnni", "avx512_bf16", "avx512_vnni", "avx512", "avx2", "portable"
)  # fmt: skip
BLOCK = 32  # columns that the kernels take at once; narrower matrices are padded with zeros

# Tokens of one thread's share of a batch: see `benchmarks/results/engine_*.md`.
PIECE_TOKENS = 512

# Numbers that `_engine.set_vector` and `_engine.set_matrix` know weights by.
POSITIONS, EMBEDDING_NORM, ATTENTION_NORM, OUTPUT_NORM, HEAD, HEAD_BIAS = 0, 1, 3, 5, 7, 8
QKV, ATTENTION_OUT, WIDEN, NARROW = range(4)
TABLE_KINDS = {32: 0, 4: 1, 8: 2}


@dataclass(frozen=True, slots=True)
class Kernel:
    """name: see above. missing: what this machine lacks for it, "" when it can run. slow: why it is
    used only where it is asked for, "" when it is fast here."""

    name: str
    arithmetic: Arithmetic
    missing: str
    slow: str


def kernels() -> list[Kernel]:
    """All kernels that were built, fastest first; none where the engine was not built."""
    return [Kernel(*k) for k in _engine.kernels()] if _engine else []


class NativeEncoder:
    """Weights on a kernel. `run` may be called from several threads, which then take turns."""

    def __init__(
        self,
        weights: EncoderWeights,
        *,
        kernel: str,
        threads: int,
        mean_pooling: bool,
        normalise: bool,
        piece_tokens: int = PIECE_TOKENS,
    ):
        """Pack `weights` for `kernel`. Raises ValueError where the kernel cannot run here, the hidden
        size is not a multiple of 32, or weights are not of each other's shapes; RuntimeError where
        the system gives no more threads."""
        if weights.positions.ndim != 2:
            raise ValueError(f"expected positions [places, hidden], got {weights.positions.shape}")
        hidden = weights.positions.shape[1]
        if hidden % BLOCK:
            raise ValueError(f"the native engine needs a hidden size in 32s, found {hidden}")
        if weights.heads < 1 or hidden % weights.heads or not weights.layers:
            raise ValueError(
                f"the native engine needs layers and heads that divide the hidden size {hidden}, "
                f"found {len(weights.layers)} layers of {weights.heads} heads"
            )
        head_size = hidden // weights.heads
        intermediate = len(weights.layers[0].narrow.matrix)
        dim = len(weights.head.bias) if weights.head else hidden
        self._hidden, self._dim, self._heads, self._head_size = (
            hidden,
            dim,
            weights.heads,
            head_size,
        )
        self._threads = threads
        self._handle = _engine.create(
            kernel, hidden, weights.heads, head_size, intermediate, len(weights.layers), dim,
            len(weights.positions), weights.norm_eps, int(mean_pooling), weights.head is not None,
            normalise, threads, piece_tokens,
        )  # fmt: skip
        table = weights.table
        _engine.set_table(
            self._handle,
            TABLE_KINDS[table.bits],
            table.codes,
            b"" if table.scales is None else table.scales,
            table.rows,
        )
        self._vector(-1, POSITIONS, weights.positions)
        self._norm(-1, EMBEDDING_NORM, weights.embedding_norm)
        for index, layer in enumerate(weights.layers):
            # Scores come out as powers of 2, which exp2 takes as they are.
            scale = np.float32(np.log2(np.e) / np.sqrt(head_size))
            query = Linear(layer.query.matrix * scale, layer.query.bias * scale)
            qkv = [self._by_head(part) for part in (query, layer.key, layer.value)]
            self._matrix(
                index,
                QKV,
                Linear(
                    np.concatenate([part.matrix for part in qkv], 1),
                    np.concatenate([part.bias for part in qkv]),
                ),
            )
            out = layer.attention_out
            turned = self._by_head(Linear(out.matrix.T, np.zeros(hidden, np.float32)))
            self._matrix(index, ATTENTION_OUT, Linear(turned.matrix.T, out.bias))
            self._matrix(index, WIDEN, layer.widen)
            self._matrix(index, NARROW, layer.narrow)
            self._norm(index, ATTENTION_NORM, layer.attention_norm)
            self._norm(index, OUTPUT_NORM, layer.output_norm)
        if weights.head is not None:
            self._vector(-1, HEAD, weights.head.matrix.T)
            self._vector(-1, HEAD_BIAS, weights.head.bias)

    def run(self, ids: NDArray[np.int64], lengths: NDArray[np.int32]) -> Float:
        """Vectors float32 `[n, dim]`.

        ids: int64 `[tokens]`, of all sequences one after the other. lengths: int32 `[n]`, of each
        sequence. Raises IndexError for a length or an id that the model does not have.
        """
        vectors = np.empty((len(lengths), self._dim), np.float32)
        _engine.run(self._handle, ids, lengths, vectors, None)
        return vectors

    def token_states(self, ids: NDArray[np.int64], lengths: NDArray[np.int32]) -> Float:
        """The last layer's states float32 `[tokens, hidden]`; otherwise as `run`."""
        vectors = np.empty((len(lengths), self._dim), np.float32)
        states = np.empty((len(ids), self._hidden), np.float32)
        _engine.run(self._handle, ids, lengths, vectors, states)
        return states

    def _by_head(self, linear: Linear) -> Linear:
        """The outputs of each head padded to whole blocks."""
        if self._head_size % BLOCK == 0:
            return linear
        more = -self._head_size % BLOCK
        heads, size = self._heads, self._head_size
        matrix = linear.matrix.reshape(-1, heads, size)
        bias = linear.bias.reshape(heads, size)
        return Linear(
            np.pad(matrix, ((0, 0), (0, 0), (0, more))).reshape(len(matrix), -1),
            np.pad(bias, ((0, 0), (0, more))).reshape(-1),
        )

    def _matrix(self, layer: int, which: int, linear: Linear) -> None:
        rows, columns = linear.matrix.shape
        down, right = -rows % BLOCK, -columns % BLOCK
        matrix = np.ascontiguousarray(np.pad(linear.matrix, ((0, down), (0, right))), np.float32)
        bias = np.ascontiguousarray(np.pad(linear.bias, (0, right)), np.float32)
        _engine.set_matrix(self._handle, layer, which, matrix, *matrix.shape, bias)

    def _norm(self, layer: int, which: int, norm: Norm) -> None:
        self._vector(layer, which, norm.weight)
        self._vector(layer, which + 1, norm.bias)

    def _vector(self, layer: int, which: int, values: Float) -> None:
        _engine.set_vector(self._handle, layer, which, np.ascontiguousarray(values, np.float32))
