"""How much of the engine reaches the clients: `make bench`.

The same sentences (the sample's, with every eighth one four times as long) through the engine alone, in
this process, and over HTTP: in requests of 64 texts, and one text a request from 64 clients and from one.
Rounds are interleaved; the table gives medians over the rounds, ratios within each round. Vectors are
checked to be equal first.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import random
import statistics
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
from tqdm import tqdm

from benchmarks.circumstances import circumstances, result_file
from mexma.encoder import OnnxEncoder, encode
from mexma.sample import tatoeba_sample
from service.settings import DEFAULT_MODEL, Settings
from tests.conftest import start_server, wait_until_ready


def sentences(count: int) -> list[str]:
    """A length mix: short sentences, every eighth made of four."""
    rng = random.Random(0)
    pool = [s.text for s in tatoeba_sample()]
    return [" ".join(rng.sample(pool, 4 if i % 8 == 0 else 1)) for i in range(count)]


async def post(client: httpx.AsyncClient, texts: list[str]) -> tuple[np.ndarray, float]:
    """Vectors of one request, and its time in seconds."""
    started = time.perf_counter()
    body = {"input": texts, "encoding_format": "base64"}
    response = await client.post("/v1/embeddings", json=body)
    response.raise_for_status()
    seconds = time.perf_counter() - started
    data = response.json()["data"]
    return np.stack([np.frombuffer(base64.b64decode(d["embedding"]), "<f4") for d in data]), seconds


async def load(url: str, texts: list[str], size: int, clients: int) -> tuple[float, list[float]]:
    """Send all texts, `size` a request, from `clients` at once: texts/s and request times."""
    requests = [texts[i : i + size] for i in range(0, len(texts), size)]
    times: list[float] = []

    async def one(client: httpx.AsyncClient) -> None:
        while requests:
            times.append((await post(client, requests.pop()))[1])

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120) as client:
        started = time.perf_counter()
        await asyncio.gather(*(one(client) for _ in range(clients)))
        return len(texts) / (time.perf_counter() - started), times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=512)
    arguments = parser.parse_args()
    texts = sentences(arguments.texts)
    encoder = OnnxEncoder(DEFAULT_MODEL)
    mean_tokens = statistics.mean(len(t) for t in encoder.tokenizer.encode(texts))
    settings = Settings()

    def engine() -> np.ndarray:
        return encode(
            encoder,
            texts,
            max_batch_tokens=settings.max_batch_tokens,
            max_batch_items=settings.max_batch_items,
        )

    loads = {
        "64 texts a request, 4 clients": (64, 4),
        "1 text a request, 64 clients": (1, 64),
        "1 text a request, 1 client": (1, 1),
    }
    rates: dict[str, list[float]] = {name: [] for name in ["engine", *loads]}
    times: dict[str, list[float]] = {name: [] for name in loads}
    with tempfile.TemporaryDirectory() as folder:
        server = start_server(Path(folder), demo="false")
        wait_until_ready(server)

        async def check() -> None:
            async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
                found, _ = await post(client, texts)
            worst = float((found * engine()).sum(1).min())
            assert worst > 0.9999, f"the service's vectors differ from the engine's: {worst}"

        asyncio.run(check())
        for _ in tqdm(range(arguments.rounds)):
            started = time.perf_counter()
            engine()
            rates["engine"].append(len(texts) / (time.perf_counter() - started))
            for name, (size, clients) in loads.items():
                subset = texts if clients > 1 else texts[:128]
                rate, took = asyncio.run(load(server.url, subset, size, clients))
                rates[name].append(rate)
                times[name] += took
        server.process.terminate()
        server.process.wait(30)
    rows = [f"| engine alone | {statistics.median(rates['engine']):.0f} | 1 | | |"]
    for name in loads:
        ratios = [a / b for a, b in zip(rates[name], rates["engine"], strict=True)]
        ms = np.percentile(times[name], [50, 99]) * 1000
        rows.append(
            f"| {name} | {statistics.median(rates[name]):.0f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) | {ms[0]:.1f} | {ms[1]:.1f} |"
        )
    report = f"""# Served against the engine alone

`make bench`. {circumstances("onnxruntime", "fastapi", "uvicorn")}
{len(texts)} sentences of {mean_tokens:.1f} tokens on average, {arguments.rounds} interleaved rounds, medians.
Server and clients share the machine's cores.

| | sentences/s | of the engine | p50 ms | p99 ms |
|---|---|---|---|---|
{chr(10).join(rows)}
"""
    result_file("served_throughput").write_text(report)
    print(report)


if __name__ == "__main__":
    main()
