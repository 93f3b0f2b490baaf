"""A collection of up to a million documents: recall, speed, memory, filters, writes, and searches meanwhile.

    python -m benchmarks.store_million VECTORS WORK [--rows 1000000] [--engines store "FAISS HNSW" ...]

VECTORS is what `benchmarks.store_corpus` made; WORK a folder on the disk that the store shall use, with
17 GB free for a million. What is built there is kept, and a run that was stopped goes on. The last 512
texts are queries and in no index. Each approximate engine tries as hard as it must for a recall@10 of
0.95 on the first half of them, and with a filter for 0.99 or as near as it comes to that; the second half
is measured, engines in turn, three times. Filters of
hnswlib and usearch are called for each row or not to be had in Python: without.
All engines are compared with the exact answer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.circumstances import circumstances, result_file
from benchmarks.store_corpus import read
from benchmarks.store_engine import marks
from benchmarks.store_peers import ENGINES, Worker

QUERIES, K, ROUNDS = 512, 10, 3
BAR, FILTERED_BAR = 0.95, 0.99
CALLERS, PER_WRITE, WRITE_SECONDS = (1, 16), (1, 100), 3.0
SEARCHES = 1_024
PACKAGES = ("faiss-cpu", "hnswlib", "usearch", "pymilvus", "milvus-lite", "numpy")


def say(*what: Any) -> None:
    print(time.strftime("%H:%M:%S"), *what, flush=True)


def exact(vectors: Any, queries: Any, rows: Any = None) -> list[set[int]]:
    """The true 10 nearest of each query, among `rows` (int64) or all."""
    rows = np.arange(len(vectors)) if rows is None else rows
    values = np.full((len(queries), K), -np.inf, np.float32)
    places = np.full((len(queries), K), -1, np.int64)
    for start in range(0, len(rows), 50_000):
        part = rows[start : start + 50_000]
        scores = np.hstack([values, queries @ vectors[part].T])
        top = np.argpartition(-scores, min(K, scores.shape[1]) - 1, axis=1)[:, :K]
        values = np.take_along_axis(scores, top, 1)
        names = np.hstack([places, np.broadcast_to(part, (len(queries), len(part)))])
        places = np.take_along_axis(names, top, 1)
    return [set(row[row >= 0].tolist()) for row in places]


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
    rows = len(np.load(arguments.work / "vectors.npy", mmap_mode="r"))
    workers = {name: Worker(name, arguments.work) for name in arguments.engines}
    lines = [f"# The store and its peers over {rows} documents\n", circumstances(*PACKAGES), ""]
    try:
        for part in (_searched, _written, _disturbed):
            lines += part(workers, queries, truth)
            result_file("store_million").write_text("\n".join(lines) + "\n")
    finally:
        for worker in workers.values():
            worker.stop()
    print("\n".join(lines))


def _prepare(source: Path, work: Path, rows: int) -> tuple[Any, dict[str, list[set[int]]]]:
    texts, vectors = read(source, rows)
    rows = len(vectors) - QUERIES
    work.mkdir(parents=True, exist_ok=True)
    if (file := work / "vectors.npy").exists() and len(np.load(file, mmap_mode="r")) != rows:
        raise SystemExit(f"{work} is of another number of rows than {rows}: give an empty folder")
    np.save(file, vectors[:rows])
    pairs = zip(texts["text"].to_pylist(), texts["lang"].to_pylist(), strict=True)
    (work / "texts.json").write_text(json.dumps([*pairs][:rows]))
    queries = np.array(vectors[rows:])
    say("exact answers for", len(queries), "queries")
    truth = {"": exact(vectors[:rows], queries)}
    for mark, chosen in marks(rows).items():
        truth[mark] = exact(vectors[:rows], queries, np.flatnonzero(chosen))
    return queries, truth


def _searched(
    workers: dict[str, Worker], queries: Any, truth: dict[str, list[set[int]]]
) -> list[str]:
    half = QUERIES // 2
    built = {}
    for name, worker in workers.items():
        say(name, "is being built")
        built[name] = worker.ask("build")
        say(name, built[name])
    widths: dict[tuple[str, str], int] = {}
    for name, worker in workers.items():
        for mark, true in truth.items():
            if mark and not ENGINES[name].filters:
                continue
            for width in ENGINES[name].widths:
                found = worker.ask("timed", queries[:half], K, width, 64, mark)[1]
                widths[name, mark] = width
                if recall(found, true[: len(found)]) >= (FILTERED_BAR if mark else BAR):
                    break
    say("widths", widths)
    speeds: dict[tuple[str, str, int], list[float]] = {}
    recalls: dict[tuple[str, str], float] = {}
    asked, cases = queries[half:], [(mark, batch) for mark in truth for batch in (1, 64)]
    for n in range(ROUNDS):
        say("searches, round", n + 1)
        for mark, batch in cases:
            for name, worker in workers.items():
                if mark and not ENGINES[name].filters:
                    continue
                speed, found = worker.ask("timed", asked, K, widths[name, mark], batch, mark)
                speeds.setdefault((name, mark, batch), []).append(speed)
                recalls[name, mark] = recall(found, truth[mark][half : half + len(found)])
    lines = [
        "| | width | recall@10 | queries/s, 1 at a time | 64 at a time | memory MB | built in s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in workers:
        one, many = (statistics.median(speeds[name, "", batch]) for batch in (1, 64))
        lines.append(
            f"| {name} | {widths[name, ''] or '-'} | {recalls[name, '']:.3f} | {_rate(one)} | {_rate(many)} "
            f"| {built[name]['mb']:.0f} | {built[name]['seconds']:.0f} |"
        )
    lines += [
        f"\nFiltered, for a recall of {FILTERED_BAR} where there is a width for it: width: recall@10, "
        "queries/s (1 / 64 at a time):\n",
        "| | 10 % | 1 % | 0.1 % |\n|---|---:|---:|---:|",
    ]
    for name in workers:
        if not ENGINES[name].filters:
            continue
        cells = [
            f"{widths[name, mark] or '-'}: {recalls[name, mark]:.3f}, "
            + " / ".join(_rate(statistics.median(speeds[name, mark, b])) for b in (1, 64))
            for mark in truth
            if mark
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _rate(per_s: float) -> str:
    return f"{per_s:.0f}" if per_s >= 10 else f"{per_s:.1f}"


def _written(workers: dict[str, Worker], *_: Any) -> list[str]:
    stores = {name: worker for name, worker in workers.items() if ENGINES[name].durable}
    found: dict[tuple[str, int, int], list[float]] = {}
    for n in range(ROUNDS):
        say("writes, round", n + 1)
        for callers in CALLERS:
            for documents in PER_WRITE:
                for name, worker in stores.items():
                    worker.ask("prepare_writes")
                    rate = worker.ask("writes_per_second", callers, documents, WRITE_SECONDS)
                    found.setdefault((name, callers, documents), []).append(rate)
                    worker.ask("forget_writes")
    rows = [
        "",
        f"Acknowledged writes/s to an empty collection beside this one, {WRITE_SECONDS:.0f} s each, medians "
        f"of {ROUNDS} rounds (least to most):\n",
        "| callers | documents a write | " + " | ".join(stores) + " |",
        "|---:|---:|" + "---:|" * len(stores),
    ]
    for callers in CALLERS:
        for documents in PER_WRITE:
            cells = [
                f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"
                for rates in (found[name, callers, documents] for name in stores)
            ]
            rows.append(f"| {callers} | {documents} | {' | '.join(cells)} |")
    return [
        *rows,
        "",
        *(f"An acknowledged write of {name} is {ENGINES[name].durable}." for name in stores),
    ]


def _disturbed(workers: dict[str, Worker], queries: Any, *_: Any) -> list[str]:
    if (store := workers.get("store")) is None:
        return []
    many = np.concatenate([queries] * -(-SEARCHES // len(queries)))
    found: dict[bool, list[Any]] = {False: [], True: []}
    written = []
    for n in range(ROUNDS):
        say("searches beside writes and a snapshot, round", n + 1)
        for what, rounds in found.items():
            took = store.ask("latencies", many, what)
            rounds.append(np.percentile(took, [50, 99]))
            if what:
                written.append(store.ask("written"))
    rows = [
        "",
        f"| searches one at a time, medians of {ROUNDS} rounds | p50 ms | p99 ms (least to most) |",
        "|---|---:|---:|",
    ]
    for what, rounds in found.items():
        name = "while documents are written and a snapshot is taken" if what else "idle"
        p50, p99 = np.median(rounds, axis=0)
        least, most = min(r[1] for r in rounds), max(r[1] for r in rounds)
        rows.append(f"| {name} | {p50:.2f} | {p99:.2f} ({least:.2f} to {most:.2f}) |")
    ratios = [b[1] / a[1] for a, b in zip(found[False], found[True], strict=True)]
    return [
        *rows,
        f"\np99 to idle's, round by round: {', '.join(f'{r:.1f}' for r in ratios)} (bar: 3). "
        f"Documents written meanwhile: {statistics.median(written):.0f}/s.",
    ]


if __name__ == "__main__":
    main()
