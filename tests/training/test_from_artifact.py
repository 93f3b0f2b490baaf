"""What is served can be trained further: an artifact's weights are a checkpoint's again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mexma.encoder import OnnxEncoder, encode
from mexma.errors import CheckpointError
from mexma.sample import parallel_pairs
from mexma.text import TextTokenizer
from tests.tiny import tiny_artifact, tiny_checkpoint
from training.__main__ import main
from training.checkpoint import load_checkpoint


@pytest.fixture(scope="module", params=["fp32", "compact"])
def artifact(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("artifact") / request.param
    return tiny_artifact(folder, precision=request.param).path


def test_it_computes_what_the_artifact_does(artifact):
    found = load_checkpoint(str(artifact))
    served = OnnxEncoder(artifact, engine="onnxruntime")
    assert (found.max_tokens, found.prefix) == (served.manifest.max_tokens, served.manifest.prefix)
    assert found.source["name"] == served.manifest.name
    tokenizer = TextTokenizer(found.tokenizer_json, max_tokens=found.max_tokens)
    texts = parallel_pairs("ja")[0]
    with torch.inference_mode():
        for text, vector in zip(texts, encode(served, texts), strict=True):
            ids = torch.from_numpy(tokenizer.encode([text])[0].ids)[None]
            assert np.abs(found.encoder(ids, torch.ones_like(ids))[0].numpy() - vector).max() < 1e-5


def test_what_an_exact_artifact_holds_is_the_checkpoint_again(tmp_path):
    original = tiny_checkpoint(tmp_path / "checkpoint")
    found = load_checkpoint(str(tiny_artifact(tmp_path / "artifact", precision="fp32").path))
    kept = found.encoder.state_dict()
    for name, tensor in original.encoder.state_dict().items():
        if name not in ("embeddings.positions.weight", "embeddings.segment"):  # added up
            assert torch.equal(kept[name], tensor), name


def test_a_run_starts_from_it(artifact, tmp_path):
    pairs = tmp_path / "pairs.tsv"
    lines = [f"de\t{a}\t{b}" for a, b in zip(*parallel_pairs("de"), strict=True)]
    pairs.write_text("lang\tsrc\ttrg\n" + "\n".join(lines) + "\n", encoding="utf-8")
    out = tmp_path / "run"
    settings = [f"backbone={artifact}", f"data={pairs}", "pairs=32", "batch_pairs=8", "unmasking=0"]
    assert main(["tiny_cpu", *settings, "--out", str(out)]) == 0
    assert (
        load_checkpoint(str(out / "final")).max_tokens == load_checkpoint(str(artifact)).max_tokens
    )


def test_what_cannot_be_read_back_is_said(artifact, tmp_path):
    with pytest.raises(CheckpointError, match="fp32, compact or fp16"):
        load_checkpoint(str(tiny_artifact(tmp_path / "int8", precision="int8").path))
    with pytest.raises(CheckpointError, match="pools by"):
        load_checkpoint(str(artifact), pooling="first_token")
    with pytest.raises(CheckpointError, match="max_tokens must be 3 to"):
        load_checkpoint(str(artifact), max_tokens=100_000)
    broken = tmp_path / "broken"
    shutil.copytree(artifact, broken)
    (broken / "model.onnx").write_bytes(b"x" * (artifact / "model.onnx").stat().st_size)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(str(broken))
