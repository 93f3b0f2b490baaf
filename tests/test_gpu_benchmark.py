"""`python -m benchmarks.gpu` without a GPU: to the end, all ways alike, nothing kept."""

import os
import re
import subprocess
import sys

from benchmarks.circumstances import RESULTS, ROOT


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
    cosines = re.findall(r"^\| ([^|]+) \| (\d\.\d+) \|", done.stdout, flags=re.M)
    every_shape = {
        "this project's session, fp32, cpu",
        "the same graph, packed, by ONNX's reference",
        "torch, padded, SDPA",
        "torch, packed",
    }
    assert sorted(name for name, _ in cosines) == sorted([*every_shape, *every_shape])
    assert {cosine for _, cosine in cosines} == {"1.000000"}
    searched = re.findall(r"^\| 100% \| (1|64) \|.*\| (1.0000) \|$", done.stdout, flags=re.M)
    assert len(searched) == 2 and "not available (indexes on a GPU need" in done.stdout
    assert set(RESULTS.iterdir()) == kept
