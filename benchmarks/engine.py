"""The engine beside its peers, ids in and normalised vectors out: `python -m benchmarks.engine`.

    default   the default model's own weights (12 layers of 384)
    large     XLM-R large's shape (24 layers of 1024) with random weights and a table of 32,000 tokens

Peers get what sentence-transformers does with a list of texts: sorted by length, 32 a batch (16 for the large
shape), each padded to its longest. The native engine gets the same sequences sorted the same way,
512 a call, without padding. All run once before anything is timed, and their vectors are compared with torch
fp32's. Rounds are interleaved; the table gives medians over rounds, and ratios within each round.

sentence-transformers reaches OpenVINO through optimum-intel, which needs an older transformers; the model is
converted by OpenVINO itself here (`openvino.convert_model` on the same torch module, as optimum-intel does).

Peers come from the package index and are no dependency of the project:
`pip install torch transformers openvino ctranslate2 onnxruntime tokenizers tqdm matplotlib`
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from transformers import XLMRobertaConfig, XLMRobertaModel

from benchmarks.circumstances import circumstances, result_file
from mexma.artifact import open_artifact
from mexma.native import NativeEncoder, kernels
from mexma.session import Session
from mexma.text import TokenBatch
from mexma.weights import EncoderWeights, Layer, Linear, Norm, Table, read_weights
from model_export.blocks import in_blocks

DEFAULT = Path(__file__).resolve().parent.parent / "models" / "default"
PAD = 1
Run = Callable[[list[np.ndarray]], np.ndarray]


def sequences(count: int, vocabulary: int) -> list[np.ndarray]:
    """Token ids of a realistic length mix: log-normal, mean about 24 tokens, 4 to 128."""
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(3.0, 0.62, count)).astype(int), 4, 128)
    return [np.r_[0, rng.integers(4, vocabulary, n - 2), 2].astype(np.int64) for n in lengths]


def random_weights(layers: int, hidden: int, heads: int, vocabulary: int) -> EncoderWeights:
    """Weights as a fresh model's compact artifact has them, of XLM-R's shape: those of layers in 8 bits."""
    rng = np.random.default_rng(0)

    def matrix(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * np.float32(0.04)

    def linear(n: int, m: int) -> Linear:
        coded = in_blocks(np.ascontiguousarray(matrix(n, m).T), 8)
        return Linear(np.ascontiguousarray(coded.widen().T), matrix(m))

    def norm() -> Norm:
        return Norm(1 + matrix(hidden), matrix(hidden))

    return EncoderWeights(
        table=Table(matrix(vocabulary * hidden), None, 32, vocabulary),
        positions=matrix(512, hidden),
        embedding_norm=norm(),
        layers=[
            Layer(
                *(linear(hidden, hidden) for _ in range(4)),
                norm(),
                linear(hidden, 4 * hidden),
                linear(4 * hidden, hidden),
                norm(),
            )
            for _ in range(layers)
        ],
        head=None,
        heads=heads,
        norm_eps=1e-5,
    )


class Torch(torch.nn.Module):
    """transformers' XLM-R with mean pooling and normalisation, holding given weights."""

    def __init__(self, w: EncoderWeights, table: np.ndarray):
        super().__init__()
        hidden = w.positions.shape[1]
        self.model = XLMRobertaModel(
            XLMRobertaConfig(
                vocab_size=len(table), hidden_size=hidden, num_hidden_layers=len(w.layers),
                num_attention_heads=w.heads, intermediate_size=w.layers[0].widen.matrix.shape[1],
                max_position_embeddings=len(w.positions) + 2, type_vocab_size=1,
                layer_norm_eps=w.norm_eps, pad_token_id=PAD, attn_implementation="sdpa",
            ),
            add_pooling_layer=False,
        )  # fmt: skip
        state = {
            "embeddings.word_embeddings.weight": table,
            "embeddings.position_embeddings.weight": np.r_[
                np.zeros((2, hidden), np.float32), w.positions
            ],
            "embeddings.token_type_embeddings.weight": np.zeros((1, hidden), np.float32),
            **_norm("embeddings.LayerNorm", w.embedding_norm),
        }
        for i, layer in enumerate(w.layers):
            at = f"encoder.layer.{i}"
            for name, part in (
                ("attention.self.query", layer.query),
                ("attention.self.key", layer.key),
                ("attention.self.value", layer.value),
                ("attention.output.dense", layer.attention_out),
                ("intermediate.dense", layer.widen),
                ("output.dense", layer.narrow),
            ):
                state[f"{at}.{name}.weight"], state[f"{at}.{name}.bias"] = part.matrix.T, part.bias
            state |= _norm(f"{at}.attention.output.LayerNorm", layer.attention_norm)
            state |= _norm(f"{at}.output.LayerNorm", layer.output_norm)
        tensors = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in state.items()}
        self.model.load_state_dict(tensors, strict=False)
        self.eval().requires_grad_(False)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        weight = mask[:, :, None].float()
        pooled = (states * weight).sum(1) / weight.sum(1)
        return torch.nn.functional.normalize(pooled, dim=-1)


def _norm(name: str, norm: Norm) -> dict[str, np.ndarray]:
    return {f"{name}.weight": norm.weight, f"{name}.bias": norm.bias}


def padded(run: Callable[[TokenBatch], np.ndarray], size: int) -> Run:
    """As sentence-transformers does it: longest first, `size` a batch."""

    def whole(given: list[np.ndarray]) -> np.ndarray:
        order = sorted(range(len(given)), key=lambda i: -len(given[i]))
        out: list[np.ndarray] = []
        for start in range(0, len(order), size):
            out += list(run(TokenBatch.pad([given[i] for i in order[start : start + size]], PAD)))
        return np.stack(out)[np.argsort(order)]

    return whole


def torch_run(model: torch.nn.Module) -> Callable[[TokenBatch], np.ndarray]:
    def run(batch: TokenBatch) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)).numpy()

    return run


def openvino_run(model: torch.nn.Module, hint: str) -> Callable[[TokenBatch], np.ndarray]:
    import openvino as ov

    example = torch.ones((2, 7), dtype=torch.int64)
    with torch.inference_mode():
        converted = ov.convert_model(model, example_input=(example, example))
    core = ov.Core()
    threads = len(os.sched_getaffinity(0))
    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(converted, "CPU", options | {"PERFORMANCE_HINT": "LATENCY"})
    return lambda batch: compiled((batch.ids, batch.mask))[0]


def ctranslate2_run(
    model: Torch, folder: Path, precision: str
) -> Callable[[TokenBatch], np.ndarray]:
    import ctranslate2

    if not (folder / "ct2").exists():
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        vocabulary = {f"t{i}": i for i in range(model.model.config.vocab_size)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="t3"))
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            unk_token="t3",
            pad_token="t1",
            bos_token="t0",
            eos_token="t2",
        ).save_pretrained(folder / "hf")
        model.model.config.position_embedding_type = "absolute"  # its converter asks for it
        model.model.save_pretrained(folder / "hf")
        ctranslate2.converters.TransformersConverter(str(folder / "hf")).convert(folder / "ct2")
    encoder = ctranslate2.Encoder(
        str(folder / "ct2"), compute_type=precision, intra_threads=len(os.sched_getaffinity(0))
    )

    def run(batch: TokenBatch) -> np.ndarray:
        found = encoder.forward_batch([s.tolist() for s in batch.sequences])
        states = np.asarray(found.last_hidden_state)
        pooled = (states * batch.mask[:, :, None]).sum(1) / batch.mask.sum(1, keepdims=True)
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)

    return run


def native_run(weights: EncoderWeights, kernel: str) -> Run:
    threads = len(os.sched_getaffinity(0))
    encoder = NativeEncoder(
        weights, kernel=kernel, threads=threads, mean_pooling=True, normalise=True
    )

    def whole(given: list[np.ndarray]) -> np.ndarray:
        order = sorted(range(len(given)), key=lambda i: -len(given[i]))
        out = []
        for start in range(0, len(order), 512):
            part = [given[i] for i in order[start : start + 512]]
            lengths = np.array([len(s) for s in part], np.int32)
            out.append(encoder.run(np.concatenate(part), lengths))
        return np.concatenate(out)[np.argsort(order)]

    return whole


@contextmanager
def priority(real_time: bool) -> Iterator[None]:
    """All threads of this process before any other's, where asked for and allowed."""

    def schedule(policy: int, level: int) -> None:
        for thread in Path("/proc/self/task").iterdir():
            try:
                os.sched_setscheduler(int(thread.name), policy, os.sched_param(level))
            except ProcessLookupError:
                continue

    if real_time:
        schedule(os.SCHED_FIFO, 1)
    try:
        yield
    finally:
        if real_time:
            schedule(os.SCHED_OTHER, 0)


def peers(shape: str, wanted: set[str]) -> tuple[Torch, EncoderWeights, dict[str, Run], int, float]:
    """torch's module, weights, what runs by name, batch size, useful operations for each token."""
    artifact = open_artifact(DEFAULT)
    if shape == "default":
        weights, size = read_weights(artifact), 32
        kind = weights.table
        codes = kind.codes.reshape(kind.rows, -1)
        wide = np.stack([codes & 15, codes >> 4], -1).reshape(kind.rows, -1).astype(np.float32) - 8
        table = wide * np.repeat(kind.scales.reshape(kind.rows, -1).astype(np.float32), 32, 1)
    else:
        weights, size = random_weights(24, 1024, 16, 32_000), 16
        table = weights.table.codes.reshape(32_000, -1)
    hidden, wide_by = weights.positions.shape[1], weights.layers[0].widen.matrix.shape[1]
    operations = 2.0 * len(weights.layers) * (4 * hidden**2 + 2 * hidden * wide_by)
    model = Torch(weights, table)
    folder = Path(tempfile.mkdtemp())
    makers: dict[str, Callable[[], Run]] = {
        f"native {k.name} ({k.arithmetic})": lambda k=k: native_run(weights, k.name)
        for k in kernels()
        if not k.missing and k.name != "portable"
    }
    makers |= {
        "torch fp32": lambda: padded(torch_run(model), size),
        "torch bf16": lambda: padded(torch_run(_bf16(weights, table)), size),
        "OpenVINO fp32": lambda: padded(openvino_run(model, "f32"), size),
        "OpenVINO bf16": lambda: padded(openvino_run(model, "bf16"), size),
        "CTranslate2 fp32": lambda: padded(ctranslate2_run(model, folder, "float32"), size),
        "CTranslate2 int8": lambda: padded(ctranslate2_run(model, folder, "int8"), size),
    }
    if shape == "default":
        session = Session(artifact, engine="onnxruntime")
        makers["ONNX Runtime fp32"] = lambda: padded(session.run, size)
    runs = {}
    for name, make in makers.items():
        if wanted and not any(w in name for w in wanted):
            continue
        try:
            runs[name] = make()
        except Exception as error:  # noqa: BLE001 - a peer that is not there is left out, and said
            print(f"{name} cannot run here: {type(error).__name__}: {error}", flush=True)
    return model, weights, runs, size, operations


def _bf16(weights: EncoderWeights, table: np.ndarray) -> torch.nn.Module:
    model = Torch(weights, table)
    model.model.bfloat16()
    return model


def bf16_product_rate(weights: EncoderWeights, tokens: int = 1024) -> float:
    """What oneDNN's bf16 products reach at the model's shapes through torch, operations/s."""
    layer = weights.layers[0]
    shapes = [layer.query.matrix.shape] * 4 + [layer.widen.matrix.shape, layer.narrow.matrix.shape]
    pairs = [
        (torch.randn(tokens, n).bfloat16(), torch.randn(m, n).bfloat16(), torch.zeros(m).bfloat16())
        for n, m in shapes
    ]
    best = 0.0
    with torch.inference_mode():
        for _ in range(6):
            started = time.perf_counter()
            for _ in range(8):
                for x, w, b in pairs:
                    torch.nn.functional.linear(x, w, b)
            done = 8 * sum(2.0 * tokens * n * m for n, m in shapes)
            best = max(best, done / (time.perf_counter() - started))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=("default", "large"))
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", nargs="*", default=[], help="only those whose names hold these")
    parser.add_argument(
        "--real-time",
        action="store_true",
        help="run each measurement before other processes, with pauses: for a shared machine, as root",
    )
    a = parser.parse_args()
    model, weights, runs, size, operations = peers(a.shape, set(a.peers))
    given = sequences(a.texts, weights.table.rows)
    tokens = sum(map(len, given))
    expected = padded(torch_run(model), size)(given).astype(np.float64)
    fidelity = {}
    for name, run in runs.items():
        found = run(given).astype(np.float64)
        alone = np.concatenate([run([s]) for s in given[:: max(1, len(given) // 16)]])
        batched = found[:: max(1, len(given) // 16)]
        cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1)
        fidelity[name] = (cosines.min(), cosines.mean(), (alone * batched).sum(1).min())
    rates: dict[str, list[float]] = {name: [] for name in runs}
    alone_ms: dict[str, list[float]] = {name: [] for name in runs}
    products = []
    one = [next(s for s in given if len(s) == 24)]
    for _ in range(a.rounds):
        for name, run in runs.items():
            with priority(a.real_time):
                run(given[:size])
                started = time.perf_counter()
                run(given)
                rates[name].append(len(given) / (time.perf_counter() - started))
                times = []
                for _ in range(9):
                    started = time.perf_counter()
                    run(one)
                    times.append(time.perf_counter() - started)
                alone_ms[name].append(statistics.median(times) * 1000)
            time.sleep(0.5 if a.real_time else 0)
        with priority(a.real_time):
            products.append(bf16_product_rate(weights))
    native = next(iter(runs))
    rate = statistics.median(products)
    rows = []
    for name in runs:
        of = [n / p for n, p in zip(rates[native], rates[name], strict=True)]
        median = statistics.median(rates[name])
        low, mean, alone = fidelity[name]
        rows.append(
            f"| {name} | {median:.0f} | {statistics.median(of):.2f} ({min(of):.2f} to {max(of):.2f}) | "
            f"{median / len(given) * tokens * operations / 1e12:.2f} | "
            f"{median / len(given) * tokens * operations / rate * 100:.0f} % | "
            f"{statistics.median(alone_ms[name]):.2f} | {low:.6f} / {mean:.6f} | {alone:.7f} |"
        )
    report = f"""# The engine beside its peers: {a.shape}

`python -m benchmarks.engine {a.shape}`. {circumstances("torch", "transformers", "openvino", "ctranslate2", "onnxruntime")}
{len(given)} sequences of {tokens / len(given):.1f} tokens on average, {a.rounds} interleaved rounds, medians. Peers: sorted by length, {size} a
batch, padded. {"Each measurement ran at real-time priority, because the machine was shared. " if a.real_time else ""}oneDNN's bf16 products at these
shapes (1,024 tokens, through torch): {rate / 1e12:.2f} T/s in this run.

| | sentences/s | the first is faster by (range) | useful T/s | of oneDNN's rate | 24 tokens alone, ms | cosine to torch fp32, min / mean | alone against batched, min |
|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}
"""
    file = result_file(f"engine_{a.shape}")
    file.write_text(report)
    print(report)
    picture(a.shape, rates, file.with_suffix(".png"))
    print(f"written to {file}")


def picture(shape: str, rates: dict[str, list[float]], file: Path) -> None:
    """Bars of the medians beside the table."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = sorted(rates, key=lambda n: statistics.median(rates[n]))
    values = [statistics.median(rates[n]) for n in names]
    figure, axes = pyplot.subplots(figsize=(7, 0.4 * len(names) + 1))
    colours = ["#c44e52" if n.startswith("native") else "#8c8c8c" for n in names]
    axes.barh(names, values, color=colours)
    for i, value in enumerate(values):
        axes.text(value, i, f" {value:.0f}", va="center", fontsize=8)
    axes.set_xlabel("sentences/s")
    axes.set_title(f"{shape}: {os.cpu_count()} cores", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, dpi=130)


if __name__ == "__main__":
    main()
