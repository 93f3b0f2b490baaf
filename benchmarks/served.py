"""How much of the engine reaches the clients, beside other servers: `make bench`.

The same texts through the engine alone, in this process, and over HTTP: 1 to 256 clients, 1 to 256 texts a request,
the load generators in processes of their own (`load.py`). With `--peers PYTHON --checkpoint DIR`, an interpreter that
has sentence-transformers and FastAPI, perhaps infinity-emb, and the checkpoint that the artifact was exported from, a
plain FastAPI app and infinity serve the same weights with the same number of threads. Vectors are checked to be equal
first; rounds are interleaved; the tables give medians, ratios within each round.

    python -m benchmarks.served --device cuda --model KEEP/default/artifact --workers 8 \\
        --peers $(which python3) --checkpoint KEEP/default/checkpoint --rounds 2 --seconds 1.5

serves what `python -m benchmarks.gpu --keep KEEP` wrote, on a GPU, with loads that keep one busy. What is not
installed, does not start, computes something else or fails is named in the report, and the others go on.
"""

from __future__ import annotations

import argparse
import base64
import math
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import numpy as np

from benchmarks.circumstances import circumstances, result_file, say
from benchmarks.generators import Generator
from benchmarks.load import sentences
from benchmarks.subjects import INFINITY, Subject, has_infinity, infinity, ours, plain
from mexma.batching import split_batches
from mexma.encoder import OnnxEncoder, encode
from mexma.text import Tokens
from service.engine.embedder import Embedded
from service.engine.lanes import ABOUT_S
from service.engine.tuning import FACTORS
from service.settings import DEFAULT_MODEL, Settings
from service.vectors import json_response, npy_response, openai_body

Load = tuple[int, int]
# (clients, texts a request)
LOADS: dict[str, list[Load]] = {
    "cpu": [(1, 1), (8, 1), (64, 1), (256, 1), (1, 32), (8, 32), (4, 64), (1, 256)],
    "cuda": [(4, 64), (16, 64), (1, 256), (16, 256), (1, 1), (64, 1), (256, 1)],
}
# For the engine alone: many batches of a device.
TEXTS = {"cpu": 2048, "cuda": 8192}
# Requests of so many texts are bulk work, whose batches are small while an interactive client is about.
BULK_TEXTS = 32
LEAST_COSINE = 0.998
COLOURS = ["#0b6e4f", "#6bbf59", "#c8553d", "#8d99ae"]


def vectors(url: str, texts: list[str]) -> np.ndarray:
    answer = httpx.post(url, json={"input": texts, "model": "m"}, timeout=120).raise_for_status()
    found = [d["embedding"] for d in answer.json()["data"]]
    if isinstance(found[0], str):
        found = [np.frombuffer(base64.b64decode(f), "<f4") for f in found]
    return np.array(found, np.float32)


def serialisation_ms(count: int, dim: int) -> list[tuple[str, float]]:
    """Processor time of an answer's bytes, `count` vectors of `dim` components, in each format."""
    drawn = np.random.default_rng(0).standard_normal((count, dim)).astype(np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    ids = np.arange(5, 29)
    embedded = Embedded([Tokens(ids, len(ids), None)] * count, {}, 0.0, 0.0, 0.0, drawn)
    ways: list[tuple[str, Callable[[], object]]] = [
        ("numbers", lambda: json_response(openai_body(embedded, drawn, "float", "m"), {})),
        ("base64", lambda: json_response(openai_body(embedded, drawn, "base64", "m"), {})),
        (".npy", lambda: npy_response(drawn, {})),
    ]
    found = []
    for name, way in ways:
        times = []
        for _ in range(50):
            started = time.thread_time()
            way()
            times.append(time.thread_time() - started)
        found.append((name, 1000 * statistics.median(times)))
    return found


def picture(subjects: list[Subject], loads: list[Load], engine: float, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 1, figsize=(10, 7.5), sharex=True, layout="constrained")
    width = 0.8 / len(subjects)
    for i, subject in enumerate(subjects):
        at = np.arange(len(loads)) + (i - (len(subjects) - 1) / 2) * width
        rates = [subject.median(load, "texts_per_s") for load in loads]
        axes[0].bar(at, rates, width, label=subject.name, color=COLOURS[i])
        p50 = np.array([subject.median(load, "p50_ms") for load in loads])
        p99 = np.array([subject.median(load, "p99_ms") for load in loads])
        axes[1].bar(at, p50, width, color=COLOURS[i])
        axes[1].errorbar(at, p50, [p50 * 0, p99 - p50], fmt="none", ecolor="black", capsize=2)
    axes[0].axhline(engine, color="black", linewidth=1, linestyle="--", label="engine alone")
    axes[0].set_ylabel("texts per second")
    best = max(subject.median(load, "texts_per_s") for subject in subjects for load in loads)
    axes[0].set_ylim(0, max(engine, best) * 1.25)
    axes[0].legend(frameon=False, ncols=4, fontsize="small", loc="upper left")
    axes[1].set_yscale("log")
    axes[1].set_ylabel("ms per request: p50, to p99")
    names = [f"{c} client{'s' * (c > 1)}\n{t} text{'s' * (t > 1)}" for c, t in loads]
    axes[1].set_xticks(range(len(loads)), names)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)


class EngineAlone:
    """The engine in this process, on a GPU with as many batches at once as the service runs, with texts of the
    seed that servers' texts are of in the same round. Figures of each: texts/s with tokenisation, the same
    without it, and ms for one text without it."""

    def __init__(self, model: Path, device: str):
        self.encoder = OnnxEncoder(model, device=device)  # type: ignore[arg-type]
        self.texts = sentences(TEXTS[device], seed=0)
        self._settings = Settings(device=device)  # type: ignore[arg-type]
        at_once = self.encoder.streams if device == "cuda" else 1
        self._map = ThreadPoolExecutor(at_once).map if at_once > 1 else map
        self.rates: list[float] = []
        self.ids_rates: list[float] = []
        self.single_ms: list[float] = []

    def measure(self, seed: int) -> None:
        """One round, with the texts of `seed`."""
        self.texts = sentences(len(self.texts), seed)
        self._rate(1)
        self.rates.append(max(self._rate(factor) for factor in (*FACTORS, *FACTORS)))
        tokenizing = []
        for _ in range(3):
            started = time.perf_counter()
            self.encoder.tokenizer.encode(self.texts)
            tokenizing.append(time.perf_counter() - started)
        whole = len(self.texts) / self.rates[-1]
        self.ids_rates.append(len(self.texts) / max(whole - min(tokenizing), whole / 100))
        times = []
        for ids in [t.ids for t in self.encoder.tokenizer.encode(self.texts[:128])]:
            started = time.perf_counter()
            self.encoder.run([ids])
            times.append(time.perf_counter() - started)
        self.single_ms.append(statistics.median(times) * 1000)

    def _rate(self, factor: int) -> float:
        """Texts a second in batches of so many times the usual size."""
        started = time.perf_counter()
        sequences = [t.ids for t in self.encoder.tokenizer.encode(self.texts)]
        batches = split_batches(
            [len(ids) for ids in sequences],
            max_tokens=self._settings.max_batch_tokens * factor,
            max_items=self._settings.max_batch_items * factor,
        )
        for _ in self._map(self.encoder.run, ([sequences[i] for i in rows] for rows in batches)):
            pass
        return len(self.texts) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="artifact")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--peers", type=Path, help="interpreter with what the peers need")
    parser.add_argument("--checkpoint", type=Path, help="what the artifact was exported from")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3, help="of each load")
    parser.add_argument(
        "--workers", type=int, default=0, help="also ours with so many HTTP workers"
    )
    parser.add_argument(
        "--loads", help="CLIENTSxTEXTS, separated by commas, instead of the device's own"
    )
    parser.add_argument(
        "--generators", type=int, default=max(1, len(os.sched_getaffinity(0)) // 4),
        help="processes that the clients of a load are divided among",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, help="folder for the report, in place of build/benchmarks"
    )
    arguments = parser.parse_args()
    loads = LOADS[arguments.device]
    if arguments.loads:
        pairs = (load.split("x") for load in arguments.loads.split(","))
        loads = [(int(clients), int(texts)) for clients, texts in pairs]
    notes: list[str] = []  # of what is not there or not measured
    subjects: list[Subject] = []
    generator = Generator()
    with tempfile.TemporaryDirectory() as folder:
        try:
            started = time.perf_counter()
            engine = EngineAlone(arguments.model, arguments.device)
            expected = encode(engine.encoder, engine.texts[:64])
            say(f"engine alone: {engine.encoder.engine}", started)
            start(arguments, Path(folder), subjects, notes)
            say(f"started: {', '.join(s.name for s in subjects)}", started)
            equal = check(subjects, engine.texts[:64], expected, notes)
            for subject in subjects:  # what is loaded or allocated at the first use
                for load in (max(loads, key=math.prod), min(loads, key=math.prod)):
                    measure(generator, subject, load, arguments.generators, 0.5, seed=0)
            for turn in range(arguments.rounds):
                engine.measure(turn)
                say(f"round {turn + 1}: engine alone {engine.rates[-1]:,.0f} texts/s", started)
                for load in loads:
                    said = []
                    for subject in subjects:
                        found = measure(
                            generator, subject, load, arguments.generators, arguments.seconds, turn
                        )
                        subject.rounds.setdefault(load, []).append(found)
                        failed = f" ({found['failed']} failed)" if found["failed"] else ""
                        said.append(
                            f"{subject.name} {found['texts_per_s']:,.0f}/s {found['p50_ms']:.1f} ms{failed}"
                        )
                    say(f"  {load[0]} x {load[1]}: {'; '.join(said)}", started)
        finally:
            generator.close()
            for subject in subjects:
                subject.process.terminate()
            for subject in subjects:
                subject.process.wait(60)
    report(arguments, loads, subjects, engine, equal, notes)


def start(
    arguments: argparse.Namespace, folder: Path, subjects: list[Subject], notes: list[str]
) -> None:
    """All servers, into `subjects` in the order of the report. A peer that fails is a note.

    One after the other, since ours measure the machine at their first start; on a GPU, which no peer uses
    much until it is asked, ours beside the peers.
    """
    threads, device = len(os.sched_getaffinity(0)), arguments.device
    one = partial(ours, folder=folder / "one", model=arguments.model, device=device)
    first: list[Callable[[], Subject]] = [partial(one, "mexma")]
    if workers := arguments.workers:
        several = partial(one, folder=folder / "several", http_workers=workers)
        first.append(partial(several, f"mexma, {workers} HTTP workers"))
    others: list[Callable[[], Subject]] = []
    if arguments.peers:
        peer = arguments.peers, arguments.checkpoint, threads, device
        if has_infinity(arguments.peers):
            others.append(partial(infinity, *peer))
        else:
            notes.append(f"{INFINITY} is not installed beside {arguments.peers.name}")
        others.append(partial(plain, *peer))

    def each(makers: list[Callable[[], Subject]]) -> list[Subject | Exception]:
        made: list[Subject | Exception] = []
        for make in makers:
            try:
                made.append(make())
            except Exception as error:  # noqa: BLE001  looked at below, with what else was started
                made.append(error)
        return made

    with ThreadPoolExecutor(1 if device == "cpu" else 2) as pool:
        found, peers_found = pool.map(each, (first, others))
    subjects += [s for s in (*found, *peers_found) if isinstance(s, Subject)]
    for error in peers_found:
        if isinstance(error, Exception):
            print(error, flush=True)
            notes.append(str(error).partition("\n")[0])
    for error in found:
        if isinstance(error, Exception):
            raise error


def check(
    subjects: list[Subject], texts: list[str], expected: np.ndarray, notes: list[str]
) -> list[str]:
    """Each one's smallest cosine to `expected`; peers that compute something else are ended."""
    equal = []
    for subject in list(subjects):
        try:
            worst = float((vectors(subject.url, texts) * expected).sum(1).min())
        except (httpx.HTTPError, ValueError) as error:  # or another shape
            worst = float("nan")
            notes.append(f"{subject.name} fails: {error}")
        equal.append(f"{subject.name} {worst:.5f}")
        if worst > LEAST_COSINE:
            continue
        assert not subject.name.startswith("mexma"), f"{equal[-1]} {notes}"
        notes.append(f"{subject.name} computes something else and was not measured")
        subjects.remove(subject)
        subject.process.terminate()
        subject.process.wait(60)
    return equal


def measure(
    generator: Generator, subject: Subject, load: Load, processes: int, seconds: float, seed: int
) -> dict[str, float]:
    """One load on one server. cpu_ms: the server's processor time, by request."""
    if load[1] >= BULK_TEXTS:
        time.sleep(max(0.0, subject.interactive_until + ABOUT_S - time.monotonic()))
    before = subject.cpu_s()
    found = generator.load(
        subject.url, "--clients", load[0], "--texts", load[1], "--processes", processes,
        "--seconds", seconds, "--seed", seed,
    )  # fmt: skip
    if load[1] < BULK_TEXTS and subject.name.startswith("mexma"):
        subject.interactive_until = time.monotonic()
    found["cpu_ms"] = 1000 * (subject.cpu_s() - before) / found["requests"]
    return found


def gpu_name() -> str:
    """The first one's."""
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return "gpu"
    return said.splitlines()[0].strip()


def report(
    arguments: argparse.Namespace,
    loads: list[Load],
    subjects: list[Subject],
    engine: EngineAlone,
    equal: list[str],
    notes: list[str],
) -> None:
    rows = []
    for load in loads:
        for subject in subjects:
            rounds = subject.rounds[load]
            of_engine = [r["texts_per_s"] / e for r, e in zip(rounds, engine.rates, strict=True)]
            times = [
                a["texts_per_s"] / b["texts_per_s"] if b["texts_per_s"] else float("inf")
                for a, b in zip(subjects[0].rounds[load], rounds, strict=True)
            ]
            failed = int(sum(r["failed"] for r in rounds))
            rows.append(
                f"| {load[0]} | {load[1]} | {subject.name}{f' ({failed} failed)' * bool(failed)} | "
                f"{subject.median(load, 'texts_per_s'):.0f} | "
                f"{spread(of_engine)} | {spread(times)} | "
                f"{subject.median(load, 'p50_ms'):.1f} | {subject.median(load, 'p99_ms'):.1f} | "
                f"{subject.median(load, 'cpu_ms'):.2f} | {subject.median(load, 'busiest_generator'):.2f} |"
            )
    first = subjects[0]
    singles = next((load for load in ((64, 1), *loads) if load in first.rounds), loads[0])
    cpu = first.median(singles, "generator_cpu_us_per_request")
    serialised = ""
    if (4, 64) in loads:
        whole_ms = first.median((4, 64), "cpu_ms")
        shares = [
            f"{name} {ms:.2f} ms ({ms / whole_ms:.1%})" for name, ms in serialisation_ms(64, 1024)
        ]
        serialised = f"""
Serialisation of 64 vectors of 1,024 components: {", ".join(shares)}; the shares are of the {whole_ms:.1f} ms of processor
time, all threads together, that the server took for a request of 64 texts.
"""
    on_gpu = gpu_name() if arguments.device == "cuda" else ""
    name = "served" if arguments.model == DEFAULT_MODEL else f"served_{engine.encoder.manifest.dim}"
    file = result_file(name, on_gpu, arguments.out)
    rate, ids_rate = statistics.median(engine.rates), statistics.median(engine.ids_rates)
    try:
        picture(subjects, loads, rate, file.with_suffix(".png"))
        drawn = f"![texts per second and latency]({file.with_suffix('.png').name})"
    except ImportError:
        drawn = "Not drawn: matplotlib is not installed."
    by_ids = f" ({ids_rate:.0f} without its time)" if on_gpu else ""
    runtime = "onnxruntime-gpu" if on_gpu else "onnxruntime"
    file.write_text(
        f"""# Served, beside the engine alone and other servers

`python -m benchmarks.served{f" --device {arguments.device}" * bool(on_gpu)}{" --peers PYTHON --checkpoint DIR" if arguments.peers else ""}`. {circumstances(runtime, "fastapi", "uvicorn", "uvloop")}
{f"{on_gpu}. " * bool(on_gpu)}{arguments.rounds} interleaved rounds of {arguments.seconds:g} s a load, {len(os.sched_getaffinity(0))} threads for each server, medians (and ranges). Servers and load
generators share the machine's cores; they took {cpu:.0f} us of processor time a request ({singles[0]} clients, {singles[1]} texts).
Smallest cosine to the engine's vectors, 64 texts: {"; ".join(equal)}.
{"".join(f"{chr(10)}{note}.{chr(10)}" for note in notes)}
Engine alone, tokenisation included: **{rate:.0f} texts/s** in batches{by_ids}; **{statistics.median(engine.single_ms):.2f} ms** (median) for one text, without
tokenisation.
{serialised}
Up to {arguments.generators} generators at once; `generator` is the share of a core that the busiest of them took: near 1 it was the limit.
`cpu ms` is the server's processor time for a request.

| clients | texts a request | server | texts/s | of the engine | mexma is x times | p50 ms | p99 ms | cpu ms | generator |
|---|---|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

{drawn}
"""
    )
    print(file.read_text())
    print(f"written to {file}")


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
