"""The graph over tokens end to end, which only a GPU runs as it stands: proved with a CPU's operators."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from mexma import onnx_runtime
from mexma.artifact import (
    EXTERNAL,
    MANIFEST,
    MODEL,
    PACKED,
    TOKENIZER,
    Artifact,
    hash_file,
    open_artifact,
    read_manifest,
)
from mexma.encoder import OnnxEncoder
from mexma.errors import ArtifactError, ParityError
from mexma.session import Session
from mexma.text import TokenBatch
from model_export import packed
from model_export.export import export
from model_export.packed import PackedOnCpu, on_cpu
from tests.tiny import MAX_TOKENS, tiny_artifact, tiny_checkpoint, tiny_encoder

LENGTHS = [3, MAX_TOKENS, 4, 17, 3, 16, 33]


@pytest.fixture(scope="module", params=["mean", "first_token"])
def artifact(request, tmp_path_factory) -> Artifact:
    folder = tmp_path_factory.mktemp("packed") / request.param
    tiny_artifact(folder, precision="fp16", token_states=True, pooling=request.param)
    return open_artifact(folder)


@pytest.fixture
def batch() -> TokenBatch:
    rng = np.random.default_rng(0)
    return TokenBatch.pad(
        [np.concatenate([[0], rng.integers(4, 900, n - 2), [2]]) for n in LENGTHS], pad_id=1
    )


def original(artifact: Artifact, batch: TokenBatch) -> tuple[np.ndarray, np.ndarray]:
    """Torch's sentence vectors, and token states with zeros at padding."""
    encoder = tiny_encoder(pooling=artifact.manifest.pooling)
    ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
    with torch.inference_mode():
        vectors = encoder(ids, mask)
        states = encoder.token_states(ids, mask) * mask[..., None]
    return vectors.numpy(), states.numpy()


class PackedMultiHeadAttention(OpRun):
    """The runtime's operator by its documentation, one sequence after the other."""

    op_domain = "com.microsoft"

    def _run(self, query, key, value, bias, offsets, bounds, *, num_heads, **_):
        assert bias is None or bias.size == 0
        # Cells of tokens come first, in the order of the tokens, each in its sequence's row.
        cells = offsets.ravel()[: len(query)]
        lengths = np.diff(bounds)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        assert (cells // offsets.shape[1] == rows).all()
        assert sorted(offsets.ravel()) == list(range(offsets.size))
        mixed = np.empty_like(value)
        for start, end in pairwise(bounds):
            q, k, v = (
                x[start:end].astype(np.float32).reshape(end - start, num_heads, -1).swapaxes(0, 1)
                for x in (query, key, value)
            )
            score = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
            weight = np.exp(score - score.max(-1, keepdims=True))
            weight /= weight.sum(-1, keepdims=True)
            mixed[start:end] = (weight @ v).swapaxes(0, 1).reshape(end - start, -1)
        return (mixed,)


def test_the_file_as_it_stands_computes_the_originals(artifact, batch):
    model = onnx.load(artifact.path / PACKED)
    plain = ReferenceEvaluator(model, new_ops=[PackedMultiHeadAttention])
    vectors, states = plain.run(None, {n: getattr(batch, n) for n in plain.input_names})
    expected, expected_states = original(artifact, batch)
    assert (vectors * expected).sum(1).min() > 0.9999
    assert np.abs(states - expected_states[batch.mask.astype(bool)]).max() < 0.01


def test_a_cpus_attention_in_its_place_computes_the_originals(artifact, batch):
    session = PackedOnCpu(artifact.path, artifact.manifest, threads=1).session
    vectors = session.run(batch)
    states = session.token_states(batch)
    alone = session.run(TokenBatch.pad(batch.sequences[3:4], 1))[0]
    expected, expected_states = original(artifact, batch)
    assert (vectors * expected).sum(1).min() > 0.9999
    assert alone @ vectors[3] > 0.9999
    assert states.shape == expected_states.shape
    assert np.abs(states - expected_states).max() < 0.01
    left = sorted(p.name for p in artifact.path.iterdir())
    assert left == sorted([MANIFEST, MODEL, EXTERNAL, PACKED, TOKENIZER])


def test_both_graphs_share_one_file_of_weights(artifact):
    inside = {}
    for name in (MODEL, PACKED):
        values = onnx_ir.load(artifact.path / name).graph.initializers.values()
        tensors = [v.const_value for v in values]
        shared = {(t.offset, t.length) for t in tensors if isinstance(t, onnx_ir.ExternalTensor)}
        inside[name] = shared, sum(t.nbytes for t in tensors if not hasattr(t, "offset"))
    assert len(inside[PACKED][0]) > 12, "two layers of six matrices, and the tables"
    assert inside[PACKED][0] <= inside[MODEL][0]
    assert inside[PACKED][1] < 20_000, "what is small lies in the graph itself"
    assert artifact.manifest.files[PACKED].bytes < artifact.manifest.files[EXTERNAL].bytes


def test_a_wrong_packed_graph_is_not_written(tmp_path, monkeypatch):
    def wrong(encoder, *, token_states):
        changed = tiny_encoder()
        with torch.no_grad():
            changed.layers[1].narrow.weight[:8] *= 1.5
        return trace(changed, token_states=token_states)

    trace = packed.trace
    monkeypatch.setattr(packed, "trace", wrong)
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(ParityError, match=r"cosine_low on packed.* must be at least 0\.9999"):
        export(checkpoint, tmp_path / "new", precision="fp16", sentences_per_language=1)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


@pytest.fixture
def as_cuda(monkeypatch):
    """CUDA's place taken by the CPU's provider."""
    monkeypatch.setitem(onnx_runtime.PROVIDERS, "cuda", "CPUExecutionProvider")


def rewrite(artifact: Artifact, folder, change) -> Artifact:
    """A copy whose packed graph is changed, with a manifest that says so."""
    folder.mkdir()
    for file in artifact.path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    model = onnx_ir.load(artifact.path / PACKED)
    change(model)
    onnx_ir.save(model, folder / PACKED)
    manifest = read_manifest(artifact.path)
    manifest = replace(manifest, files={**manifest.files, PACKED: hash_file(folder / PACKED)})
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest)))
    return open_artifact(folder)


def test_a_gpu_runs_the_packed_graph_and_is_not_said_to_pad(artifact, batch, tmp_path, as_cuda):
    session = Session(rewrite(artifact, tmp_path / "new", on_cpu), device="cuda")
    assert not session.pads
    expected, expected_states = original(artifact, batch)
    assert (session.run(batch) * expected).sum(1).min() > 0.9999
    assert np.abs(session.token_states(batch) - expected_states).max() < 0.01
    assert Session(artifact, device="cpu").pads, "a CPU runs the other"


def test_an_artifact_without_it_runs_padded_on_a_gpu_which_is_said(
    artifacts, batch, as_cuda, caplog
):
    path = artifacts["fp32"].path
    session = Session(open_artifact(path), device="cuda")
    assert session.pads
    assert np.isfinite(session.run(batch)).all()
    assert f"mexma-export {path} OUT --precision fp16" in caplog.text


def test_a_packed_graph_with_other_inputs_is_refused(artifact, tmp_path, as_cuda):
    def renamed(model):
        on_cpu(model)
        model.graph.inputs[1].name = "positions"

    changed = rewrite(artifact, tmp_path / "new", renamed)
    with pytest.raises(ArtifactError, match=r"packed\.onnx: expected inputs .*places.*'positions'"):
        Session(changed, device="cuda")


def test_the_gate_says_what_it_proved(artifact):
    others = artifact.manifest.parity["other_engines"]
    assert others[PackedOnCpu.engine] > 0.9999
    assert OnnxEncoder(artifact.path).manifest.precision == "fp16"
