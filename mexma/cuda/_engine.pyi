"""What module.cpp binds; `mexma/cuda/__init__.py` says what it means."""

from typing import NewType

from typing_extensions import Buffer

_Handle = NewType("_Handle", object)

def create(
    hidden: int,
    heads: int,
    intermediate: int,
    layers: int,
    places: int,
    norm_eps: float,
    mean: bool,
    normalise: bool,
    kernels: str,
    driver: str,
    compiler: str,
    products: str,
    /,
) -> _Handle: ...
def device(handle: _Handle, /) -> str: ...
def set_table(handle: _Handle, values: Buffer, rows: int, /) -> None: ...
def set_vector(handle: _Handle, layer: int, which: int, values: Buffer, /) -> None: ...
def set_matrix(
    handle: _Handle, layer: int, which: int, matrix: Buffer, bias: Buffer, /
) -> None: ...
def run(
    handle: _Handle, ids: Buffer, lengths: Buffer, vectors: Buffer, states: Buffer | None, /
) -> None: ...
