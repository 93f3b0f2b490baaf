"""The resume proof: run(2N) equals run(N), SIGKILL, SIGTERM or SIGINT, run(N), to the last bit.

pytest tests/training/test_resume.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import ROOT
from training.runlog import read_rows

POINTS = [
    "step 0",  # only the start was saved, as the best so far
    "named",  # and has its name, but nobody has called it the best
    "step 7",  # between two saves
    "weights written",  # in the first save: there is no checkpoint yet
    "weights written:3",
    "state written:2",
    "named:2",
    "best is known:2",
    "one removed",
    "step 11",
    "SIGTERM step 0",
    "SIGINT step 6",  # its end is neither saved nor judged by the recipe
    "SIGTERM step 7",  # its end is judged
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "tests.training.killing", str(folder), *POINTS]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def content(run: Path) -> dict[str, bytes]:
    """Every tensor of the final and of the last checkpoint."""
    found = {}
    for file in [
        run / "final" / "model.safetensors",
        *(run / "checkpoints").rglob("*.safetensors"),
    ]:
        for name, tensor in load_file(file).items():
            found[f"{file.relative_to(run)}: {name}"] = tensor.numpy().tobytes()
    return found


def metrics(run: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "pairs_per_s"} for row in read_rows(run)]


@pytest.mark.parametrize("point", POINTS)
def test_a_stopped_run_ends_as_one_that_was_never_stopped(runs, point):
    whole, resumed = runs / "whole", runs / point
    assert content(resumed) == content(whole)
    assert metrics(resumed) == metrics(whole)
    assert (resumed / "best").readlink() == (whole / "best").readlink()


def test_the_proof_looks_at_something(runs):
    whole = content(runs / "whole")
    assert (runs / "whole/best").readlink().name != "step-00000000"
    assert any("optimiser.safetensors" in name for name in whole)
    assert any("head.safetensors" in name for name in whole)
    assert [r["step"] for r in metrics(runs / "whole") if r["kind"] == "step"] == list(range(1, 13))
    assert not list(runs.rglob(".step-*"))
