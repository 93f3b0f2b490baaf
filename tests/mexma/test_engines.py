"""Which engine runs an artifact: the fastest that keeps its promise, and never another one silently."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from mexma import native, session
from mexma.artifact import PRECISIONS, hash_file, open_artifact
from mexma.encoder import OnnxEncoder, encode
from mexma.errors import ArtifactError, DeviceUnavailable, EngineError
from mexma.onnx_file import read_graph
from mexma.sample import parallel_pairs
from mexma.session import ENGINES
from tests.tiny import tiny_artifact

KERNELS = [k for k in native.kernels() if not k.missing]
DEFAULT = Path(__file__).resolve().parents[2] / "models" / "default"


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("artifacts")
    return {
        p: tiny_artifact(
            folder / p, precision=p, token_states=p == "compact", sentences_per_language=1
        ).path
        for p in PRECISIONS
    }


@pytest.mark.parametrize("precision", ["fp32", "compact"])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_both_engines_give_the_same_vectors(artifacts, precision, kernel):
    texts, _ = parallel_pairs("ja")
    onnx_vectors = encode(OnnxEncoder(artifacts[precision], engine="onnxruntime"), texts)
    if precision == "fp32" and kernel.arithmetic != "fp32":
        with pytest.raises(
            DeviceUnavailable, match=f"computes in {kernel.arithmetic}, not in fp32"
        ):
            OnnxEncoder(artifacts[precision], engine=kernel.name)
        return
    encoder = OnnxEncoder(artifacts[precision], engine=kernel.name)
    assert encoder.engine == f"{kernel.name}, {kernel.arithmetic}"
    least = (encode(encoder, texts) * onnx_vectors).sum(1).min()
    assert least > (0.999999 if kernel.arithmetic == "fp32" else 0.9999)


def test_every_kernel_can_be_asked_for():
    assert {"auto", "onnxruntime", "cuda", *(k.name for k in native.kernels())} == set(ENGINES)


def test_the_default_model_on_every_kernel():
    texts = [t for lang in ("fi", "ja", "ar") for t in parallel_pairs(lang)[0][:4]]
    texts.append(" ".join(texts))
    expected = encode(OnnxEncoder(DEFAULT, engine="onnxruntime"), texts)
    for kernel in KERNELS:
        if kernel.name not in ("avx2", "portable"):  # avx512's arithmetic again, but slower
            vectors = encode(OnnxEncoder(DEFAULT, engine=kernel.name), texts)
            least = (vectors * expected).sum(1).min()
            assert least > (0.999999 if kernel.arithmetic == "fp32" else 0.9999), kernel.name


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_other_precisions_are_onnx_runtimes(artifacts, precision):
    encoder = OnnxEncoder(artifacts[precision])
    assert encoder.engine == (
        f"onnxruntime, {precision} (not native: artifacts of precision {precision} run under ONNX "
        "Runtime)"
    )
    with pytest.raises(DeviceUnavailable, match=f"precision {precision} run under ONNX Runtime"):
        OnnxEncoder(artifacts[precision], engine="portable")


def test_without_the_extension(artifacts, monkeypatch):
    monkeypatch.setattr(native, "NOT_BUILT", "the native engine was not built (no compiler)")
    encoder = OnnxEncoder(artifacts["compact"])
    assert encoder.session.engine == "onnxruntime"
    assert "not built (no compiler)" in encoder.engine
    with pytest.raises(DeviceUnavailable, match="not built"):
        OnnxEncoder(artifacts["compact"], engine="portable")


def test_a_processor_without_any_kernel_that_is_faster(artifacts, monkeypatch):
    found = [replace(k, missing="the processor has no wings") for k in native.kernels()]
    monkeypatch.setattr(native, "kernels", lambda: found)
    encoder = OnnxEncoder(artifacts["compact"])
    assert encoder.session.engine == "onnxruntime"
    assert "avx512: the processor has no wings" in encoder.session.reason
    with pytest.raises(DeviceUnavailable, match="amx: the processor has no wings"):
        OnnxEncoder(artifacts["compact"], engine="amx")


def test_a_kernel_that_is_slow_here_runs_only_where_it_is_named(artifacts, monkeypatch):
    first, *others = KERNELS
    monkeypatch.setattr(native, "kernels", lambda: [replace(first, slow="it limps"), *others])
    chosen = OnnxEncoder(artifacts["compact"]).session.engine
    assert chosen == next((k.name for k in others if not k.slow), "onnxruntime")
    assert OnnxEncoder(artifacts["compact"], engine=first.name).session.engine == first.name
    monkeypatch.setattr(native, "kernels", lambda: [replace(first, slow="it limps")])
    assert OnnxEncoder(artifacts["compact"]).session.reason == f"{first.name}: it limps"


def test_the_portable_kernel_is_never_chosen_and_a_fast_one_is(artifacts):
    slow = {k.name: k.slow for k in native.kernels()}
    assert slow["portable"] and not any(slow[name] for name in ("amx", "avx512", "avx2"))
    usable = [k for k in KERNELS if not k.slow]
    encoder = OnnxEncoder(artifacts["compact"])
    assert encoder.session.engine == (usable[0].name if usable else "onnxruntime")


def test_a_kernel_is_no_cuda(artifacts):
    with pytest.raises(DeviceUnavailable, match="engine portable runs on cpu"):
        OnnxEncoder(artifacts["compact"], engine="portable", device="cuda")


@pytest.mark.parametrize(("device", "streams"), [("cpu", 1), ("cuda", 2)])
def test_a_gpu_takes_two_batches_at_once(artifacts, monkeypatch, device, streams):
    class Loaded:
        packed = device == "cuda"

    monkeypatch.setattr(session, "OnnxRuntime", lambda artifact, **_: Loaded())
    loaded = OnnxEncoder(artifacts["fp16"], device=device, threads=2)
    assert (loaded.streams, loaded.pads) == (streams, device == "cpu")


def test_token_states(artifacts):
    sequences = [np.array([0, 9, 8, 7, 6, 2]), np.array([0, 50, 2])]
    from mexma.text import TokenBatch

    batch = TokenBatch.pad(sequences, 1)
    theirs = OnnxEncoder(artifacts["compact"], engine="onnxruntime").session.token_states(batch)
    ours = OnnxEncoder(artifacts["compact"], engine="portable").session.token_states(batch)
    assert ours.shape == theirs.shape == (2, 6, 64)
    assert np.abs(ours - theirs)[batch.mask.astype(bool)].max() < 1e-4
    with pytest.raises(EngineError, match="--token-states"):
        OnnxEncoder(artifacts["fp32"], engine="portable").session.token_states(batch)


def test_a_token_that_there_is_not(artifacts):
    encoder = OnnxEncoder(artifacts["compact"], engine="portable")
    with pytest.raises(EngineError, match="token id 99999999 at position 1"):
        encoder.run([np.array([0, 99999999, 2])])


def changed(artifact: Path, copy: Path, change) -> Path:
    """A copy whose graph was changed by someone who also wrote a manifest for it."""
    model = onnx.load(artifact / "model.onnx")
    change(model.graph)
    copy.mkdir()
    onnx.save(model, copy / "model.onnx")
    (copy / "tokenizer.json").write_bytes((artifact / "tokenizer.json").read_bytes())
    manifest = json.loads((artifact / "manifest.json").read_text())
    del manifest["fingerprint"]
    record = hash_file(copy / "model.onnx")
    manifest["files"]["model.onnx"] = {"sha256": record.sha256, "bytes": record.bytes}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def other_activation(graph):
    node = next(n for n in graph.node if n.op_type == "Gelu")
    node.op_type = "Tanh"
    del node.attribute[:]


def no_residual(graph):
    node = next(n for n in graph.node if n.op_type == "LayerNormalization" and "1" in n.output[0])
    added = next(n for n in graph.node if node.input[0] in n.output)
    added.input[0] = added.input[1]


def queries_for_keys(graph):
    node = next(n for n in graph.node if n.op_type == "MultiHeadAttention")
    node.input[0], node.input[1] = node.input[1], node.input[0]


def fewer_heads(graph):
    node = next(n for n in graph.node if n.op_type == "MultiHeadAttention")
    next(a for a in node.attribute if a.name == "num_heads").i = 2


def one_scale(graph):
    node = next(n for n in graph.node if n.op_type == "LayerNormalization" and "1" in n.output[0])
    graph.initializer.append(onnx.numpy_helper.from_array(np.ones(1, np.float32) * 2, "one_scale"))
    node.input[1] = "one_scale"


@pytest.mark.parametrize(
    "change",
    [other_activation, no_residual, queries_for_keys, fewer_heads],
    ids=lambda c: c.__name__,
)
def test_a_graph_of_another_kind_is_never_computed_as_ours(artifacts, tmp_path, change):
    path = changed(artifacts["fp32"], tmp_path / "m", change)
    encoder = OnnxEncoder(path)
    assert encoder.session.engine == "onnxruntime"
    assert "expected" in encoder.session.reason
    with pytest.raises(DeviceUnavailable, match=r"engine portable cannot be used: .*expected"):
        OnnxEncoder(path, engine="portable")
    ids = [np.arange(3, 30)]
    unchanged = OnnxEncoder(artifacts["fp32"], engine="onnxruntime")
    assert (encoder.run(ids) * unchanged.run(ids)).sum() < 0.9999, "the change changes vectors"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_reader_of_onnx_files_reads_what_onnx_reads(artifacts, precision):
    model = onnx.load(artifacts[precision] / "model.onnx")
    graph = read_graph(artifacts[precision] / "model.onnx")
    assert [o.kind for o in graph.operators] == [n.op_type for n in model.graph.node]
    assert [list(o.inputs) for o in graph.operators] == [list(n.input) for n in model.graph.node]
    assert set(graph.weights) == {i.name for i in model.graph.initializer}
    for initializer in model.graph.initializer:
        expected = onnx.numpy_helper.to_array(initializer)
        found = graph.weights[initializer.name].array()
        assert np.array_equal(found.astype(np.float64), expected.astype(np.float64))


def test_weights_outside_the_graph(artifacts, tmp_path):
    exported = tiny_artifact(tmp_path / "m", largest_inline_bytes=100_000, sentences_per_language=1)
    ids = [np.arange(3, 30)]
    outside = OnnxEncoder(exported.path, engine="portable").run(ids)
    assert np.array_equal(outside, OnnxEncoder(artifacts["fp32"], engine="portable").run(ids))


def test_a_graph_whose_weights_have_other_shapes(artifacts, tmp_path):
    """One number for a row's: taken for the row, what lies behind it would be computed with."""
    path = changed(artifacts["fp32"], tmp_path / "m", one_scale)
    with pytest.raises(DeviceUnavailable, match="shape of a normalisation: expected"):
        OnnxEncoder(path, engine="portable")


def test_a_manifest_of_other_shapes(artifacts):
    from dataclasses import replace

    from mexma.session import Session

    whole = open_artifact(artifacts["fp32"])
    shape = whole.manifest.architecture
    for wrong in (
        {"dim": 63}, {"max_tokens": 65}, {"architecture": shape | {"layers": 0}},
        {"architecture": shape | {"layers": 2**40}}, {"architecture": shape | {"heads": 0}},
        {"architecture": shape | {"hidden": 0}}, {"architecture": shape | {"first_position": None}},
    ):  # fmt: skip
        artifact = replace(whole, manifest=replace(whole.manifest, **wrong))
        with pytest.raises(DeviceUnavailable, match="engine portable cannot be used"):
            Session(artifact, engine="portable")


def test_files_that_are_no_onnx(artifacts, tmp_path):
    content = (artifacts["fp32"] / "model.onnx").read_bytes()
    big = b"\xff" * 2**20  # one number to its end, of which all would be kept
    outside = b"\x3a\x19\x2a\x17\x10\x01\x70\x01\x6a\x11\x0a\x08location\x12\x05there"
    for wrong in (b"\xff" * 100, big, content[: len(content) // 2], b"\x0a", outside):
        file = tmp_path / "model.onnx"
        file.write_bytes(wrong)
        with pytest.raises(ArtifactError, match="not an ONNX file"):
            read_graph(file)


def test_the_table_is_not_copied():
    """Token vectors stay where the artifact's file is mapped: memory is shared between processes."""
    from mexma.weights import read_weights

    table = read_weights(open_artifact(DEFAULT)).table
    assert not table.codes.flags.owndata
    assert not table.codes.flags.writeable
