"""SIGKILL at every named step: what was acknowledged is there, nothing is by half, nothing is empty."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from service.store import backups
from service.store.local import LocalStore
from service.store.protocol import Query, Selection
from service.store.steps import STEPS, reached

from . import crash_worker
from .crash_worker import REPOSITORY, actions, by, embed_by
from .test_crash import applied

KILLS_PER_STEP = 8


class Model(NamedTuple):
    """What is to be found: the documents, and those of the round's last backup."""

    state: dict[str, str]
    saved: dict[str, str]
    backups: int

    def after(self, action: crash_worker.Action) -> Model:
        what, *write = action
        if what == "backup":
            return Model(self.state, self.state, self.backups + 1)
        if what == "restore":
            return self._replace(state=self.saved)
        return self._replace(state=applied(self.state, tuple(write)))


@contextmanager
def worker(root: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.service.store.crash_worker", str(root), "steps"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.stdin.close()
        assert process.wait(60) == 0


def killed_at(process: subprocess.Popen[str], round_: int, times: int, step: str) -> list[str]:
    """Have a child run until it is killed; the lines it said, the last one how it ended."""
    process.stdin.write(f"{round_} {times} {step}\n")
    process.stdin.flush()
    said = []
    while not said or said[-1].split()[0] not in ("killed", "exit"):
        line = process.stdout.readline()
        assert line, "the worker itself ended"
        said.append(line.strip())
    return said


def check_vectors(store: LocalStore) -> dict[str, str]:
    """Each document has the vector of the encoder that serves, stored and searched; the texts."""
    fingerprint = store.describe("c").fingerprint
    page = store.scroll("c", Selection(), 1_000, vectors=True)
    texts = {d.id: d.text for d in page.documents}
    assert [d.metadata for d in page.documents] == [{"text": d.text} for d in page.documents]
    np.testing.assert_array_equal(page.vectors, by(fingerprint, [d.text for d in page.documents]))
    store.settle()
    asked = np.eye(1, page.vectors.shape[1], dtype=np.float32)
    for exact in (False, True):
        [hits] = store.search("c", asked, Query(k=20, exact=exact), fingerprint)
        assert len(hits) == min(20, len(texts))
        for hit in hits:
            [vector] = by(fingerprint, [texts[hit.id]])
            assert hit.text == texts[hit.id]
            assert hit.cosine == pytest.approx(float(vector[0] / np.linalg.norm(vector)), abs=1e-6)
    return texts


def check(root: Path, expected: Model, in_flight: Model, *, finish: bool) -> Model:
    """Open what the kill left. Returns what was found, which is one of the two expected.

    finish: a migration that the kill interrupted is gone through with, and back.
    """
    store = LocalStore(root, threads=1)
    info = store.describe("c")
    assert info.index_state in ("exact", "building", "approximate")
    texts = check_vectors(store)
    assert texts in (expected.state, in_flight.state), "whole or not at all"
    assert info.count == len(texts)
    beside = "c" in store.migrations.names()
    if beside and finish:
        # What is beside can be completed, serves the same documents, and so does the way back.
        for _ in range(2):
            moved = store.migrations.describe("c")
            change = (
                store.migrations.roll_back
                if moved.phase == "cut_over"
                else store.migrations.cut_over
            )
            change("c", embed_by(moved.other))
            assert check_vectors(store) == texts
    kept = store.backups("c")
    assert expected.backups <= len(kept) <= in_flight.backups
    store.close()
    assert len(list(root.glob("c.*"))) == 1 + beside, "one folder of the name, or one per encoder"
    assert not [p for p in root.rglob(".*-*") if "/index/" not in str(p)], "nothing half made"
    folders = {path.name for path in (root / "snapshots" / "c").glob("*")}
    assert folders == {backup.id for backup in kept}, "whole or not there"
    for backup in kept[-2:]:
        folder = root / "snapshots" / "c" / backup.id
        assert backups.verify(folder) == backup
    return Model(texts, {}, len(kept))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """What the worker makes small, the store that looks afterwards has small too."""
    for module, name in (
        (crash_worker.index, "BLOCK_ROWS"),
        (crash_worker.index, "COMPACT_ABOVE_DEAD"),
        (crash_worker.planner, "EXACT_ROWS"),
        (crash_worker.planner, "EXACT_FETCH"),
        (crash_worker.caretaker, "TAIL_ROWS"),
        (crash_worker.caretaker, "SAVE_SHARE"),
        (crash_worker.approximate, "ADD_ROWS"),
        (crash_worker.pair, "HELD_ROWS"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))
    crash_worker.make_everything_small()


def test_a_kill_at_any_step_loses_nothing_that_was_acknowledged(tmp_path):
    """One store through all of it: each round goes on from what the one before left behind."""
    choose, found = random.Random(5), Model({}, {}, 0)
    order = sorted(STEPS) * KILLS_PER_STEP
    choose.shuffle(order)
    with worker(tmp_path) as process:
        for round_, step in enumerate(order):
            often = step.startswith("write")
            said = killed_at(process, round_, choose.randint(1, 12 if often else 2), step)
            assert said[0] == "open", f"{step}: {said}"
            assert said[-1] == "killed", f"{step} was not reached in round {round_}: {said[-1]}"
            expected = found
            history = list(islice(actions(round_), len(said) - 1))
            for action in history[:-1]:
                expected = expected.after(action)
            finish = choose.random() < 0.5
            found = check(tmp_path, expected, expected.after(history[-1]), finish=finish)
    assert found.backups > 10


def test_a_step_that_is_not_listed_cannot_be_reached():
    with pytest.raises(KeyError, match="among the steps"):
        reached("write: half done")


@pytest.mark.parametrize("limit_bytes", [40_000, 150_000, 300_000])
def test_a_full_disk_fails_writes_and_loses_none(tmp_path, limit_bytes):
    """A limit on the size of files, as the operating system enforces it: write-ahead log, database,
    index and backup meet it in turn. What was acknowledged is there; what failed is not."""
    command = [sys.executable, "-m", "tests.service.store.crash_worker", str(tmp_path), "full"]
    done = subprocess.run(
        [*command, str(limit_bytes)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    *acknowledged, end = done.stdout.splitlines()
    assert end == "room again", done.stderr
    store = LocalStore(tmp_path, threads=1)
    found = {d.id: d for d in store.scroll("c", Selection(), 1_000).documents}
    assert found.keys() == {f"d{n}" for n in acknowledged} | {"last"}
    for n in acknowledged:
        assert found[f"d{n}"].text == f"text {n}"
        assert store.get("c", f"d{n}").metadata["text"] == f"text {n}"
    store.settle()
    for backup in store.backups("c"):
        backups.verify(tmp_path / "snapshots" / "c" / backup.id)
    store.close()
    assert not [p for p in tmp_path.rglob(".*-*") if "/index/" not in str(p)]
