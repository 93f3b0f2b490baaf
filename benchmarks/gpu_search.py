"""Searches of a collection on a GPU, beside the exact scan of its processors. Part of `benchmarks.gpu`.

Random vectors in clusters, since a machine that is lent has no corpus: what is measured is time, and that the
answers are the exact ones. Without a GPU that FAISS sees, few rows are searched in its 2-byte rows on the
CPU: it is there to show that the script runs to its end.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mexma.errors import InstallationError
from service.store.index import Snapshot
from service.store.loaded_faiss import faiss
from service.store.nearest import Found, nearest
from service.store.planner import EXACT_ROWS
from service.store.resident import Gpu, Resident
from service.store.threads import ThreadBudget

DIM, K, QUERIES, ROUNDS = 384, 10, 256, 5
ROWS = {True: 1_000_000, False: 60_000}
SHARES = (1.0, 0.5, 0.1)


def lines() -> list[str]:
    """The section in Markdown."""
    try:
        gpu, there = Gpu.first(), "FAISS, rows in fp16 on the GPU"
    except InstallationError as error:
        gpu, there = (
            Gpu(on_cpu),
            f"not available ({error}); a dry run with the same rows on the CPU",
        )
    rows = ROWS[gpu.make is not on_cpu]
    snapshot, queries, read_s = _collection(rows, gpu)
    found = [
        "## Searches of a collection", "",
        f"{rows:,} rows of {DIM}, {K} wanted. {there}. Copied there in {read_s:.1f} s. Median of {ROUNDS} interleaved "
        "rounds; whoever asks gets exact cosines in both ways.", "",
        "| rows that a filter leaves | queries at a time | exact on the CPU, queries/s | with the GPU | found of the exact |",
        "|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    # Fewer are compared on the CPU, exactly.
    for share in [s for s in SHARES if s * rows > 1.1 * EXACT_ROWS]:
        mask = snapshot.alive
        if share < 1:
            mask = mask & (np.random.default_rng(1).random(rows) < share)
        for batch in (1, 64):
            asked = queries[: QUERIES if batch > 1 else QUERIES // 4]

            def ask(exact: bool, asked: Any = asked, batch: int = batch, mask: Any = mask) -> Any:
                parts = range(0, len(asked), batch)
                return [
                    f for i in parts
                    for f in nearest(snapshot, asked[i : i + batch], K, mask, exact=exact)
                ]  # fmt: skip

            exactly, quickly = _in_turn(ask)
            recall = np.mean([
                len({*a.positions.tolist()} & {*b.positions.tolist()}) / K
                for a, b in zip(exactly[1], quickly[1], strict=True)
            ])  # fmt: skip
            assert all(f.approximate for f in quickly[1])
            found.append(
                f"| {share:.0%} | {batch} | {len(asked) / exactly[0]:,.0f} | {len(asked) / quickly[0]:,.0f} | {recall:.4f} |"
            )
    return [*found, ""]


def on_cpu(dim: int) -> Any:
    """An index with the same calls and rows of the same 2 bytes a component."""
    return faiss.IndexScalarQuantizer(
        dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )


def _collection(rows: int, gpu: Gpu) -> tuple[Snapshot, Any, float]:
    """All rows with an index on the GPU, queries, and the seconds that it took to copy them there."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((1_000, DIM), dtype=np.float32)

    def some(count: int) -> Any:
        made = centres[random.integers(0, len(centres), count)]
        made += random.standard_normal((count, DIM), dtype=np.float32)
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    snapshot, none = (
        Snapshot(DIM, ThreadBudget(len(os.sched_getaffinity(0)))),
        np.empty(0, np.int64),
    )
    for start in range(0, rows, 20_000):
        count = min(20_000, rows - start)
        rids = np.arange(start + 1, start + count + 1)
        snapshot = snapshot.changed(none, rids, ["en"] * count, some(count), [{}] * count)
    began = time.perf_counter()

    def read(part: Any) -> Any:
        return snapshot.vectors(np.arange(rows)[part])

    built = Resident.build(gpu, snapshot.rids, rows, read, bool)
    took = time.perf_counter() - began
    return snapshot.attaching(built), some(QUERIES), took


def _in_turn(ask: Callable[[bool], list[Found]]) -> list[tuple[float, list[Found]]]:
    """(median seconds, what was found) exactly, and with the GPU."""
    times: dict[bool, list[float]] = {True: [], False: []}
    found: dict[bool, list[Found]] = {}
    for _ in range(ROUNDS):
        for exact, taken in times.items():
            began = time.perf_counter()
            found[exact] = ask(exact)
            taken.append(time.perf_counter() - began)
    return [(statistics.median(times[exact]), found[exact]) for exact in (True, False)]


if __name__ == "__main__":
    print("\n".join(lines()))
