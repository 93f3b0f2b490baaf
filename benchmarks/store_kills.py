"""What is lost when the process that holds the data is killed while it acknowledges writes.

    python -m benchmarks.store_kills [--kills 40]

The embedded store and Milvus Lite (through our store over pymilvus, so both are asked the same) get
the same stream of upserts and deletes. SIGKILL falls at a random moment; then the store is opened
again, every document and vector is read, and compared with what had been acknowledged. Killed is
whoever holds the data: for the embedded store the process that writes, for Milvus Lite its server.

A kill does not show what a power cut would do, since what was handed to the kernel stays. So the
synchronisations with the disk are counted as well, per acknowledged write (needs strace).
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.circumstances import ROOT, circumstances, result_file
from mexma.errors import CollectionNotFound, StoreError
from service.store.local import LocalStore
from service.store.milvus.store import MilvusStore
from service.store.protocol import Document, Selection, Store
from tests.service.store.crash_worker import make_everything_small
from tests.service.store.milvus.server import MilvusServer

N_TRACED = 50
DIM, PRINT, IDS = 384, "encoder", 2_000
SMALL_MEMTABLE = {
    "MILVUS_LITE_MEMTABLE_MEMORY_LIMIT_BYTES": "1000000",
    "MILVUS_LITE_WAL_SIZE_LIMIT_BYTES": "1000000",
}

Write = tuple[dict[str, str], list[str]]
State = dict[str, str]


def vector_of(text: str) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(text.encode())).standard_normal(DIM).astype("f4")


def writes(seed: int) -> Iterator[Write]:
    """Endless: documents to write as id -> text, or else ids to delete."""
    choose = random.Random(seed)
    for n in itertools.count():
        ids = [f"d{i}" for i in choose.sample(range(IDS), choose.randint(1, 60))]
        if choose.random() < 0.25:
            yield {}, ids
        else:
            yield {id: f"{id} of write {n} of stream {seed} " + "x" * 400 for id in ids}, []


def applied(state: State, write: Write) -> State:
    put, gone = write
    return {id: text for id, text in {**state, **put}.items() if id not in gone}


def do(store: Store, write: Write) -> None:
    put, gone = write
    if put:
        documents = [Document(id, text, "en", {"text": text}) for id, text in put.items()]
        store.upsert("c", documents, np.array([vector_of(t) for t in put.values()]), PRINT)
    else:
        store.delete("c", gone)


def write_embedded(root: Path, seed: int, small: bool, limit: int | None) -> None:
    """The process that is killed: writes, and says so on stdout after each acknowledgement."""
    if small:
        make_everything_small()
    store = LocalStore(root, threads=1)
    store.create("c", DIM, PRINT)
    os.write(1, b"open\n")
    for write in itertools.islice(writes(seed), limit):
        do(store, write)
        os.write(1, b".\n")
    os._exit(0)  # as a kill: nothing is tidied up


class Embedded:
    """small: indexes, their snapshots and compaction happen in a collection of this size."""

    def __init__(self, root: Path, small: bool):
        self.root, self.small = root, small

    def killed_after(self, acknowledgements: int, delay_s: float, seed: int) -> int:
        """Write, kill; how many writes were acknowledged."""
        command = [sys.executable, "-m", "benchmarks.store_kills", "--write", str(self.root)]
        command += ["--seed", str(seed)] + (["--small"] if self.small else [])
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"open\n"
            for _ in range(acknowledgements):
                assert worker.stdout.readline()
            time.sleep(delay_s)
            worker.kill()
            return acknowledgements + worker.stdout.read().count(b"\n")

    def opened(self) -> Store:
        return LocalStore(self.root, threads=1)

    def closed(self, store: Store) -> None:
        store.close()


class MilvusLite:
    """environment: of the server."""

    def __init__(self, root: Path, environment: dict[str, str]):
        self.server = MilvusServer(root / "data", environment)

    def killed_after(self, acknowledgements: int, delay_s: float, seed: int) -> int:
        self.server.start()
        done, reached = 0, threading.Event()

        def kill() -> None:
            reached.wait()
            time.sleep(delay_s)
            self.server.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        with closing(MilvusStore(self.server.uri, timeout_s=60)) as store, suppress(StoreError):
            store.create("c", DIM, PRINT)
            for write in writes(seed):
                do(store, write)
                done += 1
                if done == acknowledgements:
                    reached.set()
        reached.set()
        killer.join()
        return done

    def opened(self) -> Store:
        self.server.start()
        return MilvusStore(self.server.uri, timeout_s=60)

    def closed(self, store: Store) -> None:
        store.close()
        self.server.kill()


def read(store: Store) -> tuple[State, int]:
    """All documents as id -> text, and how many do not belong to their vector or metadata."""
    state: State = {}
    wrong, cursor = 0, None
    while True:
        page = store.scroll("c", Selection(), 500, cursor, vectors=True)
        for document, vector in zip(page.documents, page.vectors, strict=True):
            wrong += document.id in state or document.metadata != {"text": document.text}
            wrong += not np.array_equal(vector, vector_of(document.text))
            state[document.id] = document.text
        if (cursor := page.cursor) is None:
            return state, wrong


def kill_and_compare(
    backend: Embedded | MilvusLite, state: State, seed: int, counts: Counter[str]
) -> State:
    """One kill: what was acknowledged is compared with what is there. Returns what is there."""
    choose = random.Random(seed)
    done = backend.killed_after(choose.randint(3, 40), choose.uniform(0, 0.05), seed)
    history = list(itertools.islice(writes(seed), done + 1))
    before = state
    for write in history[:-1]:
        before = applied(before, write)
        counts["written"] += len(write[0])
        counts["deleted"] += len(write[1])
    after = applied(before, history[-1])
    counts["kills"] += 1
    counts["acknowledged"] += done
    try:
        store = backend.opened()
    except (AssertionError, StoreError) as error:
        sys.exit(f"after {counts['kills']} kills it does not open: {error}")
    found: State = {}
    try:
        found, wrong = read(store)
        counts["wrong"] += wrong
        counts["miscounted"] += store.count("c", Selection()) != len(found)
    except CollectionNotFound:
        counts["collection lost"] += 1
    finally:
        backend.closed(store)
    touched = set(history[-1][0]) | set(history[-1][1])
    for id in before.keys() | found.keys():
        if id not in touched and found.get(id) != before.get(id):
            counts["resurrected" if id not in before else "lost"] += 1
        if id in touched and found.get(id) not in (before.get(id), after.get(id)):
            counts["resurrected" if id not in before else "lost"] += 1
    in_flight = {id: found.get(id) for id in touched}
    whole = in_flight in (
        {id: before.get(id) for id in touched},
        {id: after.get(id) for id in touched},
    )
    counts["torn"] += not whole
    return found


def synchronisations(folder: Path, n: int, run: Callable[[list[str], Path, int], None]) -> int:
    """Calls of fsync and fdatasync, under strace, while `run` has n writes acknowledged."""
    folder.mkdir(parents=True)
    log = folder / "strace"
    trace = ["strace", "-f", "-I2", "-qq", "-e", "trace=fsync,fdatasync", "-o", str(log)]
    run(trace, folder / "data", n)
    return sum("sync(" in line for line in log.read_text().splitlines())


def write_embedded_traced(trace: list[str], root: Path, n: int) -> None:
    command = [*trace, sys.executable, "-m", "benchmarks.store_kills", "--write", str(root)]
    command += ["--seed", "1", "--limit", str(n)]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


def write_milvus_traced(trace: list[str], root: Path, n: int) -> None:
    server = MilvusServer(root, prefix=trace)
    server.start()
    with closing(MilvusStore(server.uri, timeout_s=60)) as store:
        store.create("c", DIM, PRINT)
        for write in itertools.islice(writes(1), n):
            do(store, write)
    server.stop_tracing()
    server.kill()


COLUMNS = {
    "kills": "kills",
    "acknowledged": "writes acknowledged",
    "written": "documents in them",
    "deleted": "deletes in them",
    "lost": "documents lost or old",
    "resurrected": "deleted ones back",
    "torn": "unacknowledged writes there in part",
    "wrong": "documents damaged",
    "miscounted": "counts that differ",
    "collection lost": "collections lost",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    if options.write:
        write_embedded(options.write, options.seed, options.small, options.limit)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        backends: dict[str, Embedded | MilvusLite] = {
            "embedded": Embedded(root / "embedded", small=False),
            "embedded, everything small": Embedded(root / "small", small=True),
            "Milvus Lite": MilvusLite(root / "lite", {}),
            "Milvus Lite, 1 MB memtable": MilvusLite(root / "lite-small", SMALL_MEMTABLE),
        }
        counts: dict[str, Counter[str]] = {name: Counter() for name in backends}
        states: dict[str, State] = {name: {} for name in backends}
        for seed in tqdm(range(options.kills), unit=" rounds"):
            for name, backend in backends.items():
                states[name] = kill_and_compare(backend, states[name], seed, counts[name])
        runs = {"embedded": write_embedded_traced, "Milvus Lite": write_milvus_traced}
        syncs = {
            name: [synchronisations(root / name / f"{n}", n, run) for n in (N_TRACED, 3 * N_TRACED)]
            for name, run in runs.items()
        }
    rows = [f"| | {' | '.join(counts)} |", "|---|" + "---|" * len(counts)]
    for key, title in COLUMNS.items():
        rows.append(f"| {title} | {' | '.join(str(c[key]) for c in counts.values())} |")
    for name, (few, many) in syncs.items():
        more = 2 * N_TRACED
        rows += [
            "",
            f"{name}: {many - few} synchronisations with the disk in {more} acknowledged writes.",
        ]
    made = circumstances("milvus-lite", "pymilvus", "faiss-cpu")
    text = f"# Kills\n\n`python -m benchmarks.store_kills --kills {options.kills}`. {made}\n\n"
    result_file("store_kills").write_text(text + "\n".join(rows) + "\n", encoding="utf-8")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
