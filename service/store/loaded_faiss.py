"""FAISS, and which processor its library for matrix products takes this one for.

FAISS's wheel brings an OpenBLAS of 2021 that takes a Xeon of 2023 for a Pentium 4 and multiplies with
SSE3; numpy's is newer and knows better. Told what numpy's sees, training an index took 4.7 s of
processor time for 16.1, and adding to it 0.5 for 1.4 (60,000 rows of 384, 1,024 lists). Can go when
FAISS's own answers "SkylakeX" or better on such a processor (asked with threadpoolctl).
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

VARIABLE = "OPENBLAS_CORETYPE"
KNOWN = frozenset({"SkylakeX", "Haswell", "Zen"})
"""Names that the older library has, too; what it does not know it would take for the oldest."""
NEWER = {"SapphireRapids": "SkylakeX", "Cooperlake": "SkylakeX"}


def _seen_by_numpy() -> str:
    where = str(np.__path__[0])
    for library in ThreadpoolController().info():
        if library["user_api"] == "blas" and library["filepath"].startswith(where):
            name = str(library.get("architecture"))
            return NEWER.get(name, name)
    return ""


def _load() -> Any:
    """FAISS, told what numpy's library sees, unless somebody has chosen already."""
    chosen = VARIABLE not in os.environ and (seen := _seen_by_numpy()) in KNOWN
    if chosen:
        os.environ[VARIABLE] = seen
    try:
        return import_module("faiss")  # its library reads the variable now, and never again
    finally:
        if chosen:
            del os.environ[VARIABLE]


faiss: Any = _load()  # Any: its stubs lack half of what is used here
