"""`python -m benchmarks.gpu` on a machine without a GPU: to the end, all ways alike."""

import re
import sys

import pytest
import torch

from benchmarks import gpu


@pytest.mark.filterwarnings("ignore")  # of torch's exporter, about itself
def test_dry_run(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setattr(gpu, "SENTENCES", 12)
    kept = set(gpu.result_file("gpu").parent.iterdir())
    gpu.main()
    said = capsys.readouterr().out
    if torch.cuda.is_available():
        return  # what a GPU shows is for people to read
    assert "CUDA: not available" in said
    assert said.count("device cuda was asked for, but the installed onnxruntime offers only") == 2
    cosines = dict(re.findall(r"^\| ([^|]+) \| (\d\.\d+) \|", said, flags=re.M))
    assert set(cosines) == {
        "this project's session, fp32, cpu",
        "the same graph, packed, by ONNX's reference",
        "torch, padded, SDPA",
        "torch, packed",
    }
    assert set(cosines.values()) == {"1.000000"}
    assert set(gpu.result_file("gpu").parent.iterdir()) == kept
