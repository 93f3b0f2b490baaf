"""The two-rank proof: two gloo processes train what one trains.

    pytest tests/training/test_ranks.py

Which pairs and masks each rank sees is compared in `test_batches.py`, to the bit; here it is the
losses and weights that come out, which differ by the order of sums only.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, free_port
from tests.training.two_ranks import recipe
from training.batches import Batches
from training.corpus import open_corpus
from training.loop import open_backbone, train
from training.masking import Vocabulary
from training.ranks import Ranks
from training.runlog import read_rows

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
ENVIRONMENT["PYTHONFAULTHANDLER"] = "1"  # a process that crashes says where


def on_two_ranks(*arguments: str) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return [*command, "--master-port", str(free_port()), "-m", *arguments]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    command = on_two_ranks("tests.training.two_ranks", str(folder))
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    train(recipe("alike=4"), folder / "one", Ranks(0, 1, torch.device("cpu")), quiet=True)
    return folder


@pytest.mark.parametrize("kind", ["ddp", "sharded"])
def test_two_ranks_train_what_one_trains(runs, kind):
    rows = {
        name: [r for r in read_rows(runs / name) if r["kind"] == "step"] for name in ("one", kind)
    }
    assert len(rows["one"]) == len(rows[kind]) == 6
    for one, two in zip(rows["one"], rows[kind], strict=True):
        for name in ("loss", "unmasking", "alignment", "koleo", "contrastive", "norm"):
            assert two[name] == pytest.approx(one[name], rel=2e-4), (one["step"], name)
    a, b = (load_file(runs / n / "final" / "model.safetensors") for n in ("one", kind))
    for name, tensor in a.items():
        # AdamW divides by the gradient's size: where that is next to nothing, a rounding
        # difference moves a weight by up to a step. So all but a few are held to 1e-4.
        apart = (tensor - b[name]).abs()
        assert apart.mean() < 1e-4, name
        assert apart.max() < 5e-3, name


def test_one_rank_that_is_asked_to_stop_stops_both_after_the_same_step(runs):
    said = [json.loads((runs / f"stopped-{rank}.json").read_text()) for rank in (0, 1)]
    assert said[0] == said[1]
    assert said[0].startswith("stopped by SIGTERM after step 4 of 6; `mexma-train resume --out ")
    a, b = (load_file(runs / n / "final" / "model.safetensors") for n in ("ddp", "stopped"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_lost_process_of_one_rank_ends_both_after_the_same_step(runs):
    said = [json.loads((runs / f"lost-{rank}.json").read_text()) for rank in (0, 1)]
    assert said[0] == said[1]
    assert "was ended by SIGKILL" in said[0]
    [step] = re.findall(r"the run is saved after step (\d+) of 6", said[0])
    assert (runs / f"lost/checkpoints/step-{int(step):08d}").is_dir()


def test_what_one_rank_cannot_read_ends_both(runs):
    said = [json.loads((runs / f"blind-{rank}.json").read_text()) for rank in (0, 1)]
    assert said == ["is not on this machine"] * 2


def test_a_loss_that_is_no_number_on_one_rank_stops_both_and_names_the_batch(runs):
    errors = [json.loads((runs / f"error-{rank}.json").read_text()) for rank in (0, 1)]
    assert errors[0] == errors[1]
    named = sorted(int(i) for i in re.findall(r"\d+", errors[0].split("[")[1].split("]")[0]))
    r = recipe()
    start = open_backbone(r)
    vocabulary = Vocabulary.of(start.tokenizer_json, start.encoder.config.vocabulary)
    from mexma.text import TextTokenizer

    limit = min(r.max_tokens, start.max_tokens)
    tokenizer = TextTokenizer(start.tokenizer_json, max_tokens=limit)
    second = Batches(open_corpus(r).train, tokenizer, vocabulary, r, rank=1, world=2)
    assert named == sorted(i for b in second.step(0).batches for i in b.sample_ids)
    kept = [p.name for p in runs.glob("nan-*/checkpoints/*")]
    assert kept == ["step-00000000"], "the start, and nothing later"


def test_torchrun_that_is_asked_to_stop_leaves_a_checkpoint(tmp_path):
    """It passes the signal on to its processes, which are in sessions of their own."""
    out = tmp_path / "run"
    settings = ["tiny_cpu", "pairs=320000", "save_every=500", "validate_every=500", "keep_last=1"]
    process = subprocess.Popen(
        on_two_ranks("training", *settings, "--out", str(out)),
        cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not any(row["kind"] == "step" for row in read_rows(out)):
        assert process.poll() is None, process.communicate()[1]
    process.terminate()
    error = process.communicate()[1]
    last = [row["step"] for row in read_rows(out) if row["kind"] == "step"][-1]
    kept = {p.name for p in (out / "checkpoints").iterdir()}
    assert kept == {"step-00000000", f"step-{last:08d}"}
    assert error.count(f"mexma-train: stopped by SIGTERM after step {last} of 10000") == 1


def test_what_is_wrong_is_said_by_one_rank(tmp_path):
    command = on_two_ranks(
        "training", "tiny_cpu", "data=missing.tsv", "--out", str(tmp_path / "run")
    )
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("mexma-train: ") == 1
