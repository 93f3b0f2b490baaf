"""The graph that runs on CUDA: tokens end to end, without padding.

Attention is ONNX Runtime's PackedMultiHeadAttention, which has kernels for CUDA alone and takes any lengths
as they come. The padded graph's attention costs padding there, and with cuDNN a plan for each new shape of
a batch. Both graphs of an artifact share one file of weights.

What cannot run here is proved otherwise: `on_cpu` puts the padded operator in the place of the packed one,
and all else of the file is computed as it stands.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tape import Tape
from torch import Tensor

from mexma.artifact import EXTERNAL, PACKED, Artifact, Manifest
from mexma.onnx_runtime import PACKED_INPUTS, OnnxRuntime
from mexma.text import TokenBatch
from model_export.graph import Graph, copy_for_tracing, traced_graph
from training.encoder import Encoder, sdpa

OPERATOR, DOMAIN = "PackedMultiHeadAttention", "com.microsoft"
PLAIN = "encoder_on_cpu.onnx"
"""What the proof runs; next to the weights until it is loaded."""


class PackedGraph(Graph):
    """Over the tokens of all sequences, one after the other."""

    def forward(
        self, tokens: Tensor, places: Tensor, rows: Tensor, cells: Tensor, bounds: Tensor
    ) -> tuple[Tensor, ...]:
        """As in `TokenBatch`. Float32 `[n, dim]` and, where asked for, `[tokens, hidden]`."""
        encoder = self.encoder

        def attention(query: Tensor, key: Tensor, value: Tensor, _: Tensor, heads: int) -> Tensor:
            query, key, value = (x.squeeze(0) for x in (query, key, value))
            mixed = torch.onnx.ops.symbolic(
                f"{DOMAIN}::{OPERATOR}",
                (query, key, value, None, cells, bounds),
                attrs={"num_heads": heads},
                dtype=query.dtype,
                shape=query.shape,
                version=1,
            )
            return mixed.unsqueeze(0)

        # As one row: products of two dimensions become Gemm, which crosses memory once more for its bias,
        # and hides the biases that the runtime would fuse with gelu and with normalisation.
        x = encoder.embeddings(tokens[None], places[None])
        for layer in encoder.layers:
            x = layer(x, bounds, attention)
        states = x.squeeze(0)
        if encoder.config.pooling == "first_token":
            pooled = states.index_select(0, bounds[:-1].long()).float()
        else:
            lengths = (bounds[1:] - bounds[:-1]).float()
            summed = torch.zeros(lengths.shape[0], states.shape[1])
            pooled = summed.index_add(0, rows, states.float()) / lengths[:, None]
        vector = encoder.finished(pooled)
        return (vector, states.float()) if self.token_states else (vector,)


def trace(encoder: Encoder, *, token_states: bool = False) -> ir.Model:
    """The packed graph of `encoder` in fp16, which stays as it is; rounded where `graph.trace` rounds."""
    traced = copy_for_tracing(encoder, sdpa, half=True)
    batch = TokenBatch.pad([np.arange(3, 8), np.arange(3, 6)], encoder.config.pad_id)
    inputs = {name: torch.from_numpy(getattr(batch, name)) for name in PACKED_INPUTS}
    tokens, n, longest = (torch.export.Dim(name) for name in ("all_tokens", "n", "longest"))
    dynamic = (
        {0: tokens}, {0: tokens}, {0: tokens}, {0: n, 1: longest}, {0: torch.export.Dim("m")},
    )  # fmt: skip
    return traced_graph(PackedGraph(traced, token_states=token_states), inputs, dynamic)


def save_beside(model: ir.Model, packed: ir.Model, directory: Path, file: str) -> None:
    """Write `model` to `file` and `packed` beside it, with one file of weights for both."""
    ir.save(model, directory / file, external_data=EXTERNAL)
    there: dict[tuple[str, bytes], ir.ExternalTensor] = {}
    for value in ir.load(directory / file).graph.initializers.values():
        if isinstance(tensor := value.const_value, ir.ExternalTensor):
            there[_content(tensor)] = tensor
    for value in packed.graph.initializers.values():
        same = there.get(_content(value.const_value)) if value.const_value is not None else None
        if same is not None:
            value.const_value = ir.ExternalTensor(
                EXTERNAL, same.offset, same.length, same.dtype,
                shape=same.shape, name=str(value.name), base_dir=directory,
            )  # fmt: skip
    ir.save(packed, directory / PACKED)


def _content(tensor: ir.TensorProtocol) -> tuple[str, bytes]:
    return f"{tensor.dtype} {tensor.shape}", hashlib.sha256(tensor.tobytes()).digest()


class PackedOnCpu:
    """The packed graph of an artifact with attention by a CPU's operator; takes part in the parity gate."""

    engine = "packed, with attention of the padded graph"

    def __init__(self, directory: Path, manifest: Manifest, *, threads: int):
        model = ir.load(directory / PACKED)
        on_cpu(model)
        file = directory / PLAIN  # the weights are found next to it
        ir.save(model, file)
        try:
            self.session = OnnxRuntime(
                Artifact(directory, manifest), device="cpu", threads=threads, packed=file
            )
        finally:
            file.unlink()


def on_cpu(model: ir.Model) -> None:
    """Replace every packed attention in `model` by the padded operator over a rectangle, in place."""
    nodes = [n for n in model.graph if n.op_type == OPERATOR and n.domain == DOMAIN]
    if not nodes:
        raise RuntimeError(f"expected {OPERATOR} in the packed graph, found none of it")
    for node in nodes:
        tape = Tape()
        tensors, (cells, bounds) = node.inputs[:3], node.inputs[4:6]
        numbers = tape.op("Reshape", [cells, _numbers(tape, node, "all", [-1])])
        count = tape.op("Shape", [tensors[0]], {"start": 0, "end": 1})
        zero = _numbers(tape, node, "zero", [0])
        used = tape.op("Slice", [numbers, zero, count, zero])
        places = tape.op("Unsqueeze", [_int64(tape, used), _numbers(tape, node, "last", [-1])])
        hidden = tape.op("Shape", [tensors[0]], {"start": 1, "end": 2})
        flat = tape.op("Concat", [tape.op("Shape", [numbers]), hidden], {"axis": 0})
        rectangle = tape.op("Concat", [tape.op("Shape", [cells]), hidden], {"axis": 0})
        padded = []
        for tensor in tensors:
            assert tensor is not None  # noqa: S101  traced so
            empty = tape.op("CastLike", [tape.op("ConstantOfShape", [flat]), tensor])
            filled = tape.op("ScatterND", [empty, places, tensor])
            padded.append(tape.op("Reshape", [filled, rectangle]))
        ends = tape.op(
            "Slice",
            [bounds, _numbers(tape, node, "one", [1]), _numbers(tape, node, "end", [2**31])],
        )
        starts = tape.op("Slice", [bounds, zero, _numbers(tape, node, "but_one", [-1])])
        lengths = tape.op("Sub", [ends, starts])
        mixed = tape.op(
            "MultiHeadAttention", [*padded, None, lengths],
            {"num_heads": node.attributes["num_heads"].as_int()}, domain=DOMAIN, version=1,
        )  # fmt: skip
        back = tape.op("GatherND", [tape.op("Reshape", [mixed, flat]), places])
        old = node.outputs[0]
        back.type, back.shape = old.type, old.shape
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], tape.nodes, [old], [back]
        )
        for value in tape.initializers:
            model.graph.register_initializer(value)


def _numbers(tape: Tape, node: ir.Node, name: str, numbers: list[int]) -> ir.Value:
    name = f"{node.name}.{name}"
    return tape.initializer(ir.tensor(np.array(numbers, np.int64), name=name), name)


def _int64(tape: Tape, value: ir.Value) -> ir.Value:
    return tape.op("Cast", [value], {"to": ir.DataType.INT64})
