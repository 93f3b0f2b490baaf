"""Processes that prepare batches: the same batches, and nobody outlives anybody."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.conftest import ROOT
from tests.training.test_batches import batches, corpus_of, grouped
from tests.training.test_stopping import HEARD, environment
from training import loop
from training.__main__ import main
from training.batches import Batches, Step
from training.corpus import Corpus
from training.errors import DataError
from training.runlog import read_rows
from training.workers import MOST, workers_for

SETTINGS = ("batch_pairs=16", "bucket_batches=2", "accumulate=3", "pairs=512")  # 16 buckets


def workers_of(trainer: int) -> list[int]:
    """The processes that prepare batches for it, living or not yet waited for."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        if folder.name.isdigit() and int(parent) == trainer and b"training.workers" in command:
            found.append(int(folder.name))
    return found


def content(step: Step) -> list[object]:
    """All there is in a step, in plain values."""
    rows: list[object] = [step.chosen, step.pairs]
    for b in step.batches:
        assert b.masked is not None
        tensors = [b.clean.ids, b.clean.bounds, b.masked.ids, b.chosen, b.truths, b.keys]
        rows += [b.sample_ids, b.step, *[t.tolist() for t in tensors]]
    return rows


def read(b: Batches, first: int = 0, workers: int = 0) -> list[list[object]]:
    return [content(step) for step in b.read(first, workers)]


@pytest.mark.parametrize("world", [1, 2])
def test_the_same_steps_whoever_prepares_them(tmp_path, world):
    corpus = corpus_of({"de": 100, "fr": 28})
    topics = np.random.default_rng(1).permutation(128) % 32

    def made(rank: int) -> Batches:
        return grouped(corpus, topics, tmp_path, *SETTINGS, rank=rank, world=world)

    for rank in range(world):
        whole = read(made(rank))
        assert len(whole) == 11
        assert read(made(rank), workers=2) == whole
        assert read(made(rank), 5, workers=2) == whole[5:], "resumed within a bucket"
        b = made(rank)
        with_processes = b.read(0, 2)
        assert content(next(with_processes)) == whole[0]
        assert len(workers_of(os.getpid())) == 2
        with_processes.close()
        assert read(b, 1) == whole[1:], "and without them"
    assert workers_of(os.getpid()) == []


def test_texts_that_hold_nothing_are_replaced_and_refused_alike():
    texts = [f"satz {i}" for i in range(64)]
    some = [*texts[:7], "", *texts[8:]]
    english = pa.array([f"en {i}" for i in range(64)], pa.large_string())
    made = []
    for workers in (0, 2):
        b = batches(
            *SETTINGS,
            corpus=Corpus(
                pa.array(some, pa.large_string()), english, np.zeros(64, np.int32), ("de",)
            ),
        )
        made.append((read(b, workers=workers), b.unusable))
    assert made[0] == made[1]
    assert made[0][1] == {7}
    nothing = Corpus(
        pa.array([""] * 64, pa.large_string()), english, np.zeros(64, np.int32), ("de",)
    )
    with pytest.raises(DataError, match="no text in a whole bucket"):
        read(batches(*SETTINGS, corpus=nothing), workers=2)


def test_what_lies_where_one_stands_is_not_run(tmp_path, monkeypatch):
    """Somebody's own directory `training`, with their data and whatever code."""
    (tmp_path / "training").mkdir()
    (tmp_path / "training/__init__.py").write_text("raise SystemExit('not this')")
    b, whole = batches(*SETTINGS), read(batches(*SETTINGS))
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    monkeypatch.chdir(tmp_path)
    assert read(b, workers=1) == whole


def test_a_worker_has_no_torch_to_import():
    script = "import training.workers, sys; print({'torch', 'pyarrow'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_a_worker_that_dies_ends_the_run_in_one_sentence_and_saved(tmp_path, monkeypatch, capfd):
    honest, killed = loop.set_rate, []

    def kill(*arguments):
        if not killed:
            killed.extend(workers_of(os.getpid()))
            for worker in killed:
                os.kill(worker, signal.SIGKILL)
        return honest(*arguments)

    few = ["bucket_batches=1", "pairs=320", "save_every=100"]  # 20 buckets, 10 steps
    out = tmp_path / "run"
    monkeypatch.setattr(loop, "set_rate", kill)
    assert main(["tiny_cpu", *few, "workers=2", "--out", str(out)]) == 1
    assert len(killed) == 2
    assert workers_of(os.getpid()) == []
    error = capfd.readouterr().err
    assert "Traceback" not in error
    last = error.splitlines()[-1]
    steps = [row["step"] for row in read_rows(out) if row["kind"] == "step"]
    assert re.fullmatch(
        r"mexma-train: process \d+, which prepared batches, was ended by SIGKILL \(is memory short\?\); "
        rf"the run is saved after step {steps[-1]} of 10, and `mexma-train resume --out {out}` goes on .*",
        last,
    ), last
    assert (out / f"checkpoints/step-{steps[-1]:08d}").is_dir()
    assert steps[-1] < 10


def test_what_a_lost_worker_should_have_made_is_made_and_its_end_told(monkeypatch):
    whole = read(batches(*SETTINGS))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    b = batches(*SETTINGS)
    assert read(b, workers=1) == whole
    assert re.fullmatch(r"process \d+, which .*, was ended with status 1 \(is .*", str(b.lost))


@pytest.mark.parametrize("sent", ["SIGKILL", "SIGINT", "SIGINT twice"])
def test_no_process_is_left_behind(tmp_path, sent):
    """Their stderr is the trainer's: it ends when the last of them has."""
    out = tmp_path / "run"
    script = HEARD + "import runpy; runpy.run_module('training', run_name='__main__')"
    settings = ["pairs=320000", "save_every=500", "keep_last=1", "workers=2"]
    process = subprocess.Popen(
        [sys.executable, "-c", script, "tiny_cpu", *settings, "--out", str(out)],
        cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while not any(row["kind"] == "step" for row in read_rows(out)):
        assert process.poll() is None, process.communicate()[1]
    workers = workers_of(process.pid)
    assert len(workers) == 2
    for _ in range(2 if "twice" in sent else 1):
        # To all of its group, as a terminal does.
        os.killpg(process.pid, signal.Signals[sent.split()[0]])
    error = process.communicate(timeout=60)[1]
    assert process.returncode == (-9 if sent == "SIGKILL" else 130)
    assert "Traceback" not in error
    if sent == "SIGINT":
        assert "goes on from there" in error.splitlines()[-1]


def test_how_many_there_are_where_nobody_said(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert [workers_for("cpu", n) for n in (-1, 0, 3)] == [0, 0, 3]
    for cores, ranks, expected in ((16, "1", MOST), (16, "4", 3), (16, "8", 1), (1, "1", 0)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: set(range(n)))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert workers_for("cuda", -1) == expected
        assert [workers_for("cuda", n) for n in (0, 9)] == [0, 9]
