"""The process that `test_crash` kills: it writes, and says on stdout what was acknowledged.

    python -m tests.service.store.crash_worker ROOT documents|collections ROUND

A document's vector follows from its text, so that whoever finds it can tell whether they belong
together. The writes of a round follow from its number, so that the test knows them too.
"""

from __future__ import annotations

import random
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from service.store.local import LocalStore
from service.store.protocol import Document

REPOSITORY = Path(__file__).parents[3]
DIM = 8
PRINT = "encoder"


def vector_of(text: str) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(text.encode())).standard_normal(DIM).astype("f4")


def writes(round_: int) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Endless: documents to write as id -> text, or else ids to delete."""
    choose = random.Random(round_)
    for n in range(10**9):
        ids = [f"d{i}" for i in choose.sample(range(300), choose.randint(1, 60))]
        if choose.random() < 0.25:
            yield {}, ids
        else:
            yield {id: f"{id} of write {n} in round {round_}" for id in ids}, []


def main(root: Path, what: str, round_: int) -> None:
    store = LocalStore(root, threads=1)
    print("open", flush=True)
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
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
