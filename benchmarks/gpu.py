"""Parity and speed on a CUDA device, in one command; without one, the same in miniature.

    python -m benchmarks.gpu                      # random weights, XLM-R large's shape and the default's
    python -m benchmarks.gpu --checkpoint DIR     # the default's shape with trained weights
    python -m benchmarks.gpu --only default,search --out FOLDER

Each step prints a line with the seconds since the start, and each section is in the results file as
soon as it is measured, so that a run that is cut off keeps what it has.

Measures, in one interleaved run, with the same sentences in the same batches: this project's
session (its own engine, fp16, no padding), the artifact's packed and padded graphs under ONNX Runtime
where that has CUDA, torch fp16 padded with scaled_dot_product_attention, torch fp16 packed with varlen_attn, sentence-transformers in fp16
where it is installed. Before any is timed, its vectors are compared with torch fp32's; what
misses `LEAST_COSINE` is reported, and not timed. Everything is divided by the fp16 GEMM rate
that this device shows at these shapes and at 8192 cubed. What a shape costs at its first use, where
libraries build plans for it, is told apart from what it costs again.

Then searches of a million rows in the GPU's memory, beside the exact scan (`benchmarks.gpu_search`).

What is not there (CUDA, onnxruntime-gpu, faiss-gpu, sentence-transformers) is named in the table, so that
one run on a new machine says what to install. On a CPU shapes are small, precision is fp32,
nothing is kept unless `--out` says where, and times mean nothing: it is there to show that the script runs to its end.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import gpu_search
from benchmarks.circumstances import circumstances, result_file, say
from benchmarks.export_large import SHAPE as LARGE
from benchmarks.export_large import random_checkpoint
from benchmarks.gpu_ways import (
    CUDA,
    DEVICE,
    HALF,
    Ids,
    Run,
    Vectors,
    Way,
    kept,
    our_sessions,
    packed,
    padded,
    sentence_transformers,
)
from mexma.artifact import TOKENIZER
from mexma.batching import split_batches
from mexma.sample import tatoeba_sample
from mexma.text import TextTokenizer
from model_export.progress import Say
from service.settings import DEFAULT_MODEL
from training.checkpoint import Checkpoint, load_checkpoint
from training.encoder import EncoderConfig

LEAST_COSINE = 0.999
ROUNDS = 3 if CUDA else 1
AT_ONCE = 2
DEFAULT = EncoderConfig(
    vocabulary=250_037, hidden=384, layers=12, heads=12, intermediate=1536, positions=514,
    first_position=2, pad_id=1, norm_eps=1e-12, pooling="mean",
)  # fmt: skip
SHAPES = {"default": ("the default's shape", DEFAULT), "large": ("XLM-R large's shape", LARGE)}
PARTS = (*SHAPES, "search")
NEW_LENGTHS = 12  # of 3 to 60 tokens
# Sentences of one to a few tokens up to the limit: mean about 24, as users' are.
SENTENCES = 8192 if CUDA else 24


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--checkpoint", help="weights for the default's shape; else random ones")
    p.add_argument("--batch-tokens", type=int, default=16_384 if CUDA else 256)
    p.add_argument(
        "--keep",
        type=Path,
        help="folder that keeps the artifacts, to serve them, and whose artifacts are taken",
    )
    p.add_argument("--only", type=parts, default=PARTS, help=f"of {', '.join(PARTS)}, by commas")
    p.add_argument(
        "--out", type=Path, help="folder for the report; a dry run writes none without it"
    )
    a = p.parse_args(argv)
    run(a, partial(say, started=time.perf_counter()))


def parts(text: str) -> Sequence[str]:
    """Names of parts, in their own order."""
    asked = set(text.split(","))
    if unknown := asked - set(PARTS):
        raise argparse.ArgumentTypeError(
            f"expected some of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}"
        )
    return [name for name in PARTS if name in asked]


def run(a: argparse.Namespace, say: Say) -> None:
    """All parts that were asked for. Whatever is known is printed and in the file at once."""
    what = "gpu" if len(a.only) == len(PARTS) else f"gpu_{'_'.join(a.only)}"
    device, written = torch.cuda.get_device_name() if CUDA else "", ""
    file = result_file(what, device, a.out) if CUDA or a.out else None
    for section in sections(a, say):
        print(section, flush=True)
        written += section + "\n"
        if file:
            file.write_text(written)


def sections(a: argparse.Namespace, say: Say) -> Iterator[str]:
    """The report piece by piece."""
    yield f"# Engines on a GPU\n\n{circumstances('torch', 'onnxruntime-gpu', 'onnxruntime')}\n"
    yield f"{hardware()}\n"
    shapes = [name for name in a.only if name in SHAPES]
    if shapes:
        trained = None
        if a.checkpoint:  # one of Hugging Face without modules.json does not say how it pools
            trained = load_checkpoint(a.checkpoint, pooling="mean", prefix="", max_tokens=512)
        tokenizer_json = (
            trained.tokenizer_json if trained else (DEFAULT_MODEL / TOKENIZER).read_bytes()
        )
        sequences = read_sentences(tokenizer_json)
        say(f"{len(sequences)} sentences tokenised")
        for name in shapes:
            title, config = SHAPES[name]
            with nullcontext(a.keep) if a.keep else tempfile.TemporaryDirectory() as folder:
                there = Path(folder) / name
                weights = (trained if config is DEFAULT and CUDA else None) or kept(there)
                checkpoint = weights or random_checkpoint(
                    config if CUDA else small(config), tokenizer_json, DEVICE
                )
                say(f"{name}: weights are there")
                yield from measure(
                    title, checkpoint, sequences, a.batch_tokens, there, partial(tell, say, name),
                    proved=weights is not None,
                )  # fmt: skip
    if "search" in a.only:
        yield from gpu_search.lines(say)


def tell(say: Say, part: str, what: str) -> None:
    say(f"{part}: {what}")


def small(config: EncoderConfig) -> EncoderConfig:
    return replace(config, layers=2, heads=4, hidden=128, intermediate=128)


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
    title: str,
    checkpoint: Checkpoint,
    sequences: list[Ids],
    batch_tokens: int,
    folder: Path,
    say: Say,
    *,
    proved: bool,
) -> Iterator[str]:
    """The tables of one shape, in Markdown. folder: gets the artifact and a checkpoint. proved: the
    artifact has to pass the export's gate, which takes long and says nothing of random weights that
    the comparison here does not."""
    config = checkpoint.encoder.config
    encoder = checkpoint.encoder.to(DEVICE).eval()
    lengths = [len(s) for s in sequences]
    batches = [
        [sequences[i] for i in rows]
        for rows in split_batches(lengths, max_tokens=batch_tokens, max_items=1024)
    ]
    few = sequences[:64]  # of all lengths, so that masks matter
    reference = padded(encoder)(few)
    half = copy.deepcopy(encoder).to(DEVICE, HALF).eval()
    say("on the device")
    ways = our_sessions(checkpoint, folder, say, proved=proved)
    ways += [
        Way("torch, padded, SDPA", padded(half), looked_into=False),
        Way("torch, packed, varlen_attn" if CUDA else "torch, packed", packed(half)),
        sentence_transformers(checkpoint, folder, say),
    ]
    for way in ways:
        if way.run is not None:
            check(way, few, reference)
    say("compared with torch fp32")
    for way in ways:
        if way.run is not None:
            time_singles(way, sequences)
    say("one sentence at a time")
    there = [way for way in ways if way.run is not None]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for turn in range(ROUNDS + 1):
            for way in there:
                assert way.run is not None
                apart = timed(partial(every, map, way.run, batches))
                at_once = timed(partial(every, threads.map, way.run, batches))
                if turn:
                    way.seconds.append(apart)
                    way.overlapped.append(at_once)
                else:  # also warms up
                    way.first_s = apart
            say(f"round {turn} of {ROUNDS}")
    yield "\n".join(table(title, config, ways, lengths, batches))
    yield "\n".join(new_shapes(ways, len(batches)))
    looked_into = [way for way in there if way.looked_into]
    yield "\n".join(larger_batches(config, looked_into, sequences, batch_tokens))
    say("larger batches")
    if CUDA:
        yield "\n".join(profiles(looked_into, batches[len(batches) // 2]))
        say("kernels")


def time_singles(way: Way, sequences: list[Ids]) -> None:
    """One sentence at a time: of one length again and again, then of lengths not seen before."""
    run = way.run
    assert run is not None
    one = [min(sequences, key=lambda s: abs(len(s) - 24))]
    times = [timed(partial(run, one)) for _ in range(50 if CUDA else 2)]
    way.single_ms = 1000 * statistics.median(times)
    longest = max(sequences, key=len)
    lengths = [n for n in range(3, min(60, len(longest)) + 1) if n != len(one[0])]
    drawn = np.random.default_rng(0).choice(lengths, NEW_LENGTHS, replace=False)
    cut = [[longest[:n]] for n in drawn]
    new, again = ([timed(partial(run, s)) for s in cut] for _ in range(2))
    way.new_ms, way.again_ms = (1000 * statistics.median(times) for times in (new, again))


def new_shapes(ways: Sequence[Way], batches: int) -> list[str]:
    """What a shape costs at its first use."""
    lines = [
        f"Shapes at their first use: the first pass over the {batches} batches beside the median of later ones, and one "
        f"sentence of a length that was not seen before, the median over {NEW_LENGTHS} lengths of 3 to 60 tokens, beside the same "
        "ones again. A service sees new shapes all the time.", "",
        "| | first pass, s | later, s | one of a new length, ms | the same again, ms |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for way in ways:
        if way.run is None:
            continue
        lines.append(
            f"| {way.name} | {way.first_s:.2f} | {statistics.median(way.seconds):.2f} | "
            f"{way.new_ms:.2f} | {way.again_ms:.2f} |"
        )
    return [*lines, ""]


def larger_batches(
    config: EncoderConfig, ways: Sequence[Way], sequences: list[Ids], batch_tokens: int
) -> list[str]:
    """The share of the GEMM peak again, as batches grow."""
    lengths = [len(s) for s in sequences]
    operations = sum(flops(config, n) for n in lengths)
    peak = gemm_rate(8192, 8192, 8192) if CUDA else float("nan")
    sizes = [batch_tokens * factor for factor in (1, 2, 4)]
    lines = [
        f"% of the GEMM peak with batches of so many tokens, {AT_ONCE} at once:", "",
        "| | " + " | ".join(f"{size:,}" for size in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]  # fmt: skip

    def share(times: list[float]) -> str:
        return f"{operations / statistics.median(times) / peak:.0%}" if CUDA else "-"

    shares = {way.name: [share(way.overlapped)] for way in ways}
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for size in sizes[1:]:
            split = split_batches(lengths, max_tokens=size, max_items=size // 16)
            batches = [[sequences[i] for i in rows] for rows in split]
            for way in ways:
                assert way.run is not None
                work = partial(every, threads.map, way.run, batches)
                times = [timed(work) for _ in range(ROUNDS + 1)]
                shares[way.name].append(share(times[1:]))
    return [*lines, *(f"| {name} | {' | '.join(row)} |" for name, row in shares.items()), ""]


def every(over: Callable[..., Iterable[Vectors]], run: Run, batches: list[list[Ids]]) -> None:
    for _ in over(run, batches):
        pass


def profiles(ways: Sequence[Way], batch: list[Ids]) -> list[str]:
    """Where the device's time goes in one batch: kernels by their share, for each way."""
    lines = [f"Kernels by their share of the device's time, a batch of {len(batch)} sentences:", ""]
    for way in ways:
        assert way.run is not None
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
        if way.run is None or not way.seconds:
            lines.append(f"| {way.name} | {way.reason or 'not available'} | | | | | |")
            continue
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


if __name__ == "__main__":
    main()
