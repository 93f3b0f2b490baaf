"""Searches of a collection on a GPU, beside the exact scan of its processors. Part of `benchmarks.gpu`.

Random vectors in clusters, so that it needs no corpus: what is measured is time, and that the
answers are the exact ones. Without a GPU that FAISS sees, few rows are searched in its 2-byte rows on the
CPU: it is there to show that the script runs to its end.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from benchmarks.circumstances import say
from mexma.errors import InstallationError
from model_export.progress import Say
from service.store.index import Snapshot
from service.store.loaded_faiss import faiss
from service.store.nearest import Found, nearest
from service.store.planner import EXACT_ROWS
from service.store.resident import Gpu, Resident
from service.store.threads import ThreadBudget

DIM, K, QUERIES, ROUNDS = 384, 10, 256, 3
# Queries, by how many are asked at a time. Exactly fewer are, since each is a pass over all rows.
ASKED, ASKED_EXACTLY = {1: 64, 64: QUERIES}, {1: 16, 64: 64}
PART_ROWS = 20_000
ROWS = {True: 1_000_000, False: 60_000}
SHARES = (1.0, 0.5, 0.1)


def lines(say: Say = print) -> Iterator[str]:
    """The section in Markdown, each line as soon as it is known. say: told of each step."""
    try:
        gpu, there = Gpu.first(), "FAISS, rows in fp16 on the GPU"
    except InstallationError as error:
        gpu, there = (
            Gpu(on_cpu),
            f"not available ({error}); a dry run with the same rows on the CPU",
        )
    rows = ROWS[gpu.make is not on_cpu]
    say(f"search: {there}")
    snapshot, queries = _collection(rows)
    say(f"search: {rows:,} rows made")
    began = time.perf_counter()
    snapshot = _attached(snapshot, gpu)
    read_s = time.perf_counter() - began
    say("search: copied to the device")
    yield from (
        "## Searches of a collection", "",
        f"{rows:,} rows of {DIM}, {K} wanted. {there}. Copied there in {read_s:.1f} s. Median of {ROUNDS} interleaved "
        "rounds; whoever asks gets exact cosines in both ways.", "",
        "| rows that a filter leaves | queries at a time | exact on the CPU, queries/s | with the GPU | found of the exact |",
        "|---:|---:|---:|---:|---:|",
    )  # fmt: skip
    # Fewer are compared on the CPU, exactly.
    for share in [s for s in SHARES if s * rows > 1.1 * EXACT_ROWS]:
        mask = snapshot.alive
        if share < 1:
            mask = mask & (np.random.default_rng(1).random(rows) < share)
        for batch in (1, 64):
            (exactly_s, exactly), (quickly_s, quickly) = _in_turn(
                partial(_ask, snapshot, queries, mask, batch)
            )
            recall = np.mean([
                len({*a.positions.tolist()} & {*b.positions.tolist()}) / K
                for a, b in zip(exactly, quickly, strict=False)
            ])  # fmt: skip
            assert all(f.approximate for f in quickly)
            say(f"search: {share:.0%} of the rows, {batch} at a time")
            yield (
                f"| {share:.0%} | {batch} | {len(exactly) / exactly_s:,.0f} | {len(quickly) / quickly_s:,.0f} | {recall:.4f} |"
            )
    yield ""


def on_cpu(dim: int) -> Any:
    """An index with the same calls and rows of the same 2 bytes a component."""
    return faiss.IndexScalarQuantizer(
        dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )


def _ask(snapshot: Snapshot, queries: Any, mask: Any, batch: int, exact: bool) -> list[Found]:
    asked = queries[: (ASKED_EXACTLY if exact else ASKED)[batch]]
    return [
        found for i in range(0, len(asked), batch)
        for found in nearest(snapshot, asked[i : i + batch], K, mask, exact=exact)
    ]  # fmt: skip


def _collection(rows: int) -> tuple[Snapshot, Any]:
    """All rows, and queries."""
    cores = len(os.sched_getaffinity(0))
    centres = np.random.default_rng(0).standard_normal((1_000, DIM), dtype=np.float32)

    def some(start: int, count: int) -> Any:
        """Unit vectors; each part has a generator of its own, so that threads make several at once."""
        random = np.random.default_rng([1, start])
        made = random.standard_normal((count, DIM), dtype=np.float32)
        made += centres[random.integers(0, len(centres), count)]
        made /= np.linalg.norm(made, axis=1, keepdims=True)
        return made

    snapshot, none = Snapshot(DIM, ThreadBudget(cores)), np.empty(0, np.int64)
    starts = range(0, rows, PART_ROWS)
    with ThreadPoolExecutor(cores) as threads:
        made = threads.map(lambda start: some(start, min(PART_ROWS, rows - start)), starts)
        for start, vectors in zip(starts, made, strict=True):
            count = len(vectors)
            rids = np.arange(start + 1, start + count + 1)
            snapshot = snapshot.changed(none, rids, ["en"] * count, vectors, [{}] * count)
    return snapshot, some(rows, QUERIES)


def _attached(snapshot: Snapshot, gpu: Gpu) -> Snapshot:
    """With an index of all its rows on the GPU."""
    positions = np.arange(len(snapshot.rids))

    def read(part: Any) -> Any:
        return snapshot.vectors(positions[part])

    built = Resident.build(gpu, snapshot.rids, len(positions), read, bool)
    return snapshot.attaching(built)


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
    for line in lines(partial(say, started=time.perf_counter())):
        print(line, flush=True)
