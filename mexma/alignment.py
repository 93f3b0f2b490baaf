"""Which parts of two sentences say the same, from the states of their tokens.

Argmax and Itermax are the two methods of SimAlign (Jalili Sabet, Dufter, Yvon and Schütze
2020, Findings of EMNLP, arXiv 2004.08728) over the encoder's last hidden states. The service links
words by them (`service/routes/align.py`), the evaluation pieces (`evaluation/alignment.py`).

Refuses to know: texts, tokens, where states come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Links = NDArray[np.bool_]

ITERATIONS = 2
DISCOUNT = 0.9


def similarities(source: NDArray[np.float32], target: NDArray[np.float32]) -> NDArray[np.float64]:
    """(1 + cosine) / 2, float64 `[n, m]`, of states float32 `[n, hidden]` and `[m, hidden]`.

    Between 0 and 1, so that a discount lowers every entry. A zero state has 0.5 to all.
    """
    unit = []
    for states in (source, target):
        wide = states.astype(np.float64)
        norms = np.linalg.norm(wide, axis=1, keepdims=True)
        unit.append(wide / np.where(norms > 0, norms, 1))
    return (1 + unit[0] @ unit[1].T) / 2


def argmax_links(similarity: NDArray[np.float64]) -> Links:
    """Pieces that choose each other, bool `[n, m]`; ties go to the lower index.

    similarity: float64 `[n, m]`, not negative. Zero means "never": it links nothing.
    """
    links = np.zeros(similarity.shape, np.bool_)
    if similarity.size == 0:
        return links
    rows = np.arange(len(similarity))
    chosen = similarity.argmax(1)
    mutual = similarity.argmax(0)[chosen] == rows
    links[rows[mutual], chosen[mutual]] = True
    return links & (similarity > 0)


def itermax_links(
    similarity: NDArray[np.float64], *, iterations: int = ITERATIONS, discount: float = DISCOUNT
) -> Links:
    """Argmax repeated over what is left, bool `[n, m]`.

    After each round a pair is out of question when both its pieces are linked, and its
    similarity is multiplied by `discount` when one of them is. The first round is
    `argmax_links`.
    """
    links = np.zeros(similarity.shape, np.bool_)
    for _ in range(iterations):
        row, column = links.any(1, keepdims=True), links.any(0, keepdims=True)
        weight = np.where(row & column, 0.0, np.where(row | column, discount, 1.0))
        links |= argmax_links(similarity * weight)
    return links


METHODS: dict[str, Callable[[NDArray[np.float64]], Links]] = {
    "argmax": argmax_links,
    "itermax": itermax_links,
}


def word_states(
    states: NDArray[np.float32], tokens: Sequence[tuple[int, int]]
) -> NDArray[np.float32]:
    """The mean of the states of each word's tokens, float32 `[words, hidden]`.

    states: float32 `[length, hidden]`. tokens: of each word its first token and the one after its
    last, at least one; words may share them.
    """
    out = np.empty((len(tokens), states.shape[1]), np.float32)
    for row, (first, last) in zip(out, tokens, strict=True):
        states[first:last].mean(0, out=row)
    return out
