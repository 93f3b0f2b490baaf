"""A collection of up to a million documents: recall, speed, memory, filters, and writes meanwhile.

    python -m benchmarks.store_million VECTORS WORK [--rows 1000000] [--engines store "FAISS HNSW" ...]

VECTORS is what `benchmarks.store_corpus` made; WORK a folder on the disk that the store shall use.
The last 512 texts are queries and in no index. Each approximate engine tries as hard as it must for a
recall@10 of 0.95 on the first half of them; the second half is measured, engines in turn, three times. hnswlib's filters call Python for each row: without.
All engines are checked against the exact answer first.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.circumstances import circumstances, result_file
from benchmarks.store_corpus import read
from benchmarks.store_peers import ENGINES, Worker, marks

QUERIES, K, BAR, ROUNDS = 512, 10, 0.95, 3


def exact(vectors: Any, queries: Any, rows: Any = None) -> list[set[int]]:
    """The true 10 nearest of each query, among `rows` (int64) or all."""
    rows = np.arange(len(vectors)) if rows is None else rows
    best: list[Any] = [(np.empty(0), np.empty(0, np.int64))] * len(queries)
    for start in range(0, len(rows), 50_000):
        part = rows[start : start + 50_000]
        scores = queries @ vectors[part].T
        for n, row in enumerate(scores):
            values, places = np.concatenate([best[n][0], row]), np.concatenate([best[n][1], part])
            top = np.argsort(-values)[:K]
            best[n] = values[top], places[top]
    return [set(places.tolist()) for _, places in best]


def recall(found: list[list[int]], truth: list[set[int]]) -> float:
    """Of the true nearest, how many were found."""
    pairs = zip(found, truth, strict=True)
    return float(np.mean([len(set(f) & t) / max(len(t), 1) for f, t in pairs]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("vectors", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--engines", nargs="+", default=[*ENGINES], choices=[*ENGINES])
    arguments = parser.parse_args()
    queries, truth = _prepare(arguments.vectors, arguments.work, arguments.rows)
    workers = {name: Worker(name, arguments.work) for name in arguments.engines}
    lines = _measure(workers, queries, truth)
    for worker in workers.values():
        worker.stop()
    text = (
        f"# The store and its peers over {len(np.load(arguments.work / 'vectors.npy', mmap_mode='r'))} "
        f"documents\n\n{circumstances('faiss-cpu', 'hnswlib', 'pymilvus', 'milvus-lite', 'numpy')}\n\n"
        + "\n".join(lines)
        + "\n"
    )
    result_file("store_million").write_text(text)
    print(text)


def _prepare(source: Path, work: Path, rows: int) -> tuple[Any, dict[str, list[set[int]]]]:
    texts, vectors = read(source, rows)
    rows = len(vectors) - QUERIES
    work.mkdir(parents=True, exist_ok=True)
    np.save(work / "vectors.npy", vectors[:rows])
    pairs = zip(texts["text"].to_pylist(), texts["lang"].to_pylist(), strict=True)
    (work / "texts.json").write_text(json.dumps([*pairs][:rows]))
    queries = np.ascontiguousarray(vectors[rows:])
    truth = {"": exact(vectors[:rows], queries)}
    for mark, chosen in marks(rows).items():
        truth[mark] = exact(vectors[:rows], queries, np.flatnonzero(chosen))
    return queries, truth


def _measure(
    workers: dict[str, Worker], queries: Any, truth: dict[str, list[set[int]]]
) -> list[str]:
    half = QUERIES // 2
    built = {name: worker.ask("build") for name, worker in workers.items()}
    for name, numbers in built.items():
        print(name, "built", numbers, flush=True)
    widths = {}
    for name, worker in workers.items():
        for width in ENGINES[name].widths:
            found = worker.ask("timed", queries[:half], K, width, 64)[1]
            widths[name] = width
            if recall(found, truth[""][:half]) >= BAR:
                break
    print("widths", widths, flush=True)
    speeds: dict[tuple[str, str, int], list[float]] = {}
    recalls: dict[tuple[str, str], float] = {}
    asked, cases = queries[half:], [(mark, batch) for mark in truth for batch in (1, 64)]
    for _ in range(ROUNDS):
        for mark, batch in cases:
            for name, worker in workers.items():
                if mark and not ENGINES[name].filters:
                    continue
                some = asked if batch > 1 or not mark else asked[:64]
                if name == "FAISS Flat" and batch == 1:
                    some = asked[:32]
                speed, found = worker.ask("timed", some, K, widths[name], batch, mark)
                speeds.setdefault((name, mark, batch), []).append(speed)
                recalls[name, mark] = recall(found, truth[mark][half : half + len(some)])
    lines = [
        "| | width | recall@10 | queries/s, 1 at a time | 64 at a time | memory MB | built in s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in workers:
        one, many = (statistics.median(speeds[name, "", batch]) for batch in (1, 64))
        lines.append(
            f"| {name} | {widths[name] or '-'} | {recalls[name, '']:.3f} | {one:.0f} | {many:.0f} "
            f"| {built[name]['mb']:.0f} | {built[name]['seconds']:.0f} |"
        )
    lines += [
        "\nFiltered, recall@10 and queries/s (1 / 64 at a time):\n",
        "| | 10 % | 1 % | 0.1 % |\n|---|---:|---:|---:|",
    ]
    for name in workers:
        if not ENGINES[name].filters:
            continue
        cells = [
            f"{recalls[name, mark]:.3f}, "
            + " / ".join(f"{statistics.median(speeds[name, mark, b]):.0f}" for b in (1, 64))
            for mark in truth
            if mark
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if "store" in workers:
        lines += _disturbed(workers["store"], queries)
    return lines


def _disturbed(store: Worker, queries: Any) -> list[str]:
    rows = ["", "| searches one at a time | p50 ms | p99 ms |", "|---|---:|---:|"]
    many = np.concatenate([queries] * 4)
    for what in (False, True):
        took = store.ask("latencies", many, what)
        name = "while documents are written and a snapshot is taken" if what else "idle"
        rows.append(f"| {name} | {np.median(took):.2f} | {np.percentile(took, 99):.2f} |")
    return [*rows, f"\nDocuments written meanwhile: {store.ask('writes'):.0f}/s."]


if __name__ == "__main__":
    main()
