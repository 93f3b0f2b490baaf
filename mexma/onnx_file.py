"""Read an ONNX file: its operators in order, and its weights where they lie, without copying.

ONNX is a protobuf, and this reads the few of its fields that name operators, their inputs and
their weights; https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3 numbers them. So a
service needs no ONNX library to hand weights to its own engine.

Refuses to know: what a graph means (`mexma.weights` does), and graphs inside graphs.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mexma.errors import ArtifactError

BF16, INT4 = 16, 22  # of TensorProto.DataType; numpy has neither
DTYPES: dict[int, type[np.generic]] = {
    1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 10: np.float16,
    BF16: np.uint16, INT4: np.uint8,
}  # fmt: skip
EXTERNAL = 1  # of TensorProto.DataLocation


@dataclass(frozen=True, slots=True)
class Operator:
    """One node. inputs, outputs: names, "" for one that is left out. numbers: its attributes
    that are integers, floats or tensors' names."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    numbers: dict[str, int | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Weight:
    """One initializer: `shape`, and its values as stored, flat. bf16 comes as uint16; two values of
    4 bits come as one uint8, the low half first."""

    kind: int
    shape: tuple[int, ...]
    stored: NDArray[np.generic]

    def array(self) -> NDArray[np.generic]:
        """The values in their shape; 4-bit ones as int8, bf16 ones as float32."""
        if self.kind == INT4:
            both = self.stored.astype(np.uint8)
            codes = np.stack([both & 15, both >> 4], -1).reshape(-1)[: int(np.prod(self.shape))]
            return ((codes.astype(np.int8) ^ 8) - 8).astype(np.int8).reshape(self.shape)
        if self.kind == BF16:
            return (self.stored.astype(np.uint32) << 16).view(np.float32).reshape(self.shape)
        return self.stored.reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Graph:
    """operators: in the order in which they run. weights: by name."""

    operators: list[Operator]
    weights: dict[str, Weight]


def read_graph(path: Path) -> Graph:
    """Map `path` into memory and read it. Raises ArtifactError when it is not an ONNX file."""
    try:
        content = _mapped(path)
        graph = next(part for number, _, part in _fields(content) if number == 7)
        operators = [_operator(part) for number, _, part in _fields(graph) if number == 1]
        weights = dict(
            _weight(part, path.parent) for number, _, part in _fields(graph) if number == 5
        )
    except (StopIteration, LookupError, ValueError, TypeError, ArithmeticError, OSError) as error:
        raise ArtifactError(f"{path}: not an ONNX file that can be read here: {error!r}") from error
    return Graph(operators, weights)


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _fields(message: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Each field's number, its value if it is an integer, and its bytes if it is anything else."""
    at, nothing = 0, memoryview(b"")
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value, nothing
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(message):
            raise ValueError("it ends in the middle of a field")
        yield number, 0, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
        if shift == 70:
            raise ValueError("a number of more than 64 bits")


def _text(part: memoryview) -> str:
    return bytes(part).decode()


def _integers(value: int, part: memoryview) -> list[int]:
    """Of a repeated field, which comes one by one or packed."""
    if not len(part):
        return [value]
    values, at = [], 0
    while at < len(part):
        value, at = _varint(part, at)
        values.append(value)
    return values


def _operator(message: memoryview) -> Operator:
    kind = ""
    inputs: list[str] = []
    outputs: list[str] = []
    numbers: dict[str, int | float] = {}
    for number, _, part in _fields(message):
        if number == 1:
            inputs.append(_text(part))
        elif number == 2:
            outputs.append(_text(part))
        elif number == 4:
            kind = _text(part)
        elif number == 5:
            attribute = {n: (v, p) for n, v, p in _fields(part)}
            name = _text(attribute[1][1])
            if 3 in attribute:
                numbers[name] = attribute[3][0]
            elif 2 in attribute:
                numbers[name] = float(np.frombuffer(attribute[2][1], "<f4")[0])
    return Operator(kind, tuple(inputs), tuple(outputs), numbers)


def _weight(message: memoryview, folder: Path) -> tuple[str, Weight]:
    shape: list[int] = []
    kind = location = 0
    name = ""
    raw = memoryview(b"")
    floats = np.empty(0, np.float32)
    integers: list[int] = []
    external: dict[str, str] = {}
    for number, value, part in _fields(message):
        if number == 1:
            shape += _integers(value, part)
        elif number == 2:
            kind = value
        elif number == 4:
            floats = np.frombuffer(part, np.float32)
        elif number in (5, 7):
            integers += _integers(value, part)
        elif number == 8:
            name = _text(part)
        elif number == 9:
            raw = part
        elif number == 13:
            entry = {n: _text(p) for n, _, p in _fields(part)}
            external[entry[1]] = entry[2]
        elif number == 14:
            location = value
    dtype = np.dtype(DTYPES[kind])
    if location == EXTERNAL:
        raw = _outside(external, folder)
    stored: NDArray[np.generic] = floats
    if len(raw):
        stored = np.frombuffer(raw, dtype)
    elif integers:
        stored = np.array(integers, np.uint64).astype(dtype)  # two's complement, as it is written
    return name, Weight(kind, tuple(shape), stored)


def _outside(external: dict[str, str], folder: Path) -> memoryview:
    """Bytes of a weight that lies in a file beside the graph's."""
    file = external["location"]
    if Path(file).name != file:
        raise ValueError(f"a weight lies outside the model directory: {file}")
    start = int(external.get("offset", 0))
    return _mapped(folder / file)[start : start + int(external["length"])]
