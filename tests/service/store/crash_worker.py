"""The process that `test_crash` kills: it writes, and says on stdout what was acknowledged.

    python -m tests.service.store.crash_worker ROOT documents|collections|together ROUND
    python -m tests.service.store.crash_worker ROOT steps
    python -m tests.service.store.crash_worker ROOT acts ROUND [FAULT]
    python -m tests.service.store.crash_worker ROOT full BYTES

A document's vector follows from its text, so that whoever finds it can tell whether they belong
together. The writes of a round follow from its number, so that the test knows them too.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import stat
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from mexma.errors import StoreFailed
from service.store import approximate, caretaker, database, index, pair, planner, steps
from service.store.local import LocalStore
from service.store.moving import Embedded
from service.store.protocol import Document, Query

REPOSITORY = Path(__file__).parents[3]
DIM = 8
PRINT = "encoder"
NEW, NEW_DIM = "encoder-b", 12


def vector_of(text: str, dim: int = DIM) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(text.encode())).standard_normal(dim).astype("f4")


def writes(round_: int) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Endless: documents to write as id -> text, or else ids to delete."""
    choose = random.Random(round_)
    for n in range(10**9):
        ids = [f"d{i}" for i in choose.sample(range(300), choose.randint(1, 60))]
        if choose.random() < 0.25:
            yield {}, ids
        else:
            yield {id: f"{id} of write {n} in round {round_}" for id in ids}, []


def by(fingerprint: str, texts: Sequence[str]) -> np.ndarray:
    """What each of two encoders makes of texts: another dim, and nothing like the other's."""
    if fingerprint == PRINT:
        return np.array([vector_of(t) for t in texts], np.float32).reshape(-1, DIM)
    return np.array([vector_of(f"b: {t}", NEW_DIM) for t in texts], np.float32).reshape(-1, NEW_DIM)


def embed_by(fingerprint: str) -> Callable[[Sequence[str]], Embedded]:
    return lambda texts: Embedded(by(fingerprint, texts), {})


def migrate(store: LocalStore, choose: random.Random) -> None:
    """One more step of moving "c" to the other encoder, back, or to an end."""
    migrations = store.migrations
    if "c" not in migrations.names():
        other, dim = (NEW, NEW_DIM) if store.describe("c").fingerprint == PRINT else (PRINT, DIM)
        migrations.begin("c", dim, other)
        return
    info = migrations.describe("c")
    weights = [2, 2, 3] if info.phase == "cut_over" else [4, 4, 1]
    what = choose.choices(["follow", "change over", "end"], weights)[0]
    if what == "follow":
        for _ in range(choose.randint(1, 4)):
            rows = migrations.work("c", 60)
            embedded = embed_by(info.other)([row.text for row in rows])
            migrations.take("c", info.other, rows, embedded)
    elif what == "end":
        (migrations.retire if info.phase == "cut_over" else migrations.abandon)("c")
    else:
        change = migrations.roll_back if info.phase == "cut_over" else migrations.cut_over
        change("c", embed_by(info.other))


Action = tuple[str, dict[str, str], list[str]]
"""What is done, with documents to write as id -> text and ids to delete."""


def actions(round_: int) -> Iterator[Action]:
    """Endless: writes, migrations, and now and then a backup, a restore, or a rest for the builder."""
    choose, written = random.Random(round_), writes(round_)
    backed_up = False
    while True:
        kinds = ["write", "migrate", "backup", "restore", "settle"]
        what = choose.choices(kinds, [8, 8, 1, 1, 2])[0]
        if what == "write":
            yield what, *next(written)
        elif what != "restore" or backed_up:
            backed_up |= what == "backup"
            yield what, {}, []


def act(root: Path, round_: int, most: int = 200) -> None:
    """Do so many of a round's actions, each acknowledged by a byte on stdout."""
    store, backup, choose = LocalStore(root, threads=1), "", random.Random(round_)
    if not store.list():
        store.create("c", DIM, PRINT)
    os.write(1, b"open\n")
    for what, put, gone in islice(actions(round_), most):
        if what == "backup":
            backup = store.back_up("c").id
        elif what == "restore":
            store.restore("c", backup)
        elif what == "settle":
            store.settle()
        elif what == "migrate":
            migrate(store, choose)
        elif put:
            documents = [Document(id, text, "en", {"text": text}) for id, text in put.items()]
            fingerprint = store.describe("c").fingerprint
            store.upsert("c", documents, by(fingerprint, [*put.values()]), fingerprint)
        else:
            store.delete("c", gone)
        os.write(1, b".\n")


def killer(step: str, times: int) -> Callable[[str], None]:
    """An observer of steps that ends the process when it sees `step` for the `times`th time."""
    seen: list[str] = []

    def observer(reached: str) -> None:
        if reached == step:
            seen.append(reached)
            if len(seen) == times:
                os.kill(os.getpid(), signal.SIGKILL)

    return observer


def serve(root: Path) -> None:
    """Fork a child for each line, so that hundreds of kills do not import hundreds of times."""
    make_everything_small()
    for line in sys.stdin:
        round_, times, step = line.strip().split(" ", 2)
        if (child := os.fork()) == 0:
            try:
                steps.observer = killer(step, int(times))
                act(root, int(round_), 1000)  # rare steps may be long in coming
                os._exit(0)
            finally:  # an exception must not reach the parent's loop
                traceback.print_exc()
                os._exit(1)
        _, status = os.waitpid(child, 0)
        ended = f"exit {os.waitstatus_to_exitcode(status)}"
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        os.write(1, f"{'killed' if killed else ended}\n".encode())


def disturb(fault: str) -> None:
    """Leave out something that makes writes durable, so that a test can be seen to notice."""
    fsync = os.fsync

    def unless(unwanted: Callable[[int], bool]) -> None:
        os.fsync = lambda fd: None if unwanted(os.fstat(fd).st_mode) else fsync(fd)

    if fault == "databases not synced":
        connect = database._connect

        def careless(path: Path, mode: str) -> sqlite3.Connection:
            connection = connect(path, mode)
            connection.execute("PRAGMA synchronous = OFF")
            return connection

        database._connect = careless
    elif fault == "directories not synced":
        unless(stat.S_ISDIR)
    elif fault == "files not synced":
        unless(stat.S_ISREG)
    else:
        raise ValueError(fault)


def fill_until_full(root: Path, limit_bytes: int) -> None:
    """Write, build and back up under a limit on the size of files; say what was acknowledged."""
    make_everything_small()
    store = LocalStore(root, threads=1)
    store.create("c", DIM, PRINT)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))
    failed = 0
    for n in range(400):
        text = f"text {n}"
        document = Document(f"d{n}", text, "en", {"text": text, "padding": "x" * 500})
        try:
            if n % 20 == 7:
                store.back_up("c")
            store.upsert("c", [document], vector_of(text)[None], PRINT)
            print(n, flush=True)
        except StoreFailed:
            failed += 1
            [[hit]] = store.search("c", vector_of("text 0")[None], Query(k=1), PRINT)
            assert hit.id == "d0", "reading goes on"
            if failed == 5:
                break
    store.settle()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    store.upsert("c", [Document("last", "text", "en")], vector_of("text")[None], PRINT)
    print("room again" if failed else "never full", flush=True)
    os._exit(0)  # as a kill: nothing is tidied up


def make_everything_small() -> None:
    """Compaction, indexes, tails and generations happen in a collection of 300 rows."""
    index.BLOCK_ROWS, index.COMPACT_ABOVE_DEAD = 64, 60
    planner.EXACT_ROWS, planner.EXACT_FETCH = 40, 10**9
    caretaker.TAIL_ROWS, caretaker.SAVE_SHARE = 40, 0
    approximate.ADD_ROWS = 50
    pair.HELD_ROWS = 1_000


def write_together(store: LocalStore, round_: int) -> None:
    """Eight callers at once, whose writes share commits; each says what was acknowledged to it."""

    def write(caller: int) -> None:
        for n in range(10**9):
            texts = [f"{caller} wrote {n} in round {round_}"] * 5
            documents = [
                Document(f"c{caller}d{i}", t, "en", {"text": t}) for i, t in enumerate(texts)
            ]
            store.upsert("c", documents, np.array([vector_of(t) for t in texts]), PRINT)
            os.write(1, f"{caller} {n}\n".encode())

    store.create("c", DIM, PRINT)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))


def main(root: Path, what: str, round_: int) -> None:
    store = LocalStore(root, threads=1)
    print("open", flush=True)
    if what == "together":
        write_together(store, round_)
    if what == "documents":
        store.create("c", DIM, PRINT)
        for n, (put, gone) in enumerate(writes(round_)):
            if put:
                documents = [Document(id, text, "en", {"text": text}) for id, text in put.items()]
                store.upsert("c", documents, np.array([vector_of(t) for t in put.values()]), PRINT)
            else:
                store.delete("c", gone)
            print(n, flush=True)
    for n in range(10**9):
        name = f"c{n % 3}"
        store.create(name, DIM, PRINT)
        store.upsert(name, [Document("a", "a", "en")], vector_of("a")[None], PRINT)
        print("+", name, flush=True)
        store.drop(name)
        print("-", name, flush=True)


if __name__ == "__main__":
    if sys.argv[2] == "acts":
        make_everything_small()
        for fault in sys.argv[4:]:
            disturb(fault)
        act(Path(sys.argv[1]), int(sys.argv[3]))
        os._exit(0)  # as a kill: nothing is tidied up
    elif sys.argv[2] == "full":
        fill_until_full(Path(sys.argv[1]), int(sys.argv[3]))
    elif sys.argv[2] == "steps":
        serve(Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
