"""What searches feel of a migration: `python -m benchmarks.migration`.

One client searches a collection, one query at a time with 50 ms between them, and meanwhile: nothing;
the collection migrates to another encoder of the same size; or, the usual way to change a model, a second
client sends the same texts to a new collection of that encoder, 32 a request. Rounds are interleaved. It
is checked first that both ways make the same vectors. The cache of vectors is off.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
from tqdm import tqdm

from benchmarks.circumstances import circumstances, result_file
from mexma.artifact import read_manifest, write_manifest
from mexma.sample import tatoeba_sample
from service.settings import DEFAULT_MODEL
from tests.conftest import start_server, wait_until_ready

PAUSE_S = 0.05
NOTES, COPY = "/v1/collections/notes", "/v1/collections/copy"


def sibling(folder: Path) -> Path:
    """The default model with another prefix: another encoder that costs the same."""
    shutil.copytree(DEFAULT_MODEL, folder)
    raw = json.loads((folder / "manifest.json").read_text())
    del raw["fingerprint"]
    raw["prefix"], raw["name"] = "passage: ", "sibling"
    (folder / "manifest.json").write_text(json.dumps(raw))
    write_manifest(folder, read_manifest(folder))
    return folder


def put(client: httpx.Client, path: str, texts: list[str], start: int) -> None:
    documents = [{"id": str(start + i), "text": text, "lang": "en"} for i, text in enumerate(texts)]
    client.post(f"{path}/documents", json={"documents": documents}).raise_for_status()


def searched(client: httpx.Client, texts: list[str], seconds: float) -> list[float]:
    """Times of single queries, in seconds."""
    times, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        body = {"queries": [random.choice(texts)], "query_language": "en"}
        started = time.perf_counter()
        client.post(f"{NOTES}/search", json=body).raise_for_status()
        times.append(time.perf_counter() - started)
        time.sleep(PAUSE_S)
    return times


def check_same(client: httpx.Client, texts: list[str]) -> None:
    """Both ways store what the encoder makes of a text: it is found by itself, with cosine 1."""
    client.put(COPY, params={"model": "sibling"}).raise_for_status()
    put(client, COPY, texts, 0)
    while client.get(f"{NOTES}/migration", params={"sample": 0}).json()["phase"] == "embedding":
        time.sleep(0.2)
    answers = []
    for path, verb in ((COPY, ""), (NOTES, "cut-over")):
        if verb:
            client.post(f"{NOTES}/migration/{verb}").raise_for_status()
        body = {"queries": texts, "k": 1, "query_language": "en"}
        found = client.post(f"{path}/search", json=body).json()
        answers.append(
            [(hits[0]["text"], round(hits[0]["cosine"], 3)) for hits in found["results"]]
        )
    assert answers[0] == answers[1] == [(text, 1.0) for text in texts], "the ways differ"
    client.post(f"{NOTES}/migration/rollback").raise_for_status()
    client.delete(COPY)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--texts", type=int, default=6_000)
    options = parser.parse_args()
    rng = random.Random(0)
    pool = [s.text for s in tatoeba_sample()]
    texts = [f"{rng.choice(pool)} {i}" for i in range(options.texts)]
    folder = Path(tempfile.mkdtemp())
    settings = {"further_models": sibling(folder / "sibling"), "demo": "false", "cache_mb": 0}
    server = start_server(folder, **settings)
    wait_until_ready(server)
    client = httpx.Client(base_url=server.url, timeout=120)
    client.put(NOTES)
    for start in tqdm(range(0, len(texts), 500), desc="filling"):
        put(client, NOTES, texts[start : start + 500], start)

    def migrate(stop: threading.Event) -> int:
        client.post(f"{NOTES}/migration", json={"model": "sibling"}).raise_for_status()
        stop.wait()
        found = client.get(f"{NOTES}/migration", params={"sample": 0}).json()["embedded"]
        client.delete(f"{NOTES}/migration").raise_for_status()
        return int(found)

    def upload(stop: threading.Event) -> int:
        sent = 0
        with httpx.Client(base_url=server.url, timeout=120) as own:
            own.put(COPY, params={"model": "sibling"})
            while not stop.is_set() and sent < len(texts):
                put(own, COPY, texts[sent : sent + 32], sent)
                sent += 32
            stop.wait()
            own.delete(COPY)
        return sent

    def with_background(
        work: Callable[[threading.Event], int], wait: Callable[[], object]
    ) -> float:
        """Documents per second of `work` for as long as `wait` takes."""
        stop, done = threading.Event(), []
        thread = threading.Thread(target=lambda: done.append(work(stop)))
        started = time.monotonic()
        thread.start()
        wait()
        seconds = time.monotonic() - started
        stop.set()
        thread.join()
        return done[0] / seconds

    ways: dict[str, Callable[[threading.Event], int]] = {"migration": migrate, "upload": upload}
    client.post(f"{NOTES}/migration", json={"model": "sibling"}).raise_for_status()
    check_same(client, texts[:64])
    same = client.get(f"{NOTES}/migration").json()["report"]
    client.delete(f"{NOTES}/migration")
    times: dict[str, list[list[float]]] = {name: [] for name in ("alone", *ways)}
    rates: dict[str, list[float]] = {f"{n}, {w}": [] for n in ways for w in ("searched", "unasked")}
    for _ in tqdm(range(options.rounds)):
        times["alone"].append(searched(client, texts, options.seconds))
        for name, work in ways.items():
            rates[f"{name}, searched"].append(
                with_background(
                    work, lambda n=name: times[n].append(searched(client, texts, options.seconds))
                )
            )
            rates[f"{name}, unasked"].append(
                with_background(work, lambda: time.sleep(options.seconds / 2))
            )
    server.process.terminate()
    server.process.wait(60)
    shutil.rmtree(folder)
    rows = []
    for name, took in times.items():
        p50, p95 = np.median([np.percentile(t, [50, 95]) for t in took], axis=0) * 1000
        ratios = [
            np.median(t) / np.median(alone) for t, alone in zip(took, times["alone"], strict=True)
        ]
        busy, free = (
            f"{statistics.median(rates[f'{name}, {w}']):.0f}" if name in ways else ""
            for w in ("searched", "unasked")
        )
        rows.append(
            f"| {name} | {p50:.1f} | {p95:.1f} | {np.median(ratios):.2f} | {busy} | {free} |"
        )
    report = f"""# Searches beside a migration

`python -m benchmarks.migration`. {circumstances("onnxruntime", "faiss-cpu", "fastapi")}
{len(texts)} documents, {options.rounds} interleaved rounds of {options.seconds:.0f} s, medians over the rounds; the ratio is
within each round. "upload": the texts are sent to a new collection by a client, 32 a request. Overlap@10 of the two encoders: {same["overlap"]:.2f}.
Server and clients share the machine's cores.

| meanwhile | search p50 ms | p95 ms | p50 to alone | documents/s beside searches | documents/s without |
|---|---|---|---|---|---|
{chr(10).join(rows)}
"""
    result_file("migration").write_text(report)
    print(report)


if __name__ == "__main__":
    main()
