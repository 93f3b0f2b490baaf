"""Exact search over a collection's rows, beside FAISS Flat: queries/s and processor time.

    python -m benchmarks.store_exact VECTORS [--rows 1000000]

VECTORS is what `benchmarks.store_corpus` made. The last 64 texts are the queries. Both find the same
scores, which is checked first. Processor time is that of all threads together: on a machine
that is shared it says more than the clock.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks.circumstances import circumstances, result_file
from benchmarks.store_corpus import read
from service.store.index import Snapshot
from service.store.nearest import nearest
from service.store.threads import ThreadBudget

K, ROUNDS = 10, 3


def snapshot_of(vectors: Any, threads: int) -> Snapshot:
    """A collection's state with these rows."""
    state, none = Snapshot(vectors.shape[1], ThreadBudget(threads)), np.empty(0, np.int64)
    for start in range(0, len(vectors), 10_000):
        part = vectors[start : start + 10_000]
        rids = np.arange(start + 1, start + 1 + len(part))
        state = state.changed(none, rids, ["en"] * len(part), part, [{}] * len(part))
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    _, vectors = read(arguments.vectors, arguments.rows)
    queries, vectors = vectors[-64:].copy(), vectors[:-64]
    state = snapshot_of(vectors, threads)
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    faiss.omp_set_num_threads(threads)
    draw = np.random.default_rng(0).random(len(vectors))
    half, few = draw < 0.5, draw < 0.05

    def ours(mask: Any) -> Callable[[Any], Any]:
        return lambda asked: [f.cosines for f in nearest(state, asked, K, mask)]

    def selected(mask: Any) -> Callable[[Any], Any]:
        bits = np.packbits(mask, bitorder="little")
        chosen = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
        return lambda asked: flat.search(asked, K, params=chosen)[0]

    engines = {
        "the store": ours(state.alive),
        "FAISS Flat": lambda asked: flat.search(asked, K)[0],
        "the store, half of the rows": ours(half),
        "FAISS Flat, half of the rows": selected(half),
        "the store, 5 % of the rows": ours(few),
        "FAISS Flat, 5 % of the rows": selected(few),
    }
    scores = [np.array(search(queries)) for search in engines.values()]
    for mine, theirs in zip(scores[::2], scores[1::2], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-6)
    times: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _ in range(ROUNDS):
        for batch in (1, 64):
            for name, search in engines.items():
                began, spent = time.perf_counter(), time.process_time()
                asked = queries if batch == 64 else queries[:4]
                for start in range(0, len(asked), batch):
                    search(asked[start : start + batch])
                took = time.perf_counter() - began, time.process_time() - spent
                times.setdefault((name, batch), []).append(
                    (took[0] / len(asked), took[1] / len(asked))
                )
    lines = [
        f"# Exact search over {len(vectors)} rows of {vectors.shape[1]}\n",
        circumstances("numpy", "faiss-cpu"),
        "\n`python -m benchmarks.store_exact`, three rounds in turn, medians.\n",
        "| | queries/s, 1 at a time | 64 at a time | processor ms a query, 1 | 64 |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in engines:
        one, many = (
            [statistics.median(t) for t in zip(*times[name, batch], strict=True)]
            for batch in (1, 64)
        )
        lines.append(
            f"| {name} | {1 / one[0]:.1f} | {1 / many[0]:.1f} | {1e3 * one[1]:.2f} | {1e3 * many[1]:.2f} |"
        )
    text = "\n".join(lines) + "\n"
    result_file("store_exact").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
