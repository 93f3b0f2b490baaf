"""`python -m benchmarks.gpu` without a GPU: to the end, all ways alike, nothing kept unless asked for."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu, gpu_search
from benchmarks.circumstances import RESULTS, ROOT
from benchmarks.gpu_ways import kept
from mexma.text import TokenBatch
from tests.tiny import tiny_artifact, tiny_encoder


def test_dry_run():
    kept = set(RESULTS.iterdir())
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "CUDA: not available" in done.stdout
    refused = "device cuda was asked for, but the installed onnxruntime offers only"
    assert done.stdout.count(refused) == 2
    assert done.stdout.count("engine cuda cannot be used: libcuda.so.1: cannot open") == 2
    cosines = re.findall(r"^\| ([^|]+) \| (\d\.\d{6}) \|", done.stdout, flags=re.M)
    every_shape = {
        "ONNX Runtime, padded graph",
        "packed graph, attention by a CPU's",
        "torch, padded, SDPA",
        "torch, packed",
    }
    assert sorted(name for name, _ in cosines) == sorted([*every_shape, *every_shape])
    assert min(float(cosine) for _, cosine in cosines) > 0.99999
    searched = re.findall(r"^\| 100% \| (1|64) \|.*\| (1.0000) \|$", done.stdout, flags=re.M)
    assert len(searched) == 2 and "not available (indexes on a GPU need" in done.stdout
    steps = re.findall(r"^ +\d+\.\d s  (.+)$", done.stdout, flags=re.M)
    for shape in ("default", "large"):
        assert {f"{shape}: exported", f"{shape}: round 1 of 1", f"{shape}: larger batches"} <= {
            *steps
        }
    assert "search: 100% of the rows, 64 at a time" in steps
    figure = r" \d+\.\d\d \|"
    first_uses = re.findall(rf"^\| ([^|]+) \|{figure * 4}$", done.stdout, flags=re.M)
    assert sorted(first_uses) == sorted([*every_shape, *every_shape])
    assert set(RESULTS.iterdir()) == kept


def test_a_run_that_is_cut_off_keeps_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def lines(say: Callable[[str], object]) -> Iterator[str]:
        say("search: begun")
        yield "| measured |"
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_search, "lines", lines)
    with pytest.raises(KeyboardInterrupt):
        gpu.main(["--only", "search", "--out", str(tmp_path)])
    # A name of its own: a whole run's file of the same day is not overwritten.
    (file,) = tmp_path.glob("gpu_search_*.md")
    assert file.read_text().startswith("# Engines on a GPU")
    assert file.read_text().endswith("\n| measured |\n")
    assert re.search(r"^ +\d+\.\d s  search: begun$", capsys.readouterr().out, flags=re.M)


def test_parts_are_named(capsys: pytest.CaptureFixture[str]):
    assert gpu.parts("search,default") == ["default", "search"]
    with pytest.raises(SystemExit):
        gpu.main(["--only", "default,huge"])
    assert "expected some of default, large, search, got huge" in capsys.readouterr().err


def test_new_lengths_are_new_once_and_then_again():
    ran = []

    def run(sequences: list[gpu.Ids]) -> gpu.Vectors:
        ran.append([len(s) for s in sequences])
        return np.zeros((len(sequences), 4), np.float32)

    way = gpu.Way("counts", run)
    gpu.time_singles(way, [np.arange(n) for n in (5, 23, 100)])
    lengths = [length for (length,) in ran]  # one sentence at a time
    known = lengths.count(23)
    assert lengths[:known] == [23] * known
    half = (len(lengths) - known) // 2
    new, again = lengths[known : known + half], lengths[known + half :]
    assert new == again and len({*new}) == half and 23 not in new
    assert min(new) >= 3 and max(new) <= 60
    assert half == gpu.NEW_LENGTHS


def test_a_collection_of_several_parts_is_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu_search, "PART_ROWS", 300)
    snapshot, queries = gpu_search._collection(1_000)
    rows = snapshot.vectors(np.arange(1_000))
    assert len(snapshot) == 1_000 and len(queries) == gpu_search.QUERIES
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert len(np.unique(np.vstack([rows, queries]), axis=0)) == 1_000 + len(queries)


def test_a_kept_artifact_gives_its_encoder_back(tmp_path: Path):
    tiny_artifact(tmp_path / "artifact", precision="fp16", sentences_per_language=1)
    found = kept(tmp_path)
    assert found is not None and kept(tmp_path / "nothing") is None
    batch = TokenBatch.pad([np.arange(3, 30), np.arange(5, 9)], 1)
    ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
    with torch.inference_mode():
        vectors, expected = (e.cpu()(ids, mask) for e in (found.encoder, tiny_encoder()))
    assert (vectors * expected).sum(1).min() > 0.9999
