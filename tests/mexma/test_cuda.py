"""The engine for GPUs where there is none: its kernels and calls of CUDA run on the CPU (cuda_on_cpu.cpp)."""

from __future__ import annotations

import ctypes
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mexma.weights
from mexma import cuda, session
from mexma.artifact import Artifact, open_artifact
from mexma.cuda import KERNELS, CudaEncoder, Libraries
from mexma.encoder import OnnxEncoder, encode
from mexma.errors import ArtifactError, DeviceUnavailable, EngineError
from mexma.onnx_file import Graph, Operator, read_graph
from mexma.sample import parallel_pairs
from mexma.session import Session
from mexma.text import TokenBatch
from mexma.weights import EncoderWeights, read_weights
from model_export.export import write_unproved
from tests.tiny import random_encoder, tiny_tokenizer_json
from training.checkpoint import Checkpoint
from training.encoder import Encoder, EncoderConfig

DEFAULT_MODEL = Path(__file__).resolve().parents[2] / "models" / "default"
HEADS = {32: 2, 64: 5, 128: 3}
"""Components of a head, and how many there are: all that the kernels know."""
LONGEST = 128
LENGTHS = (3, 100, 4, 17, 33, 32, 64, 31, LONGEST, 5, 16, 97)


class Gpu(ctypes.CDLL):
    """The stand-in. `fails(name, after, times)`: that call fails so often, after so many that go well."""

    def __init__(self, path: Path):
        super().__init__(str(path))
        self.path = path
        self.options.restype = ctypes.c_char_p

    @property
    def libraries(self) -> Libraries:
        return Libraries(*[str(self.path)] * 3)

    def fails(self, name: str, after: int = 0, times: int = 2**30) -> None:
        self.fail(name.encode(), after, times)


def build(out: Path, head: int, heads: int) -> subprocess.Popen[bytes]:
    """Compile the stand-in for a model's shape."""
    source = Path(__file__).with_name("cuda_on_cpu.cpp")
    shape = [f"-DHEAD={head}", f"-DHIDDEN={head * heads}"]
    command = ["g++", "-std=c++17", "-O2", "-shared", "-fPIC", *shape, str(source), "-o", str(out)]
    return subprocess.Popen(command)


@pytest.fixture(scope="session")
def gpus(tmp_path_factory) -> dict[int, Gpu]:
    """By the components of a head."""
    folder = tmp_path_factory.mktemp("cuda")
    running = {head: build(folder / f"{head}.so", head, heads) for head, heads in HEADS.items()}
    for process in running.values():
        assert process.wait() == 0
    return {head: Gpu(folder / f"{head}.so") for head in running}


@pytest.fixture
def gpu(gpus) -> Iterator[Gpu]:
    """Of heads of 32 components; whole again afterwards."""
    yield gpus[32]
    gpus[32].heal()
    gpus[32].be_version(9)


def encoder_of(size: int, **options) -> Encoder:
    """Two layers with random weights. size: components of a head."""
    vocabulary = len(json.loads(tiny_tokenizer_json())["model"]["vocab"])
    hidden = size * HEADS[size]
    config = EncoderConfig(
        **{
            "vocabulary": vocabulary, "hidden": hidden, "layers": 2, "heads": HEADS[size],
            "intermediate": 2 * hidden, "positions": LONGEST + 2, "first_position": 2, "pad_id": 1,
            "norm_eps": 1e-5, "pooling": "mean", **options,
        }
    )  # fmt: skip
    return random_encoder(config, size)


def artifact_of(encoder: Encoder, folder: Path, precision: str) -> Artifact:
    folder.mkdir(parents=True)
    checkpoint = Checkpoint(encoder, tiny_tokenizer_json(), max_tokens=LONGEST, source={})
    write_unproved(checkpoint, folder, precision=precision, token_states=True)
    return open_artifact(folder)


@pytest.fixture(scope="session")
def encoders() -> dict[int, Encoder]:
    return {head: encoder_of(head) for head in HEADS}


@pytest.fixture(scope="session")
def artifacts(encoders, tmp_path_factory) -> dict[tuple[int, str], Artifact]:
    folder = tmp_path_factory.mktemp("artifacts")
    wanted = [(32, "fp16"), (32, "compact"), (64, "fp32"), (128, "fp16")]
    return {
        (head, precision): artifact_of(encoders[head], folder / f"{head}-{precision}", precision)
        for head, precision in wanted
    }


@pytest.fixture(scope="session")
def weights(artifacts) -> EncoderWeights:
    return read_weights(artifacts[32, "fp16"])


@pytest.fixture(scope="session")
def batch() -> TokenBatch:
    rng = np.random.default_rng(0)
    return TokenBatch.pad(
        [np.concatenate([[0], rng.integers(4, 900, n - 2), [2]]) for n in LENGTHS], pad_id=1
    )


@pytest.fixture(scope="session")
def few(batch) -> TokenBatch:
    return TokenBatch.pad([s[:33] for s in batch.sequences[:4]], 1)


def original(encoder: Encoder, batch: TokenBatch) -> tuple[np.ndarray, np.ndarray]:
    """Torch's fp32 vectors and, end to end, token states."""
    ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
    with torch.inference_mode():
        states = encoder.token_states(ids, mask)
        return encoder.sentence_vector(states, mask).numpy(), states[mask.bool()].numpy()


def loaded(weights: EncoderWeights, gpu: Gpu, **options) -> CudaEncoder:
    options = {"mean_pooling": True, "normalise": True, **options}
    return CudaEncoder(weights, libraries=gpu.libraries, **options)


@pytest.mark.parametrize(("head", "precision"), [(32, "fp16"), (64, "fp32"), (128, "fp16")])
def test_vectors_and_states_are_torchs(artifacts, encoders, gpus, batch, head, precision):
    engine = loaded(read_weights(artifacts[head, precision]), gpus[head])
    expected, expected_states = original(encoders[head], batch)
    assert (engine.run(batch.tokens, batch.lengths) * expected).sum(1).min() > 0.99999
    states = engine.token_states(batch.tokens, batch.lengths)
    assert states.dtype == np.float32
    assert np.abs(states - expected_states).max() < 0.02


@pytest.mark.parametrize(
    ("options", "pooling"),
    [
        ({"pooling": "first_token"}, False),
        ({"pooling": "first_token", "head": 48}, False),
        ({"normalise": False}, True),
        ({"head": 48, "normalise": False}, True),
    ],
)
def test_every_way_to_end(tmp_path, gpus, batch, options, pooling):
    encoder = encoder_of(32, **options)
    read = read_weights(artifact_of(encoder, tmp_path / "a", "fp32"))
    normalise = options.get("normalise", True)
    engine = loaded(read, gpus[32], mean_pooling=pooling, normalise=normalise)
    vectors, (expected, _) = engine.run(batch.tokens, batch.lengths), original(encoder, batch)
    assert vectors.shape == expected.shape
    assert np.abs(vectors - expected).max() < 0.005


def test_alone_as_in_any_batch(weights, gpus, batch):
    engine = loaded(weights, gpus[32])
    together = engine.run(batch.tokens, batch.lengths)
    order = np.random.default_rng(1).permutation(len(batch.sequences))
    shuffled = TokenBatch.pad([batch.sequences[i] for i in order], 1)
    assert np.array_equal(engine.run(shuffled.tokens, shuffled.lengths), together[order])
    alone = [engine.run(ids, np.array([len(ids)], np.int32))[0] for ids in batch.sequences]
    assert np.array_equal(np.array(alone), together)


def test_one_text_is_recorded_once_for_all_about_as_long(weights, gpus, batch):
    """And again where memory has moved, which a graph of before would not know."""
    engine, recorded = loaded(weights, gpus[32]), gpus[32].recorded
    whole = engine.run(batch.tokens, batch.lengths)

    def one(row: int, length: int | None = None) -> np.ndarray:
        ids = batch.sequences[row][:length]
        return engine.run(ids, np.array([len(ids)], np.int32))[0]

    before = recorded()
    assert np.array_equal(one(0), whole[0]) and recorded() == before + 1  # 3 tokens
    assert np.array_equal(one(2), whole[2]) and np.array_equal(one(10), whole[10])  # 4 and 16
    assert recorded() == before + 1
    for row in (4, 1, 8, 4, 1, 8):  # 33, 100 and 128 tokens
        assert np.array_equal(one(row), whole[row])
    assert recorded() == before + 4, "33, 100 and 128 tokens each"
    many = TokenBatch.pad([*batch.sequences] * 3, 1)
    engine.run(many.tokens, many.lengths)
    assert np.array_equal(one(0), whole[0]) and recorded() == before + 5
    assert np.array_equal(engine.token_states(batch.tokens, batch.lengths).shape, (530, 64))


@pytest.mark.parametrize(
    "name", ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"]
)
def test_what_cannot_be_recorded_is_run_kernel_by_kernel(weights, gpu, batch, name):
    ids = batch.sequences[2]
    length = np.array([len(ids)], np.int32)
    expected, alive = loaded(weights, gpu).run(ids, length), gpu.alive()
    gpu.fails(name)
    engine = loaded(weights, gpu)
    for _ in range(2):
        assert np.array_equal(engine.run(ids, length), expected)
    del engine
    assert gpu.alive() == alive


@pytest.mark.parametrize("name", ["cuGraphLaunch", "cublasLtMatmul"])
def test_one_text_that_fails_is_an_error_and_not_the_end(weights, gpu, batch, name):
    engine, ids = loaded(weights, gpu), batch.sequences[1]
    length = np.array([len(ids)], np.int32)
    gpu.fails(name)
    with pytest.raises(RuntimeError, match=r"a recorded graph: the test|a product"):
        engine.run(ids, length)
    gpu.heal()
    assert np.array_equal(engine.run(ids, length), loaded(weights, gpu).run(ids, length))


def test_several_threads_at_once(weights, gpus, few):
    engine = loaded(weights, gpus[32])
    expected = [engine.run(ids, np.array([len(ids)], np.int32)) for ids in few.sequences]
    found: dict[int, list[np.ndarray]] = {}

    def work(thread: int) -> None:
        found[thread] = [engine.run(s, np.array([len(s)], np.int32)) for s in few.sequences]

    threads = [threading.Thread(target=work, args=[i]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[i], expected) for i in range(4))


def test_nothing_is_nothing(weights, gpus):
    engine = loaded(weights, gpus[32])
    assert engine.run(np.empty(0, np.int64), np.empty(0, np.int32)).shape == (0, 64)


@pytest.mark.parametrize(
    ("ids", "lengths", "said"),
    [
        ([3, 2474], [2], r"token 1: expected an id below 2474, got 2474"),
        ([-1], [1], "token 0: expected an id below 2474, got -1"),
        ([3] * 129, [129], "sequence 0: expected 1 to 128 tokens, got 129"),
        ([3], [1, 0], "sequence 1: expected 1 to 128 tokens, got 0"),
        ([3], [2, -1], "sequence 1: expected 1 to 128 tokens, got -1"),
        ([3], [-1], "lengths add up to -1 tokens"),
        ([3], [2**20], "lengths add up to 1048576 tokens; one call takes 0 to 1048575"),
    ],
)
def test_what_the_model_does_not_have_is_refused(weights, gpus, ids, lengths, said):
    engine = loaded(weights, gpus[32])
    with pytest.raises(IndexError, match=said):
        engine.run(np.array(ids, np.int64), np.array(lengths, np.int32))
    assert engine.run(np.array([3], np.int64), np.array([1], np.int32)).shape == (1, 64)


def test_buffers_of_other_sizes_are_refused(weights, gpus):
    engine = loaded(weights, gpus[32])
    with pytest.raises(ValueError, match="expected a buffer of 16 bytes, got 8"):
        engine.run(np.array([3], np.int64), np.array([2], np.int32))


FAILURES = {
    "cuInit": "CUDA: the test said so",
    "cuDeviceGetCount": "there is no GPU",
    "cuDevicePrimaryCtxRetain": "the first GPU: the test said so",
    "cuModuleLoadData": "the kernels: the test said so",
    "cuMemAlloc_v2": r"GPU memory for weights, 0 MiB: the test said so \(2\)",
    "cuMemAllocHost_v2": "memory for copies: the test said so",
    "cuStreamCreate": "stream: the test said so",
    "cuEventCreate": "event: the test said so",
    "nvrtcCompileProgram": "NVRTC does not compile for a CPU that stands for a GPU .*it is no source",
    "nvrtcGetCUBIN": "NVRTC failed with status 3",
    "cuLaunchKernel": r"a kernel: the test said so \(700\)",
    "cublasLtCreate": "cuBLAS failed with status 1",
    "cublasLtMatrixLayoutCreate": "a matrix's layout failed with status 3",
    "cublasLtMatmul": "a product failed with status 14",
    "cublasLtMatmulAlgoGetHeuristic": "cuBLAS has no product of this shape",
    "cuMemcpyDtoHAsync_v2": r"copying vectors: the test said so \(719\)",
}


@pytest.mark.parametrize("name", list(FAILURES))
def test_what_cannot_compute_is_known_at_load_and_leaves_nothing_behind(weights, gpu, few, name):
    """Whichever of its calls it is that fails."""
    before = loaded(weights, gpu)
    expected = before.run(few.tokens, few.lengths)
    alive = gpu.alive()
    gpu.fails(name)
    with pytest.raises(RuntimeError, match=FAILURES[name]):
        loaded(weights, gpu)
    later = 0
    while later < 40:  # and a later one of the same calls
        later += 3
        gpu.fails(name, later)
        try:
            loaded(weights, gpu)
        except RuntimeError:
            continue
        break
    gpu.heal()
    assert (gpu.alive(), gpu.contexts_left()) == (alive, 0)
    assert np.array_equal(before.run(few.tokens, few.lengths), expected)
    assert np.array_equal(loaded(weights, gpu).run(few.tokens, few.lengths), expected)
    assert gpu.alive() == alive


def test_a_gpu_that_stops_is_an_error(weights, gpu, few):
    engine = loaded(weights, gpu)
    expected = engine.run(few.tokens, few.lengths)
    gpu.fails("cuStreamSynchronize")
    with pytest.raises(RuntimeError, match=r"the GPU's work: the test said so \(719\)"):
        engine.run(few.tokens, few.lengths)
    gpu.heal()
    assert np.array_equal(engine.run(few.tokens, few.lengths), expected)


def test_memory_that_others_hold_idle_is_taken_before_giving_up(weights, gpu, batch, few):
    engine = loaded(weights, gpu)
    expected = engine.run(batch.tokens, batch.lengths)
    many = TokenBatch.pad([*batch.sequences] * 2, 1)
    gpu.fails("cuMemAlloc_v2", 0)
    with pytest.raises(RuntimeError, match="GPU memory of 0 MiB: the test said so"):
        engine.run(many.tokens, many.lengths)
    gpu.heal()
    found = engine.run(many.tokens, many.lengths)
    assert np.array_equal(found[: len(expected)], expected)


def test_nor_does_a_graph_know_memory_that_has_moved_before_the_rest_was_refused(
    weights, gpu, batch, few
):
    engine, ids = loaded(weights, gpu), batch.sequences[1]
    one = engine.run(ids, np.array([len(ids)], np.int32))
    expected = loaded(weights, gpu).run(batch.tokens, batch.lengths)
    before = gpu.recorded()
    gpu.fails("cuMemAlloc_v2", after=3, times=1)
    assert np.array_equal(engine.run(batch.tokens, batch.lengths), expected)
    assert np.array_equal(engine.run(ids, np.array([len(ids)], np.int32)), one)
    assert gpu.recorded() == before + 1


def test_a_failure_in_the_middle_leaves_nothing_behind(weights, gpu, few):
    engine = loaded(weights, gpu)
    expected = engine.run(few.tokens, few.lengths)
    for after in range(9):
        gpu.fails("cuLaunchKernel", after)
        with pytest.raises(RuntimeError, match="a kernel"):
            while True:
                engine.run(few.tokens, few.lengths)
        gpu.heal()
        assert np.array_equal(engine.run(few.tokens, few.lengths), expected)


def test_an_old_gpu_is_refused(weights, gpu):
    gpu.be_version(7)
    with pytest.raises(RuntimeError, match=r"compute capability 8\.0 or more, a CPU .* has 7\.0"):
        loaded(weights, gpu)


def test_it_compiles_for_the_gpu_at_hand(weights, gpu):
    loaded(weights, gpu)
    assert gpu.options().decode().split() == [
        "--gpu-architecture=sm_90", "-std=c++17", "-DHIDDEN=64", "-DHEAD=32",
    ]  # fmt: skip


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_120"])
@pytest.mark.parametrize(("head", "hidden"), [(32, 384), (64, 1024), (128, 256)])
def test_nvidias_compiler_takes_the_kernels(architecture, head, hidden):
    """Without spilling registers to memory, which would make them slow."""
    nvrtc = ctypes.CDLL(Libraries.found().compiler)
    program = ctypes.c_void_p()
    source = KERNELS.read_bytes()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernels.cu", 0, None, None)
    given = [
        f"--gpu-architecture={architecture}", "-std=c++17", f"-DHIDDEN={hidden}",
        f"-DHEAD={head}", "--ptxas-options=-v",
    ]  # fmt: skip
    options = (ctypes.c_char_p * len(given))(*(option.encode() for option in given))
    status = nvrtc.nvrtcCompileProgram(program, len(given), options)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    said = log.value.decode()
    assert status == 0, said
    assert said.count("0 bytes spill stores, 0 bytes spill loads") == 4, said


def test_weights_that_fp16_does_not_have_are_refused(weights, gpus):
    for wrong in (70_000, np.nan, np.inf):
        layer = weights.layers[1]
        matrix = layer.widen.matrix.copy()
        matrix[3, 5] = wrong
        changed = replace(layer, widen=replace(layer.widen, matrix=matrix))
        with pytest.raises(ValueError, match="product 2 of layer 1 has numbers beyond fp16's"):
            loaded(replace(weights, layers=[weights.layers[0], changed]), gpus[32])


def test_a_model_that_fp16_cannot_compute_is_refused_at_load(weights, gpus):
    norm = weights.embedding_norm
    huge = replace(norm, weight=norm.weight * 1e8)
    with pytest.raises(ValueError, match="fp16 does not hold what this model computes"):
        loaded(replace(weights, embedding_norm=huge), gpus[32])


def test_heads_that_the_kernels_do_not_take_are_refused(weights, gpus):
    with pytest.raises(ValueError, match="heads of 32, 64 or 128 components, got 16"):
        loaded(replace(weights, heads=4), gpus[32])


def test_missing_libraries_are_named(weights, gpus, tmp_path):
    there = gpus[32].libraries
    for kind in ("driver", "compiler", "products"):
        with pytest.raises(RuntimeError, match=f"no-{kind}"):
            loaded(weights, _Elsewhere(replace(there, **{kind: str(tmp_path / f"no-{kind}")})))
    empty = tmp_path / "empty.so"
    (tmp_path / "empty.c").write_text("int nothing;")
    subprocess.run(["g++", "-shared", "-x", "c", tmp_path / "empty.c", "-o", empty], check=True)
    with pytest.raises(RuntimeError, match=r"empty\.so has no cublasLtCreate; is it older"):
        loaded(weights, _Elsewhere(replace(there, products=str(empty))))


class _Elsewhere:
    def __init__(self, libraries: Libraries):
        self.libraries = libraries


@pytest.fixture
def on_gpu(gpu, monkeypatch) -> Gpu:
    """As if the libraries of CUDA were there."""
    monkeypatch.setattr(Libraries, "found", classmethod(lambda cls: gpu.libraries))
    return gpu


@pytest.mark.parametrize("precision", ["fp16", "compact"])
def test_a_session_takes_it(artifacts, encoders, on_gpu, batch, precision):
    taken = Session(artifacts[32, precision], device="cuda")
    assert (taken.engine, taken.arithmetic, taken.reason) == ("cuda", "fp16", "")
    assert not taken.pads and taken.streams == 2
    expected, states = original(encoders[32], batch)
    if precision == "compact":  # as far from the original as its 8 bits are: as on a CPU
        plain = Session(artifacts[32, precision], engine="onnxruntime")
        expected, states = plain.run(batch), plain.token_states(batch)[batch.mask.astype(bool)]
    assert (taken.run(batch) * expected).sum(1).min() > 0.9999
    rectangle = taken.token_states(batch)
    assert rectangle.shape == (len(LENGTHS), LONGEST, 64)
    assert np.abs(rectangle[batch.mask.astype(bool)] - states).max() < 0.01


def test_texts_come_out_as_under_onnx_runtime(artifacts, on_gpu):
    path = artifacts[32, "fp16"].path
    texts = [text for lang in ("ja", "ar") for text in parallel_pairs(lang)[0][:8]]
    expected = encode(OnnxEncoder(path, engine="onnxruntime"), texts)
    engine = OnnxEncoder(path, device="cuda", engine="cuda")
    assert engine.engine == "cuda, fp16"
    assert (encode(engine, texts) * expected).sum(1).min() > 0.9999


def test_the_default_model_as_it_is(tmp_path, monkeypatch):
    """Its 8-bit weights in fp16 and its 4-bit tokens, beside ONNX Runtime's fp32 of them."""
    assert build(tmp_path / "default.so", 32, 12).wait() == 0
    libraries = Gpu(tmp_path / "default.so").libraries
    monkeypatch.setattr(Libraries, "found", classmethod(lambda cls: libraries))
    engine = OnnxEncoder(DEFAULT_MODEL, device="cuda")
    assert engine.engine == "cuda, fp16"
    texts = [parallel_pairs(lang)[0][i] for i, lang in enumerate(("fi", "ja", "ar", "de"))]
    expected = encode(OnnxEncoder(DEFAULT_MODEL, engine="onnxruntime"), texts)
    assert (encode(engine, texts) * expected).sum(1).min() > 0.9999


def test_a_gpu_that_fails_is_an_engine_error(artifacts, on_gpu, few):
    taken = Session(artifacts[32, "fp16"], device="cuda")
    on_gpu.fails("cuLaunchKernel", 3)
    for run in (taken.run, taken.token_states):
        with pytest.raises(EngineError, match="inference failed on 4 texts: a kernel: the test"):
            run(few)


def test_a_renewed_session_computes_as_before_or_not_at_all(artifacts, on_gpu):
    encoder = OnnxEncoder(artifacts[32, "compact"].path, device="cuda")
    before = encoder.session
    on_gpu.fails("cuMemAlloc_v2")
    with pytest.raises(
        DeviceUnavailable, match="engine cuda cannot be used: GPU memory for weights"
    ):
        encoder.renew()
    assert encoder.session is before
    on_gpu.heal()
    encoder.renew()
    assert encoder.session is not before and encoder.session.engine == "cuda"


def test_fp32_is_not_promised_by_fp16(tmp_path, encoders, on_gpu):
    artifact = artifact_of(encoders[32], tmp_path / "a", "fp32")
    with pytest.raises(
        DeviceUnavailable, match="in fp16, which artifacts of precision fp32 do not"
    ):
        Session(artifact, device="cuda", engine="cuda")
    with pytest.raises(
        DeviceUnavailable, match=r"asked for.*; our own engine: it computes in fp16"
    ):
        Session(artifact, device="cuda")


def test_it_is_for_gpus_and_the_others_are_not(artifacts):
    artifact = artifacts[32, "fp16"]
    with pytest.raises(DeviceUnavailable, match="engine cuda runs on cuda, and the device is cpu"):
        Session(artifact, device="cpu", engine="cuda")
    with pytest.raises(DeviceUnavailable, match="engine avx2 runs on cpu, and the device is cuda"):
        Session(artifact, device="cuda", engine="avx2")


def test_without_the_extension(artifacts, monkeypatch):
    monkeypatch.setattr(cuda, "NOT_BUILT", "the GPU engine was not built (no compiler)")
    with pytest.raises(DeviceUnavailable, match=r"our own engine: the GPU engine was not built"):
        Session(artifacts[32, "fp16"], device="cuda")


def test_graphs_it_does_not_know_are_onnx_runtimes(artifacts, on_gpu, monkeypatch):
    def unknown(artifact: Artifact) -> EncoderWeights:
        raise session.UnknownGraph("another layer")

    monkeypatch.setattr(session, "read_weights", unknown)
    made = []

    class Made:
        packed = True

        def __init__(self, *_: object, **options: object):
            made.append(options["device"])

    monkeypatch.setattr(session, "OnnxRuntime", Made)
    taken = Session(artifacts[32, "fp16"], device="cuda")
    assert made == ["cuda"] and taken.engine == "onnxruntime" and taken.reason == "another layer"
    with pytest.raises(DeviceUnavailable, match="engine cuda cannot be used: another layer"):
        Session(artifacts[32, "fp16"], device="cuda", engine="cuda")


def test_libraries_of_pip_are_found(tmp_path, monkeypatch):
    folder = tmp_path / "nvidia" / "cu13" / "lib"
    folder.mkdir(parents=True)
    (tmp_path / "nvidia" / "cublas" / "lib").mkdir(parents=True)
    (tmp_path / "nvidia" / "cublas" / "lib" / "libcublasLt.so.12").touch()
    monkeypatch.setattr(cuda.sys, "path", [str(tmp_path)])
    assert Libraries.found() == Libraries(
        "libcuda.so.1", "libnvrtc.so.13",
        str(tmp_path / "nvidia" / "cublas" / "lib" / "libcublasLt.so.12"),
    )  # fmt: skip
    (folder / "libcublasLt.so.13").touch()
    assert Libraries.found().products == str(folder / "libcublasLt.so.13")


def attention_bias(graph: Graph) -> Graph:
    return changed(
        graph, "MultiHeadAttention", lambda o: {"inputs": (*o.inputs[:3], "b", *o.inputs[4:])}
    )


def attention_mask(graph: Graph) -> Graph:
    def more(o: Operator) -> dict[str, object]:
        return {"inputs": (*o.inputs, *[""] * (5 - len(o.inputs)), "mask")}

    return changed(graph, "MultiHeadAttention", more)


def attention_scale(graph: Graph) -> Graph:
    return changed(graph, "MultiHeadAttention", lambda o: {"numbers": {**o.numbers, "scale": 3.0}})


def other_epsilon(graph: Graph) -> Graph:
    return changed(
        graph, "LayerNormalization", lambda o: {"numbers": {**o.numbers, "epsilon": 0.5}}
    )


def keys_for_values(graph: Graph) -> Graph:
    def swapped(o: Operator) -> dict[str, object]:
        return {"inputs": (o.inputs[0], o.inputs[2], o.inputs[1], *o.inputs[3:])}

    return changed(graph, "MultiHeadAttention", swapped)


def bias_of_nothing(graph: Graph) -> Graph:
    attention = next(o for o in graph.operators if o.kind == "MultiHeadAttention")
    norm = next(o for o in graph.operators if o.kind == "LayerNormalization").outputs[0]

    def alone(o: Operator) -> dict[str, object]:
        return {"inputs": (norm, *(name for name in o.inputs if name in graph.weights))}

    return changed(graph, "Add", alone, only=attention.inputs[0])


def earlier_states(graph: Graph) -> Graph:
    """What is pooled comes of the first normalisation, not of the last."""
    norms = [o.outputs[0] for o in graph.operators if o.kind == "LayerNormalization"]

    def before(o: Operator) -> dict[str, object]:
        return {"inputs": tuple(norms[0] if name == norms[-1] else name for name in o.inputs)}

    return changed(graph, "Cast", before)


def changed(
    graph: Graph, kind: str, change: Callable[[Operator], dict[str, Any]], only: str = ""
) -> Graph:
    """With the last operator of a kind, or the one that gives `only`, changed; all of them for Cast."""
    chosen = [o for o in graph.operators if o.kind == kind and (not only or only in o.outputs)]
    chosen = chosen if kind == "Cast" else chosen[-1:]
    operators = [
        replace(o, **change(o)) if any(o is c for c in chosen) else o for o in graph.operators
    ]
    return replace(graph, operators=operators)


@pytest.mark.parametrize(
    "change",
    [
        attention_bias, attention_mask, attention_scale, other_epsilon, keys_for_values,
        bias_of_nothing, earlier_states,
    ],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_what_is_not_computed_is_refused(artifacts, monkeypatch, change):
    artifact = artifacts[32, "fp16"]
    graph = change(read_graph(artifact.model))
    monkeypatch.setattr(mexma.weights, "read_graph", lambda path: graph)
    with pytest.raises(session.UnknownGraph):
        read_weights(artifact)


def test_a_damaged_graph_is_refused(artifacts, monkeypatch):
    artifact = artifacts[32, "fp16"]
    changed = replace(
        artifact,
        manifest=replace(
            artifact.manifest, architecture={**artifact.manifest.architecture, "heads": 4}
        ),
    )
    with pytest.raises(ArtifactError, match="attention heads: expected 4, found 2"):
        read_weights(changed)
