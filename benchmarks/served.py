"""How much of the engine reaches the clients, beside other servers: `make bench`.

The same texts through the engine alone, in this process, and over HTTP: 1 to 256 clients, 1 to 256 texts a request,
the load generator in a process of its own (`load.py`). With `--peers PYTHON --checkpoint DIR`, an interpreter that
has infinity-emb and sentence-transformers and the checkpoint that the artifact was exported from, infinity and a
plain FastAPI app serve the same weights with the same number of threads. Vectors are checked to be equal first;
rounds are interleaved; the tables give medians, ratios within each round.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np

from benchmarks.circumstances import ROOT, circumstances, result_file
from benchmarks.load import sentences
from mexma.encoder import OnnxEncoder, encode
from mexma.text import Tokens
from service.engine.embedder import Embedded
from service.engine.tuning import FACTORS
from service.settings import DEFAULT_MODEL, Settings
from service.vectors import json_response, npy_response, openai_body
from tests.conftest import free_port, start_server, wait_until_ready

# (clients, texts a request)
LOADS = [(1, 1), (8, 1), (64, 1), (256, 1), (1, 32), (8, 32), (4, 64), (1, 256)]
COLOURS = ["#0b6e4f", "#6bbf59", "#c8553d", "#8d99ae"]


@dataclass
class Subject:
    """A running server. rounds: per load, what the generator said each time."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    rounds: dict[tuple[int, int], list[dict[str, float]]] = field(default_factory=dict)

    def median(self, load: tuple[int, int], what: str) -> float:
        return statistics.median(r[what] for r in self.rounds[load])

    def cpu_s(self) -> float:
        """Processor time so far, of all its threads and of the processes it started."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ticks = 0
        for one in (str(pid), *children):
            after_name = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            ticks += int(after_name[11]) + int(after_name[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def generate(url: str, *arguments: object) -> subprocess.Popen[bytes]:
    """Start the load generator."""
    command = [sys.executable, "-m", "benchmarks.load", url, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)


def finished(generator: subprocess.Popen[bytes]) -> dict[str, float]:
    output, _ = generator.communicate()
    if generator.returncode:
        raise RuntimeError("the load generator failed")
    found: dict[str, float] = json.loads(output)
    return found


def ours(name: str, folder: Path, model: Path, **settings: object) -> Subject:
    folder.mkdir()
    server = start_server(
        folder,
        demo="false",
        model=model,
        language_sample_every=0,
        **{"bulk_batch_tokens": 0} | settings,
    )
    wait_until_ready(server)
    return Subject(name, f"{server.url}/v1/embeddings", server.process)


def peer(name: str, command: list[str], path: str, port: int, threads: int) -> Subject:
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1",
        "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    }  # fmt: skip
    environment.pop("PYTHONPATH", None)
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"{name} did not start: {' '.join(command)}")
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return Subject(name, url + path, process)
        except httpx.TransportError:
            time.sleep(0.2)


def peers(python: Path, checkpoint: Path, threads: int) -> list[Subject]:
    a, b = free_port(), free_port()
    infinity = [
        str(python.parent / "infinity_emb"), "v2", "--model-id", str(checkpoint), "--engine", "torch",
        "--device", "cpu", "--port", str(a), "--no-bettertransformer", "--url-prefix", "/v1",
        "--log-level", "error", "--dtype", "float32", "--no-model-warmup",
    ]  # fmt: skip
    plain = [
        str(python),
        str(ROOT / "benchmarks/plain_app.py"),
        str(checkpoint),
        str(b),
        str(threads),
    ]
    found = peer("infinity (torch)", infinity, "/embeddings", a, threads)
    found.url = f"http://127.0.0.1:{a}/v1/embeddings"
    return [
        found,
        peer("FastAPI + sentence-transformers", plain, "/v1/embeddings", b, threads),
    ]


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
    embedded = Embedded(drawn, [Tokens(ids, len(ids), None)] * count, {}, 0.0, 0.0, 0.0)
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


def picture(subjects: list[Subject], engine: float, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 1, figsize=(10, 7.5), sharex=True, layout="constrained")
    width = 0.8 / len(subjects)
    for i, subject in enumerate(subjects):
        at = np.arange(len(LOADS)) + (i - (len(subjects) - 1) / 2) * width
        rates = [subject.median(load, "texts_per_s") for load in LOADS]
        axes[0].bar(at, rates, width, label=subject.name, color=COLOURS[i])
        p50 = np.array([subject.median(load, "p50_ms") for load in LOADS])
        p99 = np.array([subject.median(load, "p99_ms") for load in LOADS])
        axes[1].bar(at, p50, width, color=COLOURS[i])
        axes[1].errorbar(at, p50, [p50 * 0, p99 - p50], fmt="none", ecolor="black", capsize=2)
    axes[0].axhline(engine, color="black", linewidth=1, linestyle="--", label="engine alone")
    axes[0].set_ylabel("texts per second")
    axes[0].set_ylim(0, engine * 1.25)
    axes[0].legend(frameon=False, ncols=4, fontsize="small", loc="upper left")
    axes[1].set_yscale("log")
    axes[1].set_ylabel("ms per request: p50, to p99")
    names = [f"{c} client{'s' * (c > 1)}\n{t} text{'s' * (t > 1)}" for c, t in LOADS]
    axes[1].set_xticks(range(len(LOADS)), names)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="artifact")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--peers", type=Path, help="interpreter with infinity-emb")
    parser.add_argument("--checkpoint", type=Path, help="what the artifact was exported from")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3, help="of each load")
    parser.add_argument(
        "--workers", type=int, default=0, help="also ours with so many HTTP workers"
    )
    arguments = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    encoder = OnnxEncoder(arguments.model, device=arguments.device)
    settings = Settings(device=arguments.device)
    texts = sentences(512)
    sequences = [t.ids for t in encoder.tokenizer.encode(texts)]

    def engine_rate(factor: int) -> float:
        started = time.perf_counter()
        encode(
            encoder,
            texts,
            max_batch_tokens=settings.max_batch_tokens * factor,
            max_batch_items=settings.max_batch_items * factor,
        )
        return len(texts) / (time.perf_counter() - started)

    def engine_alone_ms() -> float:
        times = []
        for ids in sequences[:128]:
            started = time.perf_counter()
            encoder.run([ids])
            times.append(time.perf_counter() - started)
        return statistics.median(times) * 1000

    subjects: list[Subject] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            where = {"device": arguments.device}
            subjects.append(ours("mexma", Path(folder) / "one", arguments.model, **where))
            if arguments.workers:
                subjects.append(
                    ours(
                        f"mexma, {arguments.workers} HTTP workers",
                        Path(folder) / "several",
                        arguments.model,
                        http_workers=arguments.workers,
                        **where,
                    )
                )
            if arguments.peers:
                subjects += peers(arguments.peers, arguments.checkpoint, threads)
            expected = encode(encoder, texts[:64])
            equal = []
            for subject in subjects:
                worst = float((vectors(subject.url, texts[:64]) * expected).sum(1).min())
                equal.append(f"{subject.name} {worst:.5f}")
                assert worst > 0.998, f"{subject.name} computes something else: cosine {worst}"
            engine: list[float] = []
            alone_ms: list[float] = []
            for _ in range(arguments.rounds):
                engine_rate(1)
                engine.append(max(engine_rate(factor) for factor in (*FACTORS, *FACTORS)))
                alone_ms.append(engine_alone_ms())
                for load in LOADS:
                    for subject in subjects:
                        told = ("--clients", load[0], "--texts", load[1])
                        before = subject.cpu_s()
                        found = finished(
                            generate(subject.url, *told, "--seconds", arguments.seconds)
                        )
                        found["cpu_ms"] = 1000 * (subject.cpu_s() - before) / found["requests"]
                        assert not found["failed"], f"{subject.name}: {found}"
                        subject.rounds.setdefault(load, []).append(found)
        finally:
            for subject in subjects:
                subject.process.terminate()
            for subject in subjects:
                subject.process.wait(60)
    report(arguments, subjects, engine, alone_ms, equal, threads)


def report(arguments, subjects, engine, alone_ms, equal, threads) -> None:
    rows = []
    for clients, texts in LOADS:
        for subject in subjects:
            rounds = subject.rounds[clients, texts]
            of_engine = [r["texts_per_s"] / e for r, e in zip(rounds, engine, strict=True)]
            first = subjects[0].rounds[clients, texts]
            times = [
                a["texts_per_s"] / b["texts_per_s"] for a, b in zip(first, rounds, strict=True)
            ]
            rows.append(
                f"| {clients} | {texts} | {subject.name} | "
                f"{subject.median((clients, texts), 'texts_per_s'):.0f} | "
                f"{statistics.median(of_engine):.2f} | {statistics.median(times):.2f} | "
                f"{subject.median((clients, texts), 'p50_ms'):.1f} | "
                f"{subject.median((clients, texts), 'p99_ms'):.1f} |"
            )
    cpu = statistics.median(r["generator_cpu_us_per_request"] for r in subjects[0].rounds[64, 1])
    whole_ms = subjects[0].median((4, 64), "cpu_ms")
    shares = [
        f"{name} {ms:.2f} ms ({ms / whole_ms:.1%})" for name, ms in serialisation_ms(64, 1024)
    ]
    file = result_file("served")
    picture(subjects, statistics.median(engine), file.with_suffix(".png"))
    file.write_text(
        f"""# Served, beside the engine alone and other servers

`python -m benchmarks.served{" --peers PYTHON --checkpoint DIR" if arguments.peers else ""}`. {circumstances("onnxruntime", "fastapi", "uvicorn", "uvloop")}
{arguments.rounds} interleaved rounds of {arguments.seconds:g} s a load, {threads} threads for each server, medians. Servers and load
generator share the machine's cores; the generator took {cpu:.0f} us of processor time a request (64 clients, one text).
Smallest cosine to the engine's vectors, 64 texts: {"; ".join(equal)}.

Engine alone, tokenisation included: **{statistics.median(engine):.0f} texts/s** in batches; **{statistics.median(alone_ms):.2f} ms** (median) for one text, without
tokenisation.

Serialisation of 64 vectors of 1,024 components: {", ".join(shares)}; the shares are of the {whole_ms:.1f} ms of processor
time, all threads together, that the server took for a request of 64 texts.

| clients | texts a request | server | texts/s | of the engine | mexma is x times | p50 ms | p99 ms |
|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

![texts per second and latency]({file.with_suffix(".png").name})
"""
    )
    print(file.read_text())


if __name__ == "__main__":
    main()
