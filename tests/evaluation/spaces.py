"""Vectors to measure: a good space, ever worse ones, and a useless one."""

from __future__ import annotations

import numpy as np


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def two_sides(n: int, *, noise: float, dim: int = 16, seed: int = 0) -> tuple[np.ndarray, ...]:
    """n vectors and their translations, which lie beside them by `noise`."""
    rng = np.random.default_rng(seed)
    meaning = rng.standard_normal((n, dim))
    return unit(meaning), unit(meaning + noise * rng.standard_normal((n, dim)))
