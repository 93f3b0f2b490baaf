"""Trace an encoder into an ONNX graph: ids and mask in, normalised sentence vector out.

The graph is fp32 or fp16 here; how few bits its weights take on disk is decided afterwards
(`model_export.storage`). Nothing of the machine that exported stays in it, so the same
weights give the same bytes.

Attention is ONNX Runtime's fused operator, which its optimizer does not find by itself in
graphs of this exporter. Measured on 2 cores (AMD EPYC, AVX-512; 12 layers of 384, batch 32,
onnxruntime 1.32), sentences/s: decomposed 193; fused with a [batch, length] mask 203, with
lengths [batch] 201, with the input biases folded in 199, with one packed QKV product 198,
and as the Attention operator 202: on a CPU they are equal but for decomposed. CUDA runs another
graph of the same weights (`model_export.packed`).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import onnx_ir
import torch
from torch import Tensor, nn

from training.encoder import Attention, Encoder, Layer

OPSET = 21  # the first whose DequantizeLinear has blocks
INPUTS = ("input_ids", "attention_mask")
OUTPUT = "sentence_embedding"
TOKEN_OUTPUT = "token_states"  # noqa: S105  a name in the graph, not a secret


def fused_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, heads: int) -> Tensor:
    """`training.encoder.Attention` as one ONNX Runtime operator; can only be traced."""
    lengths = mask.sum(1).to(torch.int32)  # [batch]; padding is on the right
    return torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        (query, key, value, None, lengths),
        attrs={"num_heads": heads},
        dtype=query.dtype,
        shape=query.shape,
        version=1,
    )


class Graph(nn.Module):
    """What is traced, by its inputs: the encoder with the outputs an artifact has."""

    def __init__(self, encoder: Encoder, *, token_states: bool):
        super().__init__()
        self.encoder = encoder
        self.token_states = token_states


class PaddedGraph(Graph):
    """Over a rectangle of tokens: what runs on CPUs."""

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        states = self.encoder.token_states(ids, mask)
        vector = self.encoder.sentence_vector(states, mask)
        return (vector, states.float()) if self.token_states else (vector,)


def trace(encoder: Encoder, *, token_states: bool = False, half: bool = False) -> onnx_ir.Model:
    """The graph of `encoder`, which stays as it is.

    Inputs int64 `[batch, length]`, both dynamic; outputs float32 `[batch, dim]` and, with
    `token_states`, `[batch, length, hidden]`. half: weights and layers in fp16; pooling, the
    dense head and normalisation stay fp32, and LayerNormalization takes its statistics in
    fp32 by ONNX's definition.
    """
    traced = copy_for_tracing(encoder, fused_attention, half=half)
    # Two tensors: given one object twice, torch.export takes the inputs for one and the same.
    ids, mask = torch.ones(2, 7, dtype=torch.int64), torch.ones(2, 7, dtype=torch.int64)
    dynamic = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    return traced_graph(
        PaddedGraph(traced, token_states=token_states),
        {INPUTS[0]: ids, INPUTS[1]: mask},
        (dynamic, dynamic),
    )


def copy_for_tracing(encoder: Encoder, attention: Attention, *, half: bool) -> Encoder:
    """An encoder with the same weights, shared or rounded to fp16 where `half` says, and this attention."""
    with torch.device("meta"):
        traced = Encoder(encoder.config, attention)
    traced.load_state_dict(encoder.state_dict(), assign=True)  # shares the weights
    if half:
        fold_biases(traced)
        traced.embeddings.half()
        traced.layers.half()
    return traced.eval().requires_grad_(False)


def traced_graph(
    module: Graph, inputs: dict[str, Tensor], dynamic_shapes: Sequence[Mapping[int, object]]
) -> onnx_ir.Model:
    """The graph of `module`, called with `inputs`, examples of which the shapes matter."""
    with warnings.catch_warnings(), _quiet("torch.onnx"):
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=tuple(inputs),
            output_names=(OUTPUT, TOKEN_OUTPUT) if module.token_states else (OUTPUT,),
            dynamic_shapes=tuple(map(dict, dynamic_shapes)),
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    return _anonymous(program.model)


def fold_biases(encoder: Encoder) -> None:
    """Take the keys' and values' biases out of `encoder`, whose vectors stay the same.

    A key's bias adds the same to all scores of one query, which softmax does not see. Weights of attention
    sum to 1, so a value's bias comes out of it as it is, and goes through the next product once and for all.
    On a GPU each is one more pass over memory.
    """
    for layer in encoder.layers:
        assert isinstance(layer, Layer)  # noqa: S101  a ModuleList does not say of what
        out = layer.attention_out
        with torch.no_grad():
            out.bias = nn.Parameter(out.bias + out.weight @ layer.value.bias)
        for linear in (layer.key, layer.value):
            linear.register_parameter("bias", None)


def _anonymous(model: onnx_ir.Model) -> onnx_ir.Model:
    """Remove what describes the exporting machine: stack traces, paths, class names."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.doc_string = None
    model.graph.doc_string = None
    model.producer_name = "mexma-export"
    model.producer_version = None
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    return model


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
