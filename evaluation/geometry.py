"""The shape of the vector space: do vectors use all directions, and are some near to all?

Isotropy: mean cosine of random pairs (0 when directions cancel out); IsoScore (Rudman,
Gillman, Rayne and Eickhoff 2022, Findings of ACL, arXiv 2108.07344), 1 when the variance is
the same in all directions and 0 when it has one; effective rank (Roy and Vetterli 2007,
EUSIPCO), how many directions the spectrum's entropy amounts to.

Hubness: how often each target is among the k nearest of some query. Its skewness (Radovanović,
Nanopoulos and Ivanović 2010, JMLR 11) and its Robin Hood index (Feldbauer et al. 2018, IEEE
ICBK), the share of neighbour slots that would have to change hands until all had the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.retrieval import Float, Index
from mexma.errors import InputError
from mexma.neighbours import nearest

HUB_K = 10


@dataclass(frozen=True)
class Isotropy:
    """mean_cosine: -1 to 1. isoscore: 0 to 1. effective_rank: 0 to min(dim, vectors - 1)."""

    mean_cosine: float
    isoscore: float
    effective_rank: float


@dataclass(frozen=True)
class Hubness:
    """skewness: 0 without hubs. robin_hood: 0 (all equal) to 1. largest: most slots of one."""

    skewness: float
    robin_hood: float
    largest: int


def isotropy(vectors: Float) -> Isotropy:
    """All three of float32 `[n, dim]`, at least two rows and two columns, else InputError."""
    n, dim = vectors.shape
    if n < 2 or dim < 2:
        raise InputError(f"isotropy: expected at least 2 vectors of 2 components, got {n} of {dim}")
    spectrum = _spectrum(vectors)
    return Isotropy(mean_cosine(vectors), isoscore(spectrum), effective_rank(spectrum))


def mean_cosine(vectors: Float) -> float:
    """Mean cosine over all pairs of different rows of unit vectors float32 `[n, dim]`, n >= 2.

    Exact, not sampled: the sum over all pairs is the squared length of the sum of all.
    """
    n = len(vectors)
    wide = vectors.astype(np.float64)
    total = wide.sum(0)
    return float((total @ total - np.sum(wide * wide)) / (n * (n - 1)))


def _spectrum(vectors: Float) -> NDArray[np.float64]:
    """Variances float64 `[dim]` along the principal directions of float32 `[n, dim]`."""
    centred = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
    variances = np.linalg.eigvalsh(centred.T @ centred / (len(vectors) - 1))
    # Rounding leaves eigenvalues of about 1e-17, of either sign, where there is no variance.
    variances[variances < variances[-1] * 1e-12] = 0
    return np.zeros_like(variances) if variances[-1] < 1e-15 else variances


def isoscore(variances: NDArray[np.float64]) -> float:
    """IsoScore of variances float64 `[dim]` along principal directions; 0 without variance."""
    dim = len(variances)
    length = np.linalg.norm(variances)
    if length == 0:
        return 0.0
    scaled = np.sqrt(dim) * variances / length
    defect = np.linalg.norm(scaled - 1) / np.sqrt(2 * (dim - np.sqrt(dim)))  # 0 to 1
    share = (dim - defect**2 * (dim - np.sqrt(dim))) ** 2 / dim**2  # of directions in use
    return float((dim * share - 1) / (dim - 1))


def effective_rank(variances: NDArray[np.float64]) -> float:
    """exp of the entropy of the singular values, whose squares are `variances` `[dim]`.

    0 without variance.
    """
    singular = np.sqrt(variances[variances > 0])
    if len(singular) == 0:
        return 0.0
    p = singular / singular.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


def occurrences(queries: Float, targets: Float, k: int = HUB_K) -> Index:
    """How many queries have each target among their k nearest, int64 `[m]`.

    queries float32 `[n, dim]`, targets float32 `[m, dim]`, unit vectors; with fewer than k
    targets every query has all of them.
    """
    _, found = nearest(queries, targets, k)
    return np.bincount(found.ravel(), minlength=len(targets)).astype(np.int64)


def hubness(queries: Float, targets: Float, k: int = HUB_K) -> Hubness:
    """Hubness of the targets under the queries; see `occurrences`. InputError when empty."""
    if len(queries) == 0 or len(targets) == 0:
        raise InputError(
            f"hubness: expected at least one query and one target, got {len(queries)} and "
            f"{len(targets)}"
        )
    return hubness_of(occurrences(queries, targets, k))


def hubness_of(counts: Index) -> Hubness:
    """Hubness of k-occurrences int64 `[m]`; skewness is 0 where all are equal."""
    wide = counts.astype(np.float64)
    deviation = wide - wide.mean()
    spread = wide.std()
    skewness = float(np.mean(deviation**3) / spread**3) if spread > 0 else 0.0
    robin_hood = float(np.abs(deviation).sum() / (2 * wide.sum())) if wide.sum() else 0.0
    return Hubness(skewness, robin_hood, int(counts.max()))
