"""What module.cpp binds; `mexma/native/__init__.py` says what it means."""

from typing import NewType

from typing_extensions import Buffer

_Handle = NewType("_Handle", object)

def kernels() -> list[tuple[str, str, str, str]]: ...
def create(
    kernel: str,
    hidden: int,
    heads: int,
    head_size: int,
    intermediate: int,
    layers: int,
    dim: int,
    places: int,
    norm_eps: float,
    pooling: int,
    head: bool,
    normalise: bool,
    threads: int,
    piece_tokens: int,
    /,
) -> _Handle: ...
def set_table(handle: _Handle, kind: int, codes: Buffer, scales: Buffer, rows: int, /) -> None: ...
def set_vector(handle: _Handle, layer: int, which: int, values: Buffer, /) -> None: ...
def set_matrix(
    handle: _Handle, layer: int, which: int, values: Buffer, k: int, n: int, bias: Buffer, /
) -> None: ...
def run(
    handle: _Handle, ids: Buffer, lengths: Buffer, vectors: Buffer, states: Buffer | None, /
) -> None: ...
