"""Acknowledged writes a second to one collection: one caller, and many at once.

    python -m benchmarks.store_writes [--folder FOLDER]

Every write is one HTTP-sized request (1 or 10 documents of 384 components), and is counted when
the store has answered, which it does after the disk has. The folder must be on the disk that is
to be measured; /dev/shm would measure nothing. Beside it stands the disk's own limit: the same
bytes appended to a file and synced, one after the other.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.circumstances import circumstances
from service.store.local import LocalStore
from service.store.protocol import Document

DIM, SECONDS, ROUNDS = 384, 2.0, 3
CALLERS = (1, 4, 16, 64)
PER_WRITE = (1, 10)


def writes_per_second(root: Path, callers: int, per_write: int) -> float:
    """Acknowledged writes a second by `callers` threads of one store."""
    store = LocalStore(root)
    store.create("c", DIM, "encoder")
    vectors = np.random.default_rng(0).standard_normal((per_write, DIM)).astype(np.float32)
    end = time.perf_counter() + SECONDS

    def write(caller: int) -> int:
        done = 0
        while time.perf_counter() < end:
            documents = [
                Document(f"{caller} {done} {i}", "A sentence of some length.", "en", {"n": done})
                for i in range(per_write)
            ]
            assert store.upsert("c", documents, vectors, "encoder") == ["created"] * per_write
            done += 1
        return done

    began = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        total = sum(pool.map(write, range(callers)))
    took = time.perf_counter() - began
    assert store.describe("c").count == total * per_write, "as many as were acknowledged"
    store.close()
    return total / took


def syncs_per_second(root: Path, bytes_: int) -> float:
    """Appends of `bytes_` to one file, each synced."""
    done, end = 0, time.perf_counter() + SECONDS
    with (root / "file").open("wb", buffering=0) as file:
        while time.perf_counter() < end:
            file.write(bytes(bytes_))
            os.fdatasync(file.fileno())
            done += 1
    return done / SECONDS


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure")
    folder = arguments.parse_args().folder
    cases = [(callers, n) for n in PER_WRITE for callers in CALLERS]
    found: dict[tuple[int, int], list[float]] = {case: [] for case in cases}
    limits: list[float] = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(dir=folder) as root:
            limits.append(syncs_per_second(Path(root), 8_192))
        for case in cases:
            with tempfile.TemporaryDirectory(dir=folder) as root:
                found[case].append(writes_per_second(Path(root) / "store", *case))
    print(circumstances("numpy"))
    print(f"\nSynced appends of 8 KiB: {statistics.median(limits):.0f}/s\n")
    print("| callers | documents a write | writes/s | documents/s |\n|---:|---:|---:|---:|")
    for (callers, n), rates in found.items():
        rate = statistics.median(rates)
        print(f"| {callers} | {n} | {rate:.0f} | {rate * n:.0f} |")


if __name__ == "__main__":
    main()
