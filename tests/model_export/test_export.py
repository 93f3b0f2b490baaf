"""Exports of every precision, opened and run as the service does."""

from __future__ import annotations

import errno
import json
import os
from importlib import metadata
from importlib.metadata import PackageNotFoundError

import numpy as np
import onnx
import pytest
import torch

import model_export.__main__ as exporting
import model_export.export
import model_export.parity
from mexma.artifact import PRECISIONS, open_artifact
from mexma.encoder import OnnxEncoder, encode
from mexma.errors import ArtifactError, EngineError
from mexma.sample import parallel_pairs
from mexma.text import TokenBatch
from model_export import graph
from model_export.__main__ import main, parser
from model_export.export import minified, write_unproved
from tests.tiny import (
    MAX_TOKENS,
    tiny_artifact,
    tiny_checkpoint,
    tiny_encoder,
    tiny_tokenizer_json,
)
from training.checkpoint import load_checkpoint


@pytest.mark.parametrize("precision", PRECISIONS)
def test_vectors_are_the_originals(artifacts, precision):
    served = OnnxEncoder(artifacts[precision].path)
    texts, _ = parallel_pairs("ja")
    vectors = encode(served, texts)
    original = tiny_encoder()
    with torch.inference_mode():
        for text, vector in zip(texts, vectors, strict=True):
            ids = torch.from_numpy(served.tokenizer.encode([text])[0].ids)[None]
            expected = original(ids, torch.ones_like(ids))[0].numpy()
            assert expected @ vector > {"fp32": 1 - 1e-6, "fp16": 0.9999}.get(precision, 0.99)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_biases_that_attention_cannot_see_are_folded_away():
    encoder = tiny_encoder()
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in encoder.layers:
            for linear in (layer.query, layer.key, layer.value, layer.attention_out):
                linear.bias.normal_()
    ids = torch.randint(4, 900, (3, 9))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    with torch.inference_mode():
        expected = encoder(ids, mask)
    graph.fold_biases(encoder)
    assert [
        n for n, _ in encoder.named_parameters() if n.endswith(("key.bias", "value.bias"))
    ] == []
    with torch.inference_mode():
        found = encoder(ids, mask)
    assert torch.allclose(found, expected, atol=1e-5)
    del encoder.layers[0].query.bias  # which scores do depend on
    encoder.layers[0].query.register_parameter("bias", None)
    with torch.inference_mode():
        assert not torch.allclose(encoder(ids, mask), expected, atol=1e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_vector_does_not_depend_on_its_batch(artifacts, precision):
    served = OnnxEncoder(artifacts[precision].path)
    rng = np.random.default_rng(0)
    lengths = [3, 4, 7, 16, 17, 33, MAX_TOKENS - 1, MAX_TOKENS]
    sequences = [np.concatenate([[0], rng.integers(4, 900, n - 2), [2]]) for n in lengths]
    together = served.run(sequences)
    for sequence, vector in zip(sequences, together, strict=True):
        assert served.run([sequence])[0] @ vector > 0.9999


@pytest.mark.parametrize("precision", PRECISIONS)
def test_token_states_are_the_originals(artifacts, precision):
    served = OnnxEncoder(artifacts[precision].path)
    sequences = [np.array([0, 9, 8, 7, 6, 2]), np.array([0, 50, 2])]
    batch = TokenBatch.pad(sequences, 1)
    states = served.session.token_states(batch)
    assert states.shape == (2, 6, 64)
    assert states.dtype == np.float32
    with torch.inference_mode():
        expected = tiny_encoder().token_states(
            torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
        )
    difference = np.abs(states - expected.numpy())[batch.mask.astype(bool)]
    assert difference.max() < {"fp32": 1e-5, "fp16": 0.01}.get(precision, 0.5)
    assert artifacts[precision].manifest.parity["token_states_max_abs"] < 0.5


def test_the_manifest_says_what_was_measured(artifacts):
    for precision, exported in artifacts.items():
        found = open_artifact(exported.path).manifest
        assert found.precision == precision
        assert found.token_output_name == "token_states"
        parity = found.parity
        assert set(parity["bounds"]) == {"cosine", "alone", "retrieval_points", "spared", "least"}
        assert parity["cosine_low"] >= parity["bounds"]["cosine"]
        assert parity["alone_cosine_min"] >= parity["bounds"]["alone"]
        assert parity["longest_tokens"] == MAX_TOKENS
        assert len(parity["retrieval"]) == 41
        assert {"torch", "onnxruntime"} <= set(parity["versions"])
        assert found.source["name"] == "tiny"


def test_smaller_precisions_are_smaller(artifacts):
    size = {p: exported.bytes for p, exported in artifacts.items()}
    assert size["compact"] < size["int8"] < size["fp16"] < size["fp32"]


def test_twice_the_same_bytes(artifacts, tmp_path):
    for precision in ("fp32", "fp16", "compact"):
        again = tiny_artifact(tmp_path / precision, precision=precision, token_states=True)
        assert again.manifest.fingerprint == artifacts[precision].manifest.fingerprint


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_the_gate_has_not_seen_is_the_same_and_says_so(artifacts, tmp_path, precision):
    place = tmp_path / "artifact"
    place.mkdir()
    write_unproved(
        tiny_checkpoint(tmp_path / "checkpoint"), place, precision=precision, token_states=True
    )
    manifest = open_artifact(place).manifest
    assert manifest.files == artifacts[precision].manifest.files
    assert manifest.parity == {}


def test_nothing_of_this_machine_is_inside(artifacts, tmp_path):
    for exported in artifacts.values():
        content = (exported.path / "model.onnx").read_bytes()
        content += (exported.path / "manifest.json").read_bytes()
        for word in (b".py", b"site-packages", b"/tmp", str(tmp_path.parent).encode()):
            assert word not in content


def test_attention_is_the_fused_operator(artifacts):
    model = onnx.load(artifacts["fp32"].path / "model.onnx")
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("MultiHeadAttention") == 2
    assert "Softmax" not in kinds
    assert {o.domain: o.version for o in model.opset_import}[""] >= 21


def test_large_weights_lie_outside_the_graph(artifacts, tmp_path):
    exported = tiny_artifact(tmp_path / "m", largest_inline_bytes=100_000)
    assert set(exported.manifest.files) == {"model.onnx", "model.onnx.data", "tokenizer.json"}
    assert (exported.path / "model.onnx").stat().st_size < 100_000
    texts = ["Ich habe zwei Katzen.", "猫が二匹います。"]
    inline = encode(OnnxEncoder(artifacts["fp32"].path), texts)
    assert np.array_equal(encode(OnnxEncoder(exported.path), texts), inline)
    data = exported.path / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"\x00")
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data"):
        OnnxEncoder(exported.path)


def test_without_token_states_there_are_none(tmp_path):
    served = OnnxEncoder(tiny_artifact(tmp_path / "m", sentences_per_language=1).path)
    assert served.manifest.token_output_name is None
    with pytest.raises(EngineError, match="--token-states"):
        served.session.token_states(TokenBatch.pad([np.array([0, 5, 2])], 1))


def test_the_tokenizer_is_written_small():
    original = tiny_tokenizer_json()
    small = minified(original)
    assert len(small) < 0.7 * len(original)
    assert json.loads(small) == json.loads(original)


def test_the_command_line(tmp_path, capsys):
    tiny_checkpoint(tmp_path / "checkpoint")
    source, out = str(tmp_path / "checkpoint"), str(tmp_path / "artifact")
    options = ["--precision", "compact", "--prefix", "query: ", "--max-tokens", "40"]
    options += ["--name", "small", "--licence", "MIT", "--sentences-per-language", "2"]
    assert main([source, out, *options]) == 0
    said = capsys.readouterr()
    assert "small, compact, 64 dimensions, 40 tokens" in said.out
    for step in ("torch fp32", "artifact, batched", "artifact, alone"):
        assert f"  {step}: " in said.err, "the proof takes minutes with a real model"
    manifest = open_artifact(tmp_path / "artifact").manifest
    assert (manifest.prefix, manifest.max_tokens, manifest.name) == ("query: ", 40, "small")
    assert manifest.source["licence"] == "MIT"

    assert main([str(tmp_path / "nowhere" / "x"), out]) == 1
    error = capsys.readouterr().err
    assert error.startswith("mexma-export: ")
    assert error.count("\n") == 1
    assert open_artifact(tmp_path / "artifact").manifest == manifest


def test_an_artifact_is_exported_in_another_precision_where_its_weights_can_be_had(
    artifacts, tmp_path, capsys
):
    source = str(artifacts["compact"].path)
    options = ["--precision", "int8", "--sentences-per-language", "2"]
    assert main([source, str(tmp_path / "int8"), *options]) == 0
    assert open_artifact(tmp_path / "int8").manifest.precision == "int8"
    capsys.readouterr()
    assert main([str(tmp_path / "int8"), str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "can be trained further where it is fp32, compact or fp16" in line
    assert main([source, source]) == 1
    assert "the source" in capsys.readouterr().err


def test_what_is_no_artifact_is_not_replaced(tmp_path, capsys):
    """An export to the run's own directory removed the run, and one to any other what was in it."""
    run, thesis = tmp_path / "run", tmp_path / "mine" / "thesis"
    tiny_checkpoint(run / "final")
    thesis.mkdir(parents=True)
    (thesis / "chapter.txt").write_text("years")
    for out, says in (
        (run, "the source"),
        (run / "final", "the source"),
        (tmp_path / "mine", "it holds 'thesis'"),
        (thesis, "it holds 'chapter.txt'"),
    ):
        assert main([str(run / "final"), str(out)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
    assert (thesis / "chapter.txt").read_text() == "years"
    assert (run / "final" / "model.safetensors").exists()
    with pytest.raises(ArtifactError, match="it holds 'thesis'"):
        model_export.export.export(load_checkpoint(str(run / "final")), tmp_path / "mine")


def test_a_name_that_no_client_could_ask_for_is_said_before_the_model_is_read(tmp_path, capsys):
    for name in ("", " mine", "two\nlines", "x" * 201):
        assert main(["checkpoint", str(tmp_path / "out"), "--name", name]) == 1
        assert "--name: expected a name of 1 to 200 printable" in capsys.readouterr().err


def test_a_place_where_nothing_can_be_written_is_said_before_the_model_is_read(
    tmp_path, capsys, monkeypatch
):
    read = []
    monkeypatch.setattr(exporting, "load_checkpoint", lambda *_, **__: read.append(1))
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/out", "file/deeper/out"):
        assert main(["checkpoint", str(tmp_path / out)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(f"{tmp_path / 'file'} is a file")
    monkeypatch.setattr(os, "access", lambda *_: False)  # this user may be one who may all
    assert main(["checkpoint", str(tmp_path / "new" / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"{tmp_path} is not writable")
    monkeypatch.undo()
    assert not read
    assert (tmp_path / "file").read_text() == "mine"

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")

    monkeypatch.setattr(exporting, "load_checkpoint", full)
    assert main(["checkpoint", str(tmp_path / "new" / "out")]) == 1
    assert capsys.readouterr().err == "mexma-export: somewhere: No space left on device\n"


def test_the_command_line_refuses_what_it_does_not_know(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["a", "b", "--precision", "int3"])
    assert "fp32, fp16, int8, compact" in capsys.readouterr().err.replace("'", "")
    for option in ("--sentences-per-language", "--max-tokens"):
        with pytest.raises(SystemExit):
            parser().parse_args(["a", "b", option, "0"])
        assert "expected 1 or more, got 0" in capsys.readouterr().err


def test_it_exports_where_the_gpu_package_is_installed(monkeypatch, tmp_path):
    """`onnxruntime-gpu` provides the module onnxruntime, and no package of that name."""

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise PackageNotFoundError(name)
        return metadata.version(name)

    for module in (model_export.export, model_export.parity):
        monkeypatch.setattr(module, "version", version)
    found = tiny_artifact(tmp_path / "artifact").manifest
    assert found.exporter["onnxruntime"] == found.parity["versions"]["onnxruntime"]
