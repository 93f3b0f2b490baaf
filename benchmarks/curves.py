"""How the cost of an encoding grows: with the batch, the length, the threads, the model. `python -m benchmarks.curves`.

Our own engine, and OpenVINO in bf16 where it is installed (of the default's shape), each size in turn with the others,
several rounds, medians. A batch here is one call: what a server gives an engine at one time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np

from benchmarks.circumstances import circumstances, result_file
from benchmarks.engine import PAD, random_weights
from mexma.native import NativeEncoder, kernels
from mexma.session import CHOSEN
from mexma.text import TokenBatch
from mexma.weights import EncoderWeights

Run = Callable[[list[np.ndarray]], object]
VOCABULARY = 32_000
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128)
LENGTHS = (8, 16, 32, 64, 128, 256, 512)
SHAPES = {"6 x 384": (6, 384, 12), "12 x 384": (12, 384, 12), "12 x 768": (12, 768, 12), "24 x 1024": (24, 1024, 16)}  # fmt: skip
USUAL = "12 x 384"
TOKENS, LENGTH = 1024, 24


def batch(texts: int, length: int) -> list[np.ndarray]:
    rng = np.random.default_rng([texts, length])
    return [rng.integers(4, VOCABULARY, length) for _ in range(texts)]


def native(weights: EncoderWeights, kernel: str, threads: int) -> Run:
    encoder = NativeEncoder(
        weights, kernel=kernel, threads=threads, mean_pooling=True, normalise=True
    )
    return lambda given: encoder.run(
        np.concatenate(given), np.array([len(s) for s in given], np.int32)
    )


def openvino(weights: EncoderWeights) -> Run:
    from benchmarks.engine import Torch, openvino_run

    run = openvino_run(Torch(weights, weights.table.codes.reshape(VOCABULARY, -1)), "bf16")
    return lambda given: run(TokenBatch.pad(given, PAD))


def seconds(run: Run, given: list[np.ndarray]) -> float:
    """The median of a few calls, more where they are short."""
    times: list[float] = []
    while len(times) < 3 or (sum(times) < 0.1 and len(times) < 30):
        began = time.perf_counter()
        run(given)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    kernel = next(k.name for k in kernels() if k.name in CHOSEN and not k.missing)
    weights = {name: random_weights(*shape, VOCABULARY) for name, shape in SHAPES.items()}
    ours = f"mexma ({kernel})"
    runs: dict[str, Run] = {ours: native(weights[USUAL], kernel, threads)}
    if find_spec("openvino") and find_spec("torch"):
        runs["OpenVINO bf16"] = openvino(weights[USUAL])
    cases: dict[tuple[str, str, int | str], tuple[Run, list[np.ndarray]]] = {}
    for name, run in runs.items():
        for texts in TEXTS:
            cases["texts", name, texts] = run, batch(texts, LENGTH)
        for length in LENGTHS:
            cases["length", name, length] = run, batch(max(1, TOKENS // length), length)
    for count in sorted({1, threads}):
        cases["threads", ours, count] = (
            native(weights[USUAL], kernel, count),
            batch(TOKENS // LENGTH, LENGTH),
        )
    for shape, made in weights.items():
        cases["model", ours, shape] = (
            native(made, kernel, threads),
            batch(TOKENS // LENGTH, LENGTH),
        )
    times: dict[tuple[str, str, int | str], list[float]] = {case: [] for case in cases}
    for run, given in cases.values():
        run(given)
    for _ in range(arguments.rounds):
        for case, (run, given) in cases.items():
            times[case].append(seconds(run, given))
    found = {case: statistics.median(t) for case, t in times.items()}
    tokens = {case: sum(map(len, given)) for case, (_, given) in cases.items()}
    file = result_file("curves")
    picture(found, tokens, list(runs), file.with_suffix(".png"))
    parts = []
    for what, title, names in (
        ("texts", f"Texts in a batch, each of {LENGTH} tokens", list(runs)),
        ("length", f"Tokens of a text, {TOKENS} of a batch", list(runs)),
        ("threads", f"Threads, {TOKENS // LENGTH} texts of {LENGTH} tokens", [ours]),
        ("model", f"Layers x hidden size, {TOKENS // LENGTH} texts of {LENGTH} tokens", [ours]),
    ):
        sizes = list(dict.fromkeys(case[2] for case in found if case[0] == what))
        rows = "\n".join(
            f"| {size} | "
            + " | ".join(
                f"{1000 * found[what, n, size]:.2f} | {tokens[what, n, size] / found[what, n, size]:,.0f}"
                for n in names
            )
            + " |"
            for size in sizes
        )
        head = " | ".join(f"{n}, ms | tokens/s" for n in names)
        parts.append(f"## {title}\n\n| | {head} |\n|{'---|' * (1 + 2 * len(names))}\n{rows}\n")
    file.write_text(
        f"""# How cost grows

`python -m benchmarks.curves`. {circumstances("openvino")}
Random weights of the default's shape ({USUAL}) where nothing else is said, {threads} threads; {arguments.rounds} interleaved rounds, medians.

{chr(10).join(parts)}
![tokens a second by batch, length and model]({file.with_suffix(".png").name})
"""
    )
    print(file.read_text())


def picture(found, tokens, names, file) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    colours = dict(zip(names, ("#0b6e4f", "#c8553d"), strict=False))
    for axis, what, label in (
        (axes[0], "texts", f"texts in a batch (each of {LENGTH} tokens)"),
        (axes[1], "length", f"tokens of a text ({TOKENS} of a batch)"),
    ):
        for name in names:
            sizes = [case[2] for case in found if case[:2] == (what, name)]
            rates = [tokens[what, name, s] / found[what, name, s] for s in sizes]
            axis.plot(sizes, rates, marker="o", markersize=3, color=colours[name], label=name)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(s) for s in sizes])
        axis.set_xlabel(label)
    axes[0].set_ylabel("tokens a second")
    axes[0].legend(frameon=False)
    shapes = [case[2] for case in found if case[0] == "model"]
    axes[2].bar(shapes, [tokens["model", names[0], s] / found["model", names[0], s] for s in shapes],
                color=colours[names[0]])  # fmt: skip
    axes[2].set_yscale("log")
    axes[2].set_xlabel("layers x hidden size")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylim(0) if axis is not axes[2] else None
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
