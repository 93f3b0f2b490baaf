"""SIGKILL in the midst of writing: what was acknowledged is there, and nothing is by half."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from service.store.local import LocalStore
from service.store.protocol import Query

from .crash_worker import PRINT, REPOSITORY, vector_of, writes


def killed_after(acknowledgements: int, root: Path, what: str, round_: int) -> list[str]:
    """Run the worker, kill it once it has said so many lines; all lines that it said."""
    command = [sys.executable, "-m", "tests.service.store.crash_worker", str(root), what]
    worker = subprocess.Popen(
        [*command, str(round_)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    with worker, worker.stdout as said:
        assert said.readline() == "open\n"
        lines = list(islice(said, acknowledgements))
        worker.send_signal(signal.SIGKILL)
        # The worker has written on while these were read; what is in the pipe was said too.
        lines += [line for line in said if line.endswith("\n")]
    assert worker.returncode == -signal.SIGKILL
    return [line.strip() for line in lines]


def applied(state: dict[str, str], write: tuple[dict[str, str], list[str]]) -> dict[str, str]:
    put, gone = write
    return {id: text for id, text in {**state, **put}.items() if id not in gone}


def test_acknowledged_documents_survive_whole(tmp_path):
    state: dict[str, str] = {}
    choose = random.Random(11)
    for round_ in range(8):
        said = killed_after(choose.randint(1, 60), tmp_path, "documents", round_)
        history = list(islice(writes(round_), len(said) + 1))
        for write in history[:-1]:
            state = applied(state, write)
        in_flight = applied(state, history[-1])
        store = LocalStore(tmp_path, threads=1)
        count = store.describe("c").count
        asked = np.array([[1.0, *[0.0] * 7]], np.float32)
        found = {hit.id: hit for hit in store.search("c", asked, Query(k=300), PRINT)[0]}
        texts = {id: store.get("c", id).text for id in found}
        assert len(texts) == count
        assert texts in (state, in_flight), "the write in flight happened whole or not at all"
        for id, hit in found.items():
            unit = vector_of(texts[id]) / np.linalg.norm(vector_of(texts[id]))
            assert hit.text == hit.metadata["text"] == texts[id]
            assert hit.cosine == pytest.approx(float(unit[0]), abs=1e-6)
        state = texts
        store.close()
    assert state


def test_writes_that_share_a_commit_survive_each_as_a_whole(tmp_path):
    choose, last = random.Random(13), {}
    for round_ in range(6):
        said = killed_after(choose.randint(20, 200), tmp_path, "together", round_)
        acknowledged = dict.fromkeys(range(8), -1)
        for line in said:
            caller, n = map(int, line.split())
            acknowledged[caller] = n
        store = LocalStore(tmp_path, threads=1)
        for caller, n in acknowledged.items():
            if n < 0 and caller not in last:
                continue  # killed before its first answer
            found = [store.get("c", f"c{caller}d{i}").text for i in range(5)]
            assert len(set(found)) == 1, "a write happened whole or not at all"
            before = f"{caller} wrote {n} in round {round_}" if n >= 0 else last.get(caller)
            assert found[0] in (before, f"{caller} wrote {n + 1} in round {round_}")
            last[caller] = found[0]
            [[hit, *_]] = store.search("c", vector_of(found[0])[None], Query(k=5), PRINT)
            assert hit.text == found[0]
        assert len(last) > 1, "several shared a store"
        assert store.describe("c").count % 5 == 0
        store.close()


def test_collections_are_created_and_dropped_whole(tmp_path):
    choose = random.Random(12)
    for round_ in range(4):
        said = killed_after(choose.randint(1, 40), tmp_path, "collections", round_)
        alive = {line.split()[1] for line in said[-1:] if line.startswith("+")}
        store = LocalStore(tmp_path, threads=1)
        infos = store.list()
        # Beside what was acknowledged, at most the one that was being made or dropped.
        assert len({info.name for info in infos} ^ alive) <= 1
        assert all(info.index_state == "exact" and info.count <= 1 for info in infos)
        assert len(list(tmp_path.iterdir())) == 1 + len(infos), "the lock and nothing left over"
        for info in infos:
            store.drop(info.name)
        store.close()
