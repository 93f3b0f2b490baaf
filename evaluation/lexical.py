"""The plain alternative: cosine of character n-grams, which knows no language.

Whatever it finds, names and numbers and words of common origin gave away; an encoder has to
be better than this, and by how much is what a retrieval number is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

Float = NDArray[np.float32]

SHORTEST, LONGEST = 2, 4
DESCRIPTION = f"character n-grams ({SHORTEST} to {LONGEST}, within words), TF-IDF, cosine"


class SparseVectors:
    """Sparse unit vectors `[n, terms]` with what `mexma.neighbours` asks of a matrix.

    Length, a slice of rows, and the product with another one's transpose, which is dense:
    float32 `[n, m]`.
    """

    def __init__(self, rows: Any, *, transposed: bool = False):
        self._rows = rows
        self._transposed = transposed

    def __len__(self) -> int:
        return int(self._rows.shape[0])

    def __getitem__(self, rows: slice) -> SparseVectors:
        return SparseVectors(self._rows[rows])

    @property
    def T(self) -> SparseVectors:
        return SparseVectors(self._rows, transposed=not self._transposed)

    def __matmul__(self, other: SparseVectors) -> Float:
        product = (self._rows @ other._rows.T).toarray()
        return np.asarray(product, np.float32)


def lexical_vectors(*sides: Sequence[str]) -> list[Float]:
    """Character n-gram TF-IDF vectors of each side's texts.

    Document frequencies are counted over all sides together. A text without any n-gram has
    the zero vector. What comes back stands in for float32 `[n, terms]` matrices of unit rows,
    in `mexma.neighbours.nearest` and everything built on it, and keeps them sparse.
    """
    texts = [text for side in sides for text in side]
    # A single letter would otherwise be no word at all, and "?" neither.
    vectorizer = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(SHORTEST, LONGEST), sublinear_tf=True, dtype=np.float32
    )
    rows = vectorizer.fit_transform(texts)
    out, start = [], 0
    for side in sides:
        out.append(cast(Float, SparseVectors(rows[start : start + len(side)])))
        start += len(side)
    return out
