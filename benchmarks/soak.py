"""Does memory grow? `python -m benchmarks.soak --minutes 60`.

Mixed shapes without a pause: one to 256 texts, one to some thousand characters, base64 and numbers, token ids,
bad requests, clients that leave before their answer, both lanes, and documents written, replaced, deleted and
searched for in a collection of at most 5,000. Resident memory is read every second; the drift
is between the medians of the first and the last tenth after warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import httpx

from benchmarks.circumstances import circumstances, result_file
from mexma.sample import tatoeba_sample
from service.settings import DEFAULT_MODEL
from tests.conftest import Server, start_server, wait_until_ready

CLIENTS = 12
KINDS = [
    "float",
    "base64",
    "base64",
    "ids",
    "empty",
    "left",
    "embed",
    "write",
    "delete",
    "search",
    "search",
]
COLLECTION, IDS = "/v1/collections/soak", 5_000


def resident_mb(server: Server) -> float:
    """Of the server's process, or of all processes where there are several, shared pages once."""
    pid = server.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    pages = 0
    for process in (str(pid), *children):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                pages += int(line.split()[1])
    return pages / 1024


async def client(url: str, seed: int, until: float, counts: dict[str, int]) -> None:
    rng = random.Random(seed)
    pool = [s.text for s in tatoeba_sample()]
    async with httpx.AsyncClient(base_url=url, timeout=300) as http:
        while time.monotonic() < until:
            size = min(256, int(rng.paretovariate(0.7)))
            texts = [
                " ".join(rng.choices(pool, k=min(60, int(rng.paretovariate(1.1)))))
                for _ in range(size)
            ]
            body: dict[str, object] = {"input": texts}
            kind = rng.choice(KINDS)
            if kind == "base64":
                body["encoding_format"] = "base64"
            elif kind == "ids":
                body["input"] = [
                    [rng.randrange(5, 200_000) for _ in range(rng.randint(1, 90))] for _ in texts
                ]
            elif kind == "empty":
                texts[rng.randrange(size)] = ""
            headers = rng.choice([{}, {"x-lane": "bulk"}, {"x-lane": "interactive"}])
            method, path = "POST", "/v1/embeddings"
            if kind == "embed":
                path, body = "/embed", {"inputs": texts, "truncate": True}
            elif kind == "write":
                ids = rng.sample(range(IDS), size)
                path = f"{COLLECTION}/documents"
                body = {
                    "documents": [
                        {"id": f"d{i}", "text": t} for i, t in zip(ids, texts, strict=True)
                    ]
                }
            elif kind == "delete":
                method, path = "DELETE", f"{COLLECTION}/documents"
                body = {"ids": [f"d{i}" for i in rng.sample(range(IDS), size)]}
            elif kind == "search":
                path = f"{COLLECTION}/search"
                body = {"queries": texts[:64], "k": rng.choice([1, 10, 50])}
            work = http.request(method, path, json=body, headers=headers)
            if kind == "left":
                with suppress(TimeoutError):
                    await asyncio.wait_for(work, rng.uniform(0.001, 0.3))
                counts["left"] = counts.get("left", 0) + 1
                continue
            response = await work
            expected = 422 if kind == "empty" else 200
            assert response.status_code in (expected, 503), response.text[:300]
            counts[kind] = counts.get(kind, 0) + 1


async def soak(server: Server, minutes: float) -> tuple[list[tuple[float, float]], dict[str, int]]:
    began = time.monotonic()
    until = began + minutes * 60
    counts: dict[str, int] = {}
    tasks = [asyncio.create_task(client(server.url, i, until, counts)) for i in range(CLIENTS)]
    samples = []
    while time.monotonic() < until:
        samples.append((time.monotonic() - began, resident_mb(server)))
        await asyncio.sleep(1)
        for task in tasks:
            if task.done():
                task.result()
    await asyncio.gather(*tasks)
    return samples, counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--warm-up", type=float, default=0.15, help="share of the time")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = start_server(
            Path(folder),
            demo="false",
            bulk_batch_tokens=0,
            model=arguments.model,
            http_workers=arguments.workers,
        )
        wait_until_ready(server)
        httpx.put(f"{server.url}{COLLECTION}").raise_for_status()
        try:
            samples, counts = asyncio.run(soak(server, arguments.minutes))
            ready = httpx.get(f"{server.url}/health/ready").status_code
        finally:
            server.process.terminate()
            server.process.wait(60)
    assert ready == 200
    kept = [mb for at, mb in samples if at >= arguments.warm_up * arguments.minutes * 60]
    tenth = max(1, len(kept) // 10)
    first, last = statistics.median(kept[:tenth]), statistics.median(kept[-tenth:])
    file = result_file("soak")
    picture(samples, arguments.warm_up * arguments.minutes, file.with_suffix(".png"))
    file.write_text(
        f"""# Soak

`python -m benchmarks.soak --minutes {arguments.minutes:g}`. {circumstances("onnxruntime", "fastapi", "uvicorn")}
{CLIENTS} clients without a pause, mixed shapes: {sum(counts.values())} requests ({", ".join(f"{k} {v}" for k, v in sorted(counts.items()))}).
HTTP workers: {arguments.workers}.

| resident memory, MB | |
|---|---|
| after warm-up ({arguments.warm_up * arguments.minutes:.1f} min), median of a tenth | {first:.0f} |
| at the end, median of a tenth | {last:.0f} |
| drift | {(last - first) / first:+.1%} |
| largest | {max(mb for _, mb in samples):.0f} |

![memory over time]({file.with_suffix(".png").name})
"""
    )
    print(file.read_text())


def picture(samples: list[tuple[float, float]], warm_up_min: float, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 3.5), layout="constrained")
    axis.plot(
        [at / 60 for at, _ in samples], [mb for _, mb in samples], color="#0b6e4f", linewidth=1
    )
    axis.axvline(warm_up_min, color="grey", linestyle="--", linewidth=1)
    axis.set_ylim(0)
    axis.set_xlabel("minutes (dashed: end of warm-up)")
    axis.set_ylabel("resident memory, MB")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
