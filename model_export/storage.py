"""Rewrite a traced fp32 graph so that its weights take fewer bits.

    compact  The embedding table in 4-bit blocks, which stay packed in memory: rows are widened
             as they are looked up. The layers' matrices in 4-bit blocks where that is exact,
             else in 8-bit ones, widened to fp32 once, at load (`mexma.onnx_runtime` asks for that).
             Arithmetic is fp32 throughout.
    int8     The table likewise, in 8 bits where 4 are not exact. The layers' matrices in 8 bits
             with one scale per output; activations in 8 bits with one scale per token, so a
             vector does not depend on what it is batched with.

Scales of blocks are stored in fp16 and cast, so that products are taken in fp32. What was
measured before choosing is in `benchmarks/results/precision_*.md`.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.tape import Tape

from model_export.blocks import BLOCK, Blocks, in_blocks

ORT = "com.microsoft"
TABLE = "encoder.embeddings.words.weight"  # as `model_export.graph` names it

Advance = Callable[[int], object]
"""Called with the number of matrix rows done; for a progress bar."""


def matrices(model: ir.Model) -> tuple[ir.Node, list[ir.Node]]:
    """The node that looks up the token table, and the products with a layer's matrix."""
    tables = [
        n
        for n in model.graph
        if n.op_type == "Gather" and n.inputs[0] is not None and n.inputs[0].name == TABLE
    ]
    products = [
        n
        for n in model.graph
        if n.op_type == "MatMul" and n.inputs[1] is not None and n.inputs[1].is_initializer()
    ]
    if len(tables) != 1 or not products:
        raise RuntimeError(
            f"expected one token table and some products in the traced graph, found "
            f"{len(tables)} and {len(products)}; has the exporter changed its patterns?"
        )
    return tables[0], products


def rows(model: ir.Model) -> int:
    """How many rows `compact` or `int8` will go through; the total of a progress bar."""
    table, products = matrices(model)
    return sum(len(_weight(n, i)) for n, i in [(table, 0), *((p, 1) for p in products)])


def compact(model: ir.Model, advance: Advance = lambda rows: None) -> None:
    """Rewrite `model` in place; see the module's text."""
    table, products = matrices(model)
    _packed_table(model, table, in_blocks(_weight(table, 0), 4, advance))
    for product in products:
        _widened_at_load(model, product, _exact_or_eight(_weight(product, 1).T, advance))


def int8(model: ir.Model, advance: Advance = lambda rows: None) -> None:
    """Rewrite `model` in place; see the module's text."""
    table, products = matrices(model)
    _packed_table(model, table, _exact_or_eight(_weight(table, 0), advance))
    quantised: dict[str, tuple[ir.Value, ir.Value]] = {}
    for product in products:
        advance(len(_weight(product, 1)))
        _eight_bit_product(model, product, quantised)


def _exact_or_eight(matrix: NDArray[np.float32], advance: Advance) -> Blocks:
    four = in_blocks(matrix, 4, advance)
    return four if four.exact else in_blocks(matrix, 8)


def _packed_table(model: ir.Model, node: ir.Node, blocks: Blocks) -> None:
    tape, name = Tape(), "words"
    codes = _constant(tape, blocks.unsigned(), f"{name}.codes")
    scales = _constant(tape, blocks.scales, f"{name}.scales")
    rows = tape.op(
        "GatherBlockQuantized",
        [codes, node.inputs[1], _as_float(tape, scales)],
        {"bits": blocks.bits, "block_size": BLOCK, "quantize_axis": 1, "gather_axis": 0},
        domain=ORT,
        version=1,
    )
    _replace(model, node, tape, rows)


def _widened_at_load(model: ir.Model, node: ir.Node, blocks: Blocks) -> None:
    tape, name = Tape(), _name(node)
    kind = ml_dtypes.int4 if blocks.bits == 4 else np.int8
    codes = _constant(tape, np.ascontiguousarray(blocks.codes.T).astype(kind), f"{name}.codes")
    scales = _constant(tape, np.ascontiguousarray(blocks.scales.T), f"{name}.scales")
    matrix = tape.op(
        "DequantizeLinear",
        [codes, _as_float(tape, scales)],
        {"axis": 0, "block_size": BLOCK},
    )
    _replace(model, node, tape, tape.op("MatMul", [node.inputs[0], matrix]))


def _eight_bit_product(
    model: ir.Model, node: ir.Node, quantised: dict[str, tuple[ir.Value, ir.Value]]
) -> None:
    """x @ W as (codes of x) @ (codes of W) in integers, times both scales.

    quantised: activations that have codes already, by name; query, key and value share one.
    """
    tape, name = Tape(), _name(node)
    matrix = _weight(node, 1)
    scale = np.maximum(np.abs(matrix).max(0), 1e-9) / 127  # one per output
    codes = np.rint(matrix / scale).astype(np.int8)
    x = node.inputs[0]
    assert x is not None and x.name is not None  # noqa: S101  the node was found by its pattern
    if x.name not in quantised:
        quantised[x.name] = _codes_per_token(tape, x, len(matrix), x.name)
    x_codes, x_scale = quantised[x.name]
    middle = _constant(tape, np.array(128, np.uint8), f"{name}.middle")
    summed = tape.op("MatMulInteger", [x_codes, _constant(tape, codes, f"{name}.codes"), middle])
    # First the outputs' scales, then the tokens'. In one product of both, onnxruntime 1.32
    # recognises its own pattern and fuses it as if the whole batch had a single scale.
    by_output = tape.op(
        "Mul",
        [
            tape.op("Cast", [summed], {"to": ir.DataType.FLOAT}),
            _constant(tape, scale.astype(np.float32), f"{name}.scales"),
        ],
    )
    _replace(model, node, tape, tape.op("Mul", [by_output, x_scale]))


def _codes_per_token(tape: Tape, x: ir.Value, width: int, name: str) -> tuple[ir.Value, ir.Value]:
    """uint8 codes `[batch, length, width]` around 128, and scales `[batch, length, 1]`."""
    last = _constant(tape, np.array([-1], np.int64), f"{name}.last")
    largest = tape.op("ReduceMax", [tape.op("Abs", [x]), last], {"keepdims": 1})
    scale = tape.op(
        "Div",
        [
            tape.op("Max", [largest, _constant(tape, np.array(1e-9, np.float32), f"{name}.tiny")]),
            _constant(tape, np.array(127, np.float32), f"{name}.range"),
        ],
    )
    # QuantizeLinear takes one scale per row of a matrix: tokens are made rows and back.
    flat = _constant(tape, np.array([-1, width], np.int64), f"{name}.flat")
    row_scale = tape.op("Reshape", [scale, last])
    middle = tape.op(
        "ConstantOfShape",
        [tape.op("Shape", [row_scale])],
        {"value": ir.tensor(np.array([128], np.uint8))},
    )
    codes = tape.op(
        "QuantizeLinear", [tape.op("Reshape", [x, flat]), row_scale, middle], {"axis": 0}
    )
    return tape.op("Reshape", [codes, tape.op("Shape", [x])]), scale


def _weight(node: ir.Node, index: int) -> NDArray[np.float32]:
    value = node.inputs[index]
    assert value is not None and value.const_value is not None  # noqa: S101  see `matrices`
    return value.const_value.numpy()


def _name(node: ir.Node) -> str:
    return str(node.name).removeprefix("node_")


def _constant(tape: Tape, array: NDArray[np.generic], name: str) -> ir.Value:
    return tape.initializer(ir.tensor(array, name=name), name)


def _as_float(tape: Tape, scales: ir.Value) -> ir.Value:
    return tape.op("Cast", [scales], {"to": ir.DataType.FLOAT})


def _replace(model: ir.Model, node: ir.Node, tape: Tape, output: ir.Value) -> None:
    old = node.outputs[0]
    weights = [v for v in node.inputs if v is not None and v.is_initializer()]
    output.type, output.shape = old.type, old.shape
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], tape.nodes, [old], [output])
    for value in tape.initializers:
        model.graph.register_initializer(value)
    for value in weights:
        if not value.uses():
            del model.graph.initializers[str(value.name)]
