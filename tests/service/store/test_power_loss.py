"""The power fails at any moment: what was acknowledged is there, whatever else the disk forgot.

One process writes, backs up, restores and migrates while everything it does to its directory is recorded
(disk_recorder.c). From the record, directories are made as a disk may leave them when the power
fails at some point (disk.py), and a store is opened on each. A kill forgets nothing that was
written, so the tests with kills cannot see a missing sync; this one does, and the last test
shows that it does.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from mexma.errors import MexmaError

from . import disk
from .crash_worker import REPOSITORY, actions
from .disk import Disk, Survival
from .test_crash_steps import Model, check, small

SURVIVALS: list[Survival] = ["synced", "named", "lengths", "some", "all"]


__all__ = ["small"]  # a fixture, used by itself


@pytest.fixture(scope="module")
def recorder(tmp_path_factory) -> Path:
    return disk.build(tmp_path_factory.mktemp("recorder"))


def recorded(recorder: Path, root: Path, round_: int, *fault: str) -> Path:
    """Have a round's actions done; the record of it."""
    root.mkdir()
    log = root.with_suffix(".log")
    module = "tests.service.store.crash_worker"
    subprocess.run(
        [sys.executable, "-m", module, str(root), "acts", str(round_), *fault],
        cwd=REPOSITORY,
        env=disk.recording(recorder, root, log),
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return log


def expected(round_: int, acknowledged: int) -> tuple[Model, Model]:
    """What must be found after so many acknowledgements: that, or what was going on as well."""
    before = Model({}, {}, 0)
    history = list(islice(actions(round_), acknowledged + 1))
    for action in history[:-1]:
        before = before.after(action)
    return before, before.after(history[-1])


def failures(root: Path, log: Path, round_: int, moments: int, seed: int) -> Iterator[str]:
    """Cut the power at some moments, in each way; what is wrong with what is found."""
    choose, state = random.Random(seed), Disk(root)
    done = list(disk.records(log))
    first = next(n for n, record in enumerate(done) if record.first == b"open\n")
    # Half of them just after an acknowledgement, when everything must be there.
    marks = [n for n, r in enumerate(done) if r.kind == "m" and n >= first]
    chosen = {
        *choose.sample(marks, moments // 2),
        *choose.sample(range(first, len(done)), moments // 2),
    }
    for n, record in enumerate(done):
        state.do(record)
        if n not in chosen:
            continue
        before, after = expected(round_, len(state.marks) - 1)
        for survival in SURVIVALS:
            target = root.with_name(f"{n}-{survival}")
            state.survivors(target, survival, choose)
            try:
                check(target, before, after, finish=survival == "synced")
            except (AssertionError, MexmaError) as error:
                yield f"record {n} ({record.kind}), {survival}: {error!r}"[:500]
            shutil.rmtree(target)


def test_the_record_is_complete(tmp_path, recorder):
    """Everything replayed is what lies there: nothing went past the recorder."""
    root = tmp_path / "store"
    log = recorded(recorder, root, 1)
    state = Disk(root)
    for record in disk.records(log):
        state.do(record)
    assert state.marks == [b"open", *[b"."] * 200]
    state.survivors(tmp_path / "replayed", "all", random.Random(0))
    found, replayed = disk.tree(root), disk.tree(tmp_path / "replayed")
    assert found.keys() == replayed.keys()
    for path, content in found.items():
        assert replayed[path] == content, path
    assert sum(path.endswith("vectors.faiss") for path in found) > 1
    assert sum("snapshots" in path for path in found) > 10


@pytest.mark.parametrize("round_", [2, 3])
def test_what_was_acknowledged_survives_power_loss(tmp_path, recorder, round_):
    root = tmp_path / "store"
    log = recorded(recorder, root, round_)
    assert list(failures(root, log, round_, 24, seed=round_)) == []


def test_directories_forget_each_by_itself(tmp_path, recorder):
    """At every kind of moment at which names in several directories are not durable: the names in one
    have survived and those in the others have not, or the other way round."""
    root = tmp_path / "store"
    log = recorded(recorder, root, 2)
    choose, state, seen, wrong = random.Random(0), Disk(root), set(), []
    for n, record in enumerate(disk.records(log)):
        state.do(record)
        unsettled = state.unsettled() if record.kind in "odulr" and state.marks else {}
        kind = tuple(sorted(re.sub(r"[0-9a-f]{8}|[0-9]+", "#", path) for path in unsettled))
        if len(unsettled) < 2 or kind in seen:
            continue
        seen.add(kind)
        before, after = expected(2, len(state.marks) - 1)
        for path, alone in unsettled.items():
            for survives in (True, False):
                target = root.with_name(f"{n}-{len(wrong)}")
                state.survivors(
                    target,
                    "all",
                    choose,
                    lambda d, a=alone, s=survives: "all" if (d is a) == s else "synced",
                )
                try:
                    check(target, before, after, finish=False)
                except (AssertionError, MexmaError) as error:
                    wrong.append(
                        f"record {n}, {path} of {[*unsettled]} {survives}: {error!r}"[:500]
                    )
                shutil.rmtree(target)
    assert wrong == []
    assert any("" in kind for kind in seen), "the root itself was never one of them"


@pytest.mark.parametrize(
    "fault", ["databases not synced", "directories not synced", "files not synced"]
)
def test_a_missing_sync_is_noticed(tmp_path, recorder, fault):
    root = tmp_path / "store"
    log = recorded(recorder, root, 2, fault)
    assert next(failures(root, log, 2, 24, seed=2), None) is not None
