"""Does a text's vector depend on what it is computed with? Looked at in what is served.

One batch in so many has one of its texts computed once more, alone. It adds the time of one text to one
batch in `every`. Batches padded in low precision are where others' services answer differently under load;
the tests hold ours to `BOUND`, and this watches that it stays so with the texts that come.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)
Run = Callable[[Sequence[NDArray[np.int64]]], NDArray[np.float32]]

BOUND = 0.9999
"""Least cosine, of any precision."""
KEPT = 100


class InvarianceCheck:
    """In place of an encoder's `run`: the same vectors, and one of them looked at now and then.

    every: batches of two texts or more to one that is checked; 0 checks none. report: is told the least
    cosine of the last `KEPT` checks, on the engine's thread.
    """

    def __init__(self, run: Run, *, every: int, report: Callable[[float], None]):
        self._run = run
        self._every = every
        self._report = report
        self._batches = 0
        self._found: deque[float] = deque(maxlen=KEPT)
        self._lock = threading.Lock()  # `run` is called on several threads

    def run(self, sequences: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Vectors, float32 `[n, dim]`, of int64 `[length]` each. Raises what the encoder raises."""
        vectors = self._run(sequences)
        if self._every and len(sequences) > 1:
            with self._lock:
                self._batches += 1
                batches = self._batches
            if batches % self._every == 0:
                at = batches // self._every % len(sequences)
                self._look(sequences[at], vectors[at])
        return vectors

    def _look(self, ids: NDArray[np.int64], together: NDArray[np.float32]) -> None:
        try:
            alone = self._run([ids])[0]
        except Exception as error:  # noqa: BLE001 - the batch has its vectors, and gets them
            log.warning("a text that was computed in a batch fails alone: %s", type(error).__name__)
            return
        lengths = float(np.linalg.norm(alone) * np.linalg.norm(together))
        cosine = float(alone @ together) / lengths if lengths else 0.0
        if not np.isfinite(cosine):
            return  # the batch's caller is told
        with self._lock:
            self._found.append(min(cosine, 1.0))
            least = min(self._found)
        if cosine < BOUND:
            log.warning(
                "a text's vector in a batch has cosine %.6f to its vector alone; the bound is %s",
                cosine, BOUND,
            )  # fmt: skip
        self._report(least)
