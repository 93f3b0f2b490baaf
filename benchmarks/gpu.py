"""Parity and speed on a CUDA device, in one command; without one, the same in miniature.

    python -m benchmarks.gpu                      # random weights, XLM-R large's shape and the default's
    python -m benchmarks.gpu --checkpoint DIR     # the default's shape with trained weights

Measures, in one interleaved run, with the same sentences in the same batches: this project's
session (ONNX Runtime, fp16, fused attention), the same graph packed (no padding at all;
PackedMultiHeadAttention, which has a CUDA kernel only), torch fp16 padded with
scaled_dot_product_attention, torch fp16 packed with varlen_attn, sentence-transformers in fp16
where it is installed. Before any is timed, its vectors are compared with torch fp32's; what
misses `LEAST_COSINE` is reported, and not timed. Everything is divided by the fp16 GEMM rate
that this device shows at these shapes and at 8192 cubed.

Then searches of a million rows in the GPU's memory, beside the exact scan (`benchmarks.gpu_search`).

What is not there (CUDA, onnxruntime-gpu, faiss-gpu, sentence-transformers) is named in the table, so that
one run on a new machine says what to install. On a CPU shapes are small, precision is fp32,
nothing is kept, and times mean nothing: it is there to show that the script runs to its end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor, nn

from benchmarks import gpu_search
from benchmarks.circumstances import circumstances, result_file
from benchmarks.export_large import SHAPE as LARGE
from benchmarks.export_large import random_checkpoint
from mexma.artifact import TOKENIZER, Artifact, open_artifact
from mexma.batching import split_batches
from mexma.errors import MexmaError
from mexma.sample import tatoeba_sample
from mexma.session import Session
from mexma.text import TextTokenizer, TokenBatch
from model_export import graph
from model_export.export import export
from service.settings import DEFAULT_MODEL
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.encoder import Encoder, EncoderConfig
from training.packing import Packed, sentence_vectors, token_states

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
HALF = torch.float16 if CUDA else torch.float32
LEAST_COSINE = 0.999
ROUNDS = 5 if CUDA else 1
AT_ONCE = 2
REPLAYED_TOKENS = 32
DEFAULT = EncoderConfig(
    vocabulary=250_037, hidden=384, layers=12, heads=12, intermediate=1536, positions=514,
    first_position=2, pad_id=1, norm_eps=1e-12, pooling="mean",
)  # fmt: skip
# Sentences of one to a few tokens up to the limit: mean about 24, as users' are.
SENTENCES = 8192 if CUDA else 24

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]
Run = Callable[[list[Ids]], Vectors]


@dataclass
class Way:
    """A way to embed. run: None where it is not there, for the reason given. single_only: takes one
    sentence at a time. overlapped: seconds with `AT_ONCE` batches under way."""

    name: str
    run: Run | None
    reason: str = ""
    single_only: bool = False
    cosine: float = float("nan")
    seconds: list[float] | None = None
    overlapped: list[float] | None = None
    single_ms: float = float("nan")


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--checkpoint", help="weights for the default's shape; else random ones")
    p.add_argument("--batch-tokens", type=int, default=16_384 if CUDA else 256)
    p.add_argument("--keep", type=Path, help="folder that keeps the artifacts, to serve them")
    a = p.parse_args()
    lines = ["# Engines on a GPU", "", circumstances("torch", "onnxruntime-gpu", "onnxruntime"), ""]
    lines += [hardware(), ""]
    print("\n".join(lines), flush=True)
    trained = load_checkpoint(a.checkpoint) if a.checkpoint else None
    tokenizer_json = trained.tokenizer_json if trained else (DEFAULT_MODEL / TOKENIZER).read_bytes()
    sequences = read_sentences(tokenizer_json)
    for title, config in (("the default's shape", DEFAULT), ("XLM-R large's shape", LARGE)):
        if trained and config is DEFAULT and CUDA:
            checkpoint = trained
        else:
            checkpoint = random_checkpoint(config if CUDA else small(config), tokenizer_json)
        with nullcontext(a.keep) if a.keep else tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / ("large" if config is LARGE else "default")
            found = measure(title, checkpoint, sequences, a.batch_tokens, place)
        print("\n".join(found), flush=True)
        lines += found
    found = gpu_search.lines()
    print("\n".join(found), flush=True)
    text = "\n".join([*lines, *found]) + "\n"
    if CUDA:
        result_file("gpu", torch.cuda.get_device_name()).write_text(text)


def small(config: EncoderConfig) -> EncoderConfig:
    return replace(config, layers=2, hidden=config.heads * 8, intermediate=64)


def hardware() -> str:
    if not CUDA:
        return "CUDA: not available; a dry run in fp32 on the CPU with small shapes, times mean nothing."
    name = torch.cuda.get_device_name()
    rates = ", ".join(
        f"{m}x{k}x{n}: {gemm_rate(m, k, n) / 1e12:.0f}"
        for m, k, n in ((8192, 8192, 8192), (16384, 1024, 4096), (16384, 384, 1536))
    )
    return f"{name}, CUDA {torch.version.cuda}. fp16 GEMM through torch, TFLOP/s: {rates}."


def gemm_rate(m: int, k: int, n: int) -> float:
    """Floating-point operations a second of one product, median of 20."""
    a, b = (torch.randn(s, device=DEVICE, dtype=HALF) for s in ((m, k), (k, n)))
    times = []
    for turn in range(25):
        took = timed(lambda: a @ b)
        if turn >= 5:
            times.append(took)
    return 2 * m * k * n / statistics.median(times)


def timed(work: Callable[[], object]) -> float:
    """Seconds until `work` is done on the device too."""
    if CUDA:
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def read_sentences(tokenizer_json: bytes) -> list[Ids]:
    """Token ids of real sentences in many languages, the sample's, as often as needed."""
    tokenizer = TextTokenizer(tokenizer_json, max_tokens=512)
    texts = [s.text for s in tatoeba_sample()]
    # Some joined, so that lengths spread as in use.
    joined = [" ".join(texts[i : i + 1 + (i % 7) // 2 * (i % 5)]) for i in range(len(texts))]
    found = [t.ids for t in tokenizer.encode(joined)]
    generator = np.random.default_rng(0)
    return [found[i] for i in generator.choice(len(found), SENTENCES)]


def measure(
    title: str, checkpoint: Checkpoint, sequences: list[Ids], batch_tokens: int, folder: Path
) -> list[str]:
    """The table of one shape, in Markdown. folder: gets the artifact and a checkpoint."""
    config = checkpoint.encoder.config
    encoder = checkpoint.encoder.to(DEVICE).eval()
    lengths = [len(s) for s in sequences]
    batches = [
        [sequences[i] for i in rows]
        for rows in split_batches(lengths, max_tokens=batch_tokens, max_items=1024)
    ]
    few = sequences[:64]  # of all lengths, so that masks matter
    reference = padded(encoder)(few)
    half = Encoder(config).to(DEVICE, HALF).eval()
    half.load_state_dict(encoder.state_dict())
    ways = [
        *our_sessions(checkpoint, folder),
        packed_graph(half),
        Way("torch, padded, SDPA", padded(half)),
        Way("torch, packed, varlen_attn" if CUDA else "torch, packed", packed(half)),
        sentence_transformers(checkpoint, folder),
    ]
    for way in ways:
        if way.run is not None:
            rows = [
                i for i, s in enumerate(few) if len(s) <= REPLAYED_TOKENS or not way.single_only
            ]
            check(way, [few[i] for i in rows], reference[rows])
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for _ in range(ROUNDS + 1):  # the first warms up
            for way in ways:
                if way.run is None or way.single_only:
                    continue
                took = timed(partial(every, map, way.run, batches))
                way.seconds = [] if way.seconds is None else [*way.seconds, took]
                took = timed(partial(every, threads.map, way.run, batches))
                way.overlapped = [] if way.overlapped is None else [*way.overlapped, took]
    one = [min(sequences, key=lambda s: abs(len(s) - 24))]
    for way in ways:
        if way.run is not None:
            times = [timed(partial(way.run, one)) for _ in range(50 if CUDA else 2)]
            way.single_ms = 1000 * statistics.median(times)
    found = table(title, config, ways, lengths, batches)
    found += larger_batches(config, ways, sequences, batch_tokens)
    if CUDA:
        found += profiles(ways, batches[len(batches) // 2])
    return found


def larger_batches(
    config: EncoderConfig, ways: Sequence[Way], sequences: list[Ids], batch_tokens: int
) -> list[str]:
    """The share of the GEMM peak again, as batches grow."""
    lengths = [len(s) for s in sequences]
    operations = sum(flops(config, n) for n in lengths)
    peak = gemm_rate(8192, 8192, 8192) if CUDA else float("nan")
    sizes = [batch_tokens * factor for factor in (1, 2, 4)]
    there = [way for way in ways if way.run is not None and not way.single_only]
    lines = [
        f"% of the GEMM peak with batches of so many tokens, {AT_ONCE} at once:", "",
        "| | " + " | ".join(f"{size:,}" for size in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]  # fmt: skip
    shares: dict[str, list[str]] = {way.name: [] for way in there}
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for size in sizes:
            split = split_batches(lengths, max_tokens=size, max_items=size // 16)
            batches = [[sequences[i] for i in rows] for rows in split]
            for way in there:
                assert way.run is not None
                work = partial(every, threads.map, way.run, batches)
                times = [timed(work) for _ in range(4 if CUDA else 1)]
                share = operations / statistics.median(times[-3:]) / peak
                shares[way.name].append(f"{share:.0%}" if CUDA else "-")
    return [*lines, *(f"| {name} | {' | '.join(row)} |" for name, row in shares.items()), ""]


def every(over: Callable[..., Iterable[Vectors]], run: Run, batches: list[list[Ids]]) -> None:
    for _ in over(run, batches):
        pass


def profiles(ways: Sequence[Way], batch: list[Ids]) -> list[str]:
    """Where the device's time goes in one batch: kernels by their share, for each way."""
    lines = [f"Kernels by their share of the device's time, a batch of {len(batch)} sentences:", ""]
    for way in ways:
        if way.run is None or way.single_only:
            continue
        kinds = torch.profiler.ProfilerActivity
        try:
            with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA]) as profiler:
                way.run(batch)
                torch.cuda.synchronize()
        except Exception as error:  # noqa: BLE001  the rest goes on
            lines.append(f"- {way.name}: not profiled: {str(error)[:160]}")
            continue
        spent: Counter[str] = Counter()
        for event in profiler.events() or ():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                spent[event.name] += event.time_range.elapsed_us()
        whole = sum(spent.values()) or 1
        told = ", ".join(f"{name[:60]} {us / whole:.0%}" for name, us in spent.most_common(9))
        lines.append(f"- {way.name}: {whole / 1000:.2f} ms; {told}")
    return [*lines, ""]


def check(way: Way, few: list[Ids], reference: Vectors) -> None:
    """Compare with fp32; what fails or misses the bound is named and dropped."""
    assert way.run is not None
    try:
        found = way.run(few)
    except Exception as error:  # noqa: BLE001  a peer may fail in any way, the others go on
        way.run, way.reason = None, f"failed: {type(error).__name__}: {str(error)[:160]}"
        return
    cosines = (found * reference).sum(1) / (
        np.linalg.norm(found, axis=1) * np.linalg.norm(reference, axis=1)
    )
    way.cosine = float(cosines.min())
    if not way.cosine >= LEAST_COSINE:
        way.run, way.reason = None, f"least cosine to fp32 {way.cosine:.5f}, not timed"


def table(
    title: str,
    config: EncoderConfig,
    ways: Sequence[Way],
    lengths: list[int],
    batches: list[list[Ids]],
) -> list[str]:
    operations = sum(flops(config, n) for n in lengths)
    padding = 1 - sum(lengths) / sum(len(b) * max(map(len, b)) for b in batches)
    peak = gemm_rate(8192, 8192, 8192) if CUDA else float("nan")
    lines = [
        f"## {title}: {config.layers} x {config.hidden}", "",
        f"{len(lengths)} sentences, {statistics.fmean(lengths):.1f} tokens at the mean (longest "
        f"{max(lengths)}), {len(batches)} batches, {100 * padding:.0f} % of a padded batch is "
        f"padding; median of {ROUNDS} interleaved rounds.", "",
        f"| | least cosine to fp32 | sentences/s | {AT_ONCE} batches at once | % of the GEMM peak | {AT_ONCE} at once, % | one sentence, ms |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for way in ways:
        if way.run is None or not (way.single_only or way.seconds):
            lines.append(f"| {way.name} | {way.reason or 'not available'} | | | | | |")
            continue
        if way.single_only:
            lines.append(f"| {way.name} | {way.cosine:.6f} | | | | | {way.single_ms:.2f} |")
            continue
        assert way.seconds
        assert way.overlapped
        apart, at_once = statistics.median(way.seconds), statistics.median(way.overlapped)
        lines.append(
            f"| {way.name} | {way.cosine:.6f} | {len(lengths) / apart:,.0f} | {len(lengths) / at_once:,.0f} | "
            f"{100 * operations / apart / peak:.0f} | {100 * operations / at_once / peak:.0f} | {way.single_ms:.2f} |"
        )
    return [*lines, ""]


def flops(config: EncoderConfig, tokens: int) -> float:
    """Of one sequence: the layers' products and attention's two, a multiply-add as two."""
    h, f = config.hidden, config.intermediate
    per_token = 2 * (4 * h * h + 2 * h * f) + 4 * tokens * h
    return float(config.layers * tokens * per_token)


# The ways -----------------------------------------------------------------------------------


def padded(encoder: Encoder) -> Run:
    @torch.inference_mode()
    def run(sequences: list[Ids]) -> Vectors:
        batch = TokenBatch.pad(sequences, encoder.config.pad_id)
        ids, mask = (
            torch.from_numpy(x).to(DEVICE, non_blocking=True) for x in (batch.ids, batch.mask)
        )
        found: Vectors = encoder(ids, mask).float().cpu().numpy()
        return found

    return run


def packed(encoder: Encoder) -> Run:
    @torch.inference_mode()
    def run(sequences: list[Ids]) -> Vectors:
        batch = Packed.of(sequences).to(DEVICE)
        pooled = sentence_vectors(encoder, token_states(encoder, batch), batch)
        found: Vectors = nn.functional.normalize(pooled, dim=-1).cpu().numpy()
        return found

    return run


def our_sessions(checkpoint: Checkpoint, folder: Path) -> list[Way]:
    """What the service runs, on this device and, for the parity of one file on both, on the CPU."""
    precision = "fp16" if CUDA else "fp32"
    checkpoint.encoder.cpu()
    try:
        out = export(
            checkpoint, folder / "artifact", precision=precision, sentences_per_language=1
        ).path
    except MexmaError as error:
        return [Way(f"this project's session, {precision}", None, f"not exported: {error}")]
    finally:
        checkpoint.encoder.to(DEVICE)
    artifact = open_artifact(out)

    def way(device: Any) -> Way:
        name = f"this project's session, {precision}, {device}"
        try:
            session = Session(artifact, device=device)
        except MexmaError as error:
            return Way(name, None, str(error))
        return Way(name, lambda s: session.run(TokenBatch.pad(s, artifact.manifest.pad_id)))

    if not CUDA:
        return [way("cuda"), way("cpu")]
    return [way("cuda"), replayed(artifact, checkpoint.encoder.config)]


def replayed(artifact: Artifact, config: EncoderConfig) -> Way:
    """One sentence of up to `REPLAYED_TOKENS` tokens by a recorded CUDA graph, on bound inputs and output."""
    name = f"the same, a CUDA graph of 1 x {REPLAYED_TOKENS}"
    options = ort.SessionOptions()
    options.log_severity_level = 3
    provider = ("CUDAExecutionProvider", {"enable_cuda_graph": "1"})
    try:
        session = ort.InferenceSession(str(artifact.model), options, providers=[provider])
        empty = np.zeros((1, REPLAYED_TOKENS), np.int64)
        inputs = [ort.OrtValue.ortvalue_from_numpy(empty + 1, "cuda", 0) for _ in range(2)]
        output = ort.OrtValue.ortvalue_from_numpy(np.zeros((1, config.dim), np.float32), "cuda", 0)
        bound = session.io_binding()
        for key, value in zip(artifact.manifest.input_names, inputs, strict=True):
            bound.bind_ortvalue_input(key, value)
        bound.bind_ortvalue_output(artifact.manifest.output_name, output)
        for _ in range(3):
            session.run_with_iobinding(bound)
    except Exception as error:  # noqa: BLE001  the runtime's own exceptions derive from this
        return Way(name, None, f"failed: {type(error).__name__}: {str(error)[:160]}")

    def run(sequences: list[Ids]) -> Vectors:
        found = []
        for ids in sequences:
            batch = TokenBatch.pad([ids], config.pad_id)
            for value, part in zip(inputs, (batch.ids, batch.mask), strict=True):
                filled = empty + (config.pad_id if part is batch.ids else 0)
                filled[:, : part.shape[1]] = part
                value.update_inplace(filled)
            session.run_with_iobinding(bound)
            found.append(output.numpy()[0])
        return np.array(found)

    return Way(name, run, single_only=True)


class PackedGraph(nn.Module):
    """The encoder over tokens end to end, as ONNX Runtime's packed operator wants them."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(
        self, ids: Tensor, places: Tensor, rows: Tensor, offsets: Tensor, bounds: Tensor
    ) -> Tensor:
        """ids, places, rows int64 `[tokens]`; offsets int32 `[n, longest]`: where tokens lie in
        a padded batch, then where padding does; bounds int32 `[n + 1]`. Float32 `[n, dim]`."""

        def attention(query: Tensor, key: Tensor, value: Tensor, _: Tensor, heads: int) -> Tensor:
            query, key, value = (x.squeeze(0) for x in (query, key, value))
            mixed = torch.onnx.ops.symbolic(
                "com.microsoft::PackedMultiHeadAttention",
                (query, key, value, None, offsets, bounds),
                attrs={"num_heads": heads},
                dtype=query.dtype,
                shape=query.shape,
                version=1,
            )
            return mixed.unsqueeze(0)

        # As one row: of products of two dimensions the runtime makes Gemm, whose bias is one more pass over
        # memory, and no longer finds the biases that it would fuse with gelu and with normalisation.
        x = self.encoder.embeddings(ids[None], places[None])
        for layer in self.encoder.layers:
            x = layer(x, bounds, attention)
        x = x.squeeze(0)
        n = bounds.shape[0] - 1
        if self.encoder.config.pooling == "first_token":
            pooled = x.index_select(0, bounds[:-1].long()).float()
        else:
            lengths = (bounds[1:] - bounds[:-1]).float()
            pooled = torch.zeros(n, x.shape[1]).index_add(0, rows, x.float()) / lengths[:, None]
        return nn.functional.normalize(pooled, dim=-1)


def packed_graph(half: Encoder) -> Way:
    """Traced everywhere; run where there is CUDA."""
    name = "the same graph, packed"
    encoder = Encoder(half.config)
    encoder.load_state_dict(half.state_dict())
    encoder = encoder.eval().requires_grad_(False)
    graph.fold_biases(encoder)
    if CUDA:
        encoder.embeddings.half()
        encoder.layers.half()
    tokens, n, longest = (torch.export.Dim(x) for x in ("tokens", "n", "longest"))
    example = Packed.of([np.arange(3, 8), np.arange(3, 6)])
    arguments = (example.ids, example.places, example.rows, offsets_of(example), example.bounds)
    dynamic = (
        {0: tokens},
        {0: tokens},
        {0: tokens},
        {0: n, 1: longest},
        {0: torch.export.Dim("m")},
    )
    names = ("ids", "places", "rows", "offsets", "bounds")
    try:
        with graph._quiet("torch.onnx"):
            program = torch.onnx.export(
                PackedGraph(encoder).eval(), arguments, dynamo=True, opset_version=graph.OPSET,
                input_names=names, output_names=(graph.OUTPUT,), dynamic_shapes=dynamic, verbose=False,
            )  # fmt: skip
    except Exception as error:  # noqa: BLE001  the exporter raises many kinds
        return Way(name, None, f"not traced: {type(error).__name__}: {str(error)[:160]}")
    assert program is not None
    if not CUDA:  # its attention has a CUDA kernel only: computed as its documentation says
        plain = ReferenceEvaluator(program.model_proto, new_ops=[PackedMultiHeadAttention])
        return Way(f"{name}, by ONNX's reference", fed(plain, set(plain.input_names)))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        onnx_ir.save(program.model, file, external_data="model.onnx.data")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        try:
            session = ort.InferenceSession(str(file), options, providers=["CUDAExecutionProvider"])
        except Exception as error:  # noqa: BLE001  the runtime's own exceptions derive from this
            return Way(name, None, f"the runtime refuses it: {str(error)[:160]}")

    return Way(name, fed(session, {i.name for i in session.get_inputs()}))


def fed(session: Any, known: set[str]) -> Run:
    """known: the graph's inputs; pooling by the first token needs no `rows`."""

    def run(sequences: list[Ids]) -> Vectors:
        batch = Packed.of(sequences)
        feed = {
            "ids": batch.ids, "places": batch.places, "rows": batch.rows,
            "offsets": offsets_of(batch), "bounds": batch.bounds,
        }  # fmt: skip
        (found,) = session.run(None, {k: v.numpy() for k, v in feed.items() if k in known})
        return np.asarray(found, np.float32)

    return run


class PackedMultiHeadAttention(OpRun):
    """ONNX Runtime's operator, by its documentation, one sequence after the other."""

    op_domain = "com.microsoft"

    def _run(  # type: ignore[no-untyped-def]
        self, query, key, value, bias, offsets, bounds, *, num_heads, **_
    ):
        assert bias is None or bias.size == 0
        # The cells of tokens come first in `offsets`, in the order of the tokens.
        assert (np.diff(offsets.ravel()[: len(query)]) > 0).all()
        mixed = np.empty_like(value)
        for start, end in pairwise(bounds):
            q, k, v = (
                x[start:end].reshape(end - start, num_heads, -1).swapaxes(0, 1)
                for x in (query, key, value)
            )
            score = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
            weight = np.exp(score - score.max(-1, keepdims=True))
            weight /= weight.sum(-1, keepdims=True)
            mixed[start:end] = (weight @ v).swapaxes(0, 1).reshape(end - start, -1)
        return (mixed,)


def offsets_of(batch: Packed) -> Tensor:
    """int32 `[n, longest]`: cells of a padded batch, those with tokens before those without."""
    there = np.arange(batch.longest) < batch.lengths.numpy()[:, None]
    cells = np.concatenate([np.flatnonzero(there), np.flatnonzero(~there)])
    return torch.from_numpy(cells.astype(np.int32).reshape(there.shape))


def write_modules(checkpoint: Checkpoint, how: str, folder: Path) -> None:
    """Say in the library's own files how a saved checkpoint pools, for servers that load it by its path."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    described = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(described))
    (folder / "1_Pooling").mkdir()
    pooling = {
        "word_embedding_dimension": checkpoint.encoder.config.hidden,
        "pooling_mode_cls_token": how == "cls",
        "pooling_mode_mean_tokens": how == "mean",
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def sentence_transformers(checkpoint: Checkpoint, folder: Path) -> Way:
    """The usual library with the same weights, in fp16, given the same token ids."""
    name = "sentence-transformers, fp16"
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    except ImportError:
        return Way(name, None, "not installed")
    saved = folder / "checkpoint"
    how = "cls" if checkpoint.encoder.config.pooling == "first_token" else "mean"
    save_checkpoint(saved, checkpoint, more=partial(write_modules, checkpoint, how))
    try:
        body = Transformer(str(saved))
        pooling = Pooling(checkpoint.encoder.config.hidden, how)
        model = SentenceTransformer(modules=[body, pooling], device=DEVICE.type)
    except Exception as error:  # noqa: BLE001
        return Way(name, None, f"does not load the checkpoint: {str(error)[:160]}")
    model = model.to(HALF).eval()

    @torch.inference_mode()
    def run(sequences: list[Ids]) -> Vectors:
        batch = TokenBatch.pad(sequences, checkpoint.encoder.config.pad_id)
        features = {
            "input_ids": torch.from_numpy(batch.ids).to(DEVICE),
            "attention_mask": torch.from_numpy(batch.mask).to(DEVICE),
        }
        pooled = model(features)["sentence_embedding"].float()
        found: Vectors = nn.functional.normalize(pooled, dim=-1).cpu().numpy()
        return found

    return Way(name, run)


if __name__ == "__main__":
    main()
