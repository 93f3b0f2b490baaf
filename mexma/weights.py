"""An encoder's weights out of an artifact's graph, or the reason why they cannot be had.

The engines of our own (`mexma.native`, `mexma.cuda`) compute what the graph says without running it, so the
graph has to be one that it knows: operator by operator what `model_export` writes for the
manifest's architecture in the precisions fp32, compact and fp16. Anything else is refused here and
runs under ONNX Runtime.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mexma.artifact import Artifact
from mexma.errors import ArtifactError
from mexma.onnx_file import Graph, Operator, read_graph

Float = NDArray[np.float32]

LAYER = (
    "MatMul", "Add", "MatMul", "Add", "MatMul", "Add", "MultiHeadAttention",
    "MatMul", "Add", "Add", "LayerNormalization",
    "MatMul", "Add", "Gelu", "MatMul", "Add", "Add", "LayerNormalization",
)  # fmt: skip
# In fp16, whose keys and values have their biases elsewhere (`model_export.graph.fold_biases`).
HALF_LAYER = (*LAYER[:3], *LAYER[4:5], *LAYER[6:])
# What makes the position table's slice, the lengths, and weights of fewer bits; no layer's work.
ASIDE = {
    "Shape", "Squeeze", "Reshape", "Slice", "ReduceSum", "Cast", "DequantizeLinear",
}  # fmt: skip
POOLING_MEAN = ["Unsqueeze", "Mul", "Div"]
POOLING_FIRST = ["Gather"]
HEAD = ["MatMul", "Add", "Tanh"], ["Gemm", "Tanh"]
NORMALISE = ["ReduceL2", "Clip", "Concat", "Expand", "Div"]
BLOCK = 32


class UnknownGraph(ArtifactError):
    """The graph is not one that our own engine computes; says what was expected and what came."""


@dataclass(frozen=True)
class Linear:
    """matrix: float32 `[inputs, outputs]`. bias: float32 `[outputs]`."""

    matrix: Float
    bias: Float


@dataclass(frozen=True)
class Norm:
    """weight, bias: float32 `[hidden]`."""

    weight: Float
    bias: Float


@dataclass(frozen=True)
class Layer:
    """One layer's weights, as the graph holds them."""

    query: Linear
    key: Linear
    value: Linear
    attention_out: Linear
    attention_norm: Norm
    widen: Linear
    narrow: Linear
    output_norm: Norm


@dataclass(frozen=True)
class Table:
    """Token vectors as stored, flat. bits: 32 and 16 for float32 and float16 in `codes`; 4 or 8 for codes,
    unsigned, in blocks of 32 that share one of `scales`, float16."""

    codes: NDArray[Any]
    scales: NDArray[Any] | None
    bits: int
    rows: int

    def widened(self, start: int = 0, stop: int | None = None) -> Float:
        """float32 `[rows, hidden]`, as look-ups give them, of rows `start` to `stop`."""
        chosen = slice(start, stop)
        if self.scales is None:
            stored = np.float32 if self.bits == 32 else np.float16
            return self.codes.view(stored).reshape(self.rows, -1)[chosen].astype(np.float32)
        codes = self.codes.view(np.uint8).reshape(self.rows, -1)[chosen]
        if self.bits == 4:  # low half first
            codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1)
        signed = codes.astype(np.float32) - (1 << (self.bits - 1))
        scales = self.scales.view(np.float16).reshape(self.rows, -1)[chosen].astype(np.float32)
        return (signed.reshape(*scales.shape, BLOCK) * scales[..., None]).reshape(len(codes), -1)


@dataclass(frozen=True)
class EncoderWeights:
    """positions: float32 `[places, hidden]`, the segment's vector added. head: after pooling."""

    table: Table
    positions: Float
    embedding_norm: Norm
    layers: list[Layer]
    head: Linear | None
    heads: int
    norm_eps: float


def read_weights(artifact: Artifact) -> EncoderWeights:
    """The weights of a verified artifact; matrices are widened to fp32 one by one, the table not.

    Raises UnknownGraph.
    """
    manifest = artifact.manifest
    if manifest.precision not in ("fp32", "compact", "fp16"):
        raise UnknownGraph(
            f"{artifact.model}: precision {manifest.precision} is ONNX Runtime's; our own engines "
            "run fp32, compact and fp16"
        )
    reader = _Reader(artifact, read_graph(artifact.model))
    try:
        return reader.encoder()
    except (LookupError, ValueError, TypeError, ArithmeticError, StopIteration) as error:
        raise UnknownGraph(f"{artifact.model}: not a graph of this version's: {error!r}") from error


class _Reader:
    def __init__(self, artifact: Artifact, graph: Graph):
        self.where = str(artifact.model)
        self.manifest = artifact.manifest
        self.graph = graph
        self.made_by = {name: o for o in graph.operators for name in o.outputs}
        self.half = artifact.manifest.precision == "fp16"
        self.kinds = HALF_LAYER if self.half else LAYER

    def encoder(self) -> EncoderWeights:
        shape = self.manifest.architecture
        embedding, *work = self._work(shape)
        self.norm_eps = norm_eps = float(embedding.numbers["epsilon"])
        layers, state = [], embedding.outputs[0]
        for index in range(shape["layers"]):
            part = work[index * len(self.kinds) : (index + 1) * len(self.kinds)]
            layer, state = self._layer(part, state, shape["heads"])
            layers.append(layer)
        self._pooled(work[len(self.kinds) * shape["layers"] :], state)
        first, hidden = shape["first_position"], shape["hidden"]
        positions = self._array("encoder.embeddings.positions.weight")[first:]
        head = self._head(work[len(self.kinds) * shape["layers"] :]) if shape["head"] else None
        self._same(positions.shape[1], hidden, "columns of the position table")
        cut = next(o for o in self.graph.operators if o.kind == "Slice")
        self._same(cut.inputs[0], "encoder.embeddings.positions.weight", "what is cut")
        start = self.graph.weights[cut.inputs[1]].array().tolist()
        self._same(start, [first], "first row of the position table")
        weights = EncoderWeights(
            table=self._table(hidden),
            positions=positions + self._array("encoder.embeddings.segment"),
            embedding_norm=self._norm(embedding),
            layers=layers,
            head=head,
            heads=shape["heads"],
            norm_eps=norm_eps,
        )
        self._fit(weights, hidden)
        return weights

    def _pooled(self, after: list[Operator], state: str) -> None:
        """That what is pooled is the last layer's state, cast or not."""
        wanted = "Mul" if self.manifest.pooling == "mean" else "Gather"
        pooling = next(o for o in after if o.kind == wanted)
        made = [self.made_by.get(name) for name in pooling.inputs]
        found = {
            *pooling.inputs,
            *(o.inputs[0] for o in made if o is not None and o.kind == "Cast"),
        }
        self._same(state in found, True, "the last layer's state is what is pooled")

    def _fit(self, weights: EncoderWeights, hidden: int) -> None:
        """That all shapes are those of one encoder, and the manifest's."""
        places, dim = self.manifest.max_tokens, self.manifest.dim
        if len(weights.positions) < places:
            raise UnknownGraph(
                f"{self.where}: the manifest has {places} positions, the table {len(weights.positions)}"
            )
        wide = weights.layers[0].widen.matrix.shape[-1]
        norms, linears = [weights.embedding_norm], []
        for layer in weights.layers:
            norms += [layer.attention_norm, layer.output_norm]
            square = (layer.query, layer.key, layer.value, layer.attention_out)
            linears += [(linear, (hidden, hidden)) for linear in square]
            linears += [(layer.widen, (hidden, wide)), (layer.narrow, (wide, hidden))]
        if weights.head is None:
            self._same(dim, hidden, "the manifest's dim without a head")
        else:
            linears.append((weights.head, (hidden, dim)))
        for linear, shape in linears:
            self._same(linear.matrix.shape, shape, "a matrix's shape")
            self._same(linear.bias.shape, shape[1:], "a bias's shape")
        for norm in norms:
            for values in (norm.weight, norm.bias):
                self._same(values.shape, (hidden,), "shape of a normalisation")

    def _work(self, shape: dict[str, Any]) -> list[Operator]:
        """The operators from the embeddings' normalisation on, checked to be the expected ones."""
        operators = [o for o in self.graph.operators if o.kind not in ASIDE]
        kinds = [o.kind for o in operators]
        self._same(kinds.count("MultiHeadAttention"), shape["layers"], "layers")
        start = kinds.index("LayerNormalization")
        lookup = kinds[:start]
        gathers = [kind for kind in lookup if kind != "Add"]
        if gathers not in (["Gather"], ["GatherBlockQuantized"]):
            raise UnknownGraph(f"{self.where}: expected a look-up of tokens first, found {lookup}")
        pooling = POOLING_MEAN if self.manifest.pooling == "mean" else POOLING_FIRST
        tail = NORMALISE if shape["normalise"] else []
        heads = HEAD if shape["head"] else ([],)
        expected = ["LayerNormalization", *self.kinds * shape["layers"], *pooling]
        wanted = [[*expected, *head, *tail] for head in heads]
        if kinds[start:] not in wanted:
            at = next(
                (
                    i
                    for i, (a, b) in enumerate(zip(wanted[0], kinds[start:], strict=False))
                    if a != b
                ),
                min(len(wanted[0]), len(kinds) - start),
            )
            raise UnknownGraph(
                f"{self.where}: expected {wanted[0][at : at + 3]} as operator {start + at}, "
                f"found {kinds[start + at : start + at + 3]}"
            )
        return operators[start:]

    def _layer(self, part: list[Operator], state: str, heads: int) -> tuple[Layer, str]:
        """The layer that `part` computes from `state`, and the name of what it gives."""
        ends = ["Add", "MatMul", "MatMul"] if self.half else ["Add"] * 3
        inputs, at = [], 0
        for end in ends:
            at += part[at].kind != end
            inputs.append(part[at])
            at += 1
        query, key, value = [
            self._linear(end, state) for end in inputs
        ]  # of a generator, StopIteration would be another error
        attention, _, out, added, normed, _, widened, gelu, _, narrow, added_again, output = part[
            at:
        ]
        self._same(attention.numbers["num_heads"], heads, "attention heads")
        self._same(attention.inputs[:3], tuple(i.outputs[0] for i in inputs), "inputs of attention")
        self._same(set(attention.numbers), {"num_heads"}, "attributes of attention")
        self._same(attention.inputs[3:4] in ((), ("",)), True, "no biases within attention")
        self._same([*filter(None, attention.inputs[5:])], [], "more inputs of attention")
        middle = normed.outputs[0]
        layer = Layer(
            query=query,
            key=key,
            value=value,
            attention_out=self._linear(out, attention.outputs[0]),
            attention_norm=self._norm(normed),
            widen=self._linear(widened, middle),
            narrow=self._linear(narrow, gelu.outputs[0]),
            output_norm=self._norm(output),
        )
        self._same(gelu.inputs, widened.outputs, "input of Gelu")
        for sums, norm, before, product in (
            (added, normed, state, out),
            (added_again, output, middle, narrow),
        ):
            self._same(set(sums.inputs), {before, product.outputs[0]}, "what is added")
            self._same(norm.inputs[0], sums.outputs[0], "what is normalised")
            self._same(norm.numbers["epsilon"], self.norm_eps, "epsilon of a normalisation")
        return layer, output.outputs[0]

    def _linear(self, end: Operator, state: str) -> Linear:
        """What `end`, the addition of a bias or a product without one, computes from `state`."""
        if end.kind == "MatMul":
            product, bias = end, None
        else:
            made = [self.made_by.get(name) for name in end.inputs]
            product = next(o for o in made if o is not None and o.kind == "MatMul")
            (bias,) = (name for name in end.inputs if name != product.outputs[0])
        self._same(product.inputs[0], state, "input of a product")
        matrix = self._matrix(product.inputs[1])
        offsets = np.zeros(matrix.shape[1], np.float32) if bias is None else self._array(bias)
        return Linear(matrix, offsets)

    def _matrix(self, name: str) -> Float:
        if name in self.graph.weights:
            return self._array(name)
        widened = self.made_by[name]
        self._same(widened.kind, "DequantizeLinear", "what makes a matrix")
        self._same(widened.numbers["block_size"], BLOCK, "weights that share a scale")
        self._same(widened.numbers["axis"], 0, "the axis of shared scales")
        codes = self.graph.weights[widened.inputs[0]].array()  # [inputs, outputs]
        cast = self.made_by[widened.inputs[1]]
        scales = self.graph.weights[cast.inputs[0]].array().astype(np.float32)
        blocks = codes.reshape(len(scales), BLOCK, -1).astype(np.float32)
        return (blocks * scales[:, None]).reshape(codes.shape)

    def _head(self, after: list[Operator]) -> Linear:
        product = next(o for o in after if o.kind in ("MatMul", "Gemm"))
        if product.kind == "Gemm":
            matrix = self._array(product.inputs[1])
            turned = product.numbers.get("transB", 0)
            return Linear(matrix.T if turned else matrix, self._array(product.inputs[2]))
        return self._linear(after[after.index(product) + 1], product.inputs[0])

    def _table(self, hidden: int) -> Table:
        lookup = next(o for o in self.graph.operators if o.kind.startswith("Gather"))
        stored = self.graph.weights[lookup.inputs[0]]
        rows = stored.shape[0]
        if lookup.kind == "Gather":
            self._same(stored.shape, (rows, hidden), "the token table's shape")
            kind = np.float16 if self.half else np.float32
            self._same(
                (stored.stored.size, stored.stored.dtype), (rows * hidden, kind),
                "the token table's values",
            )  # fmt: skip
            return Table(stored.stored, None, 16 if self.half else 32, rows)
        bits = int(lookup.numbers["bits"])
        self._same(stored.shape, (rows, hidden * bits // 8), "the token table's shape")
        self._same(stored.stored.nbytes, rows * hidden * bits // 8, "bytes of the token table")
        self._same(lookup.numbers["block_size"], BLOCK, "codes that share a scale")
        cast = self.made_by[lookup.inputs[2]]
        return Table(stored.stored, self.graph.weights[cast.inputs[0]].stored, bits, rows)

    def _norm(self, operator: Operator) -> Norm:
        return Norm(self._array(operator.inputs[1]), self._array(operator.inputs[2]))

    def _array(self, name: str) -> Float:
        return self.graph.weights[name].array().astype(np.float32, copy=False)

    def _same(self, found: object, expected: object, what: str) -> None:
        if found != expected:
            raise UnknownGraph(f"{self.where}: {what}: expected {expected}, found {found}")
