"""What a small client notices of a large one: `python -m benchmarks.lanes`.

One sentence a request at a steady rate (open loop), alone and beside (a) bulk work of 64 texts a request from four
connections that never pause, and (b) another client with as many single sentences as 64 connections carry. Idle and
loaded rounds alternate; percentiles are of all requests of a kind.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from benchmarks.circumstances import circumstances, result_file
from benchmarks.generators import finished, generate
from benchmarks.subjects import ours
from service.settings import DEFAULT_MODEL

SMALL = "--header", "authorization=Bearer small"
LARGE = "--header", "authorization=Bearer large"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="artifact")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument(
        "--rate", type=float, default=20, help="of the small client, requests a second"
    )
    arguments = parser.parse_args()
    seconds = arguments.seconds
    small = ("--clients", 16, "--texts", 1, "--rate", arguments.rate, *SMALL)
    large = {
        "bulk work": ("--clients", 4, "--texts", 64, *LARGE),
        "a client of 64 connections": ("--clients", 64, "--texts", 1, *LARGE),
    }
    names = ["idle", *large]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    others: dict[str, list[dict[str, float]]] = {name: [] for name in large}
    alone: dict[str, list[dict[str, float]]] = {name: [] for name in large}
    with tempfile.TemporaryDirectory() as folder:
        subject = ours("mexma", Path(folder) / "one", arguments.model)
        try:
            finished(generate(subject.url, *small, "--seconds", 2))
            for _ in range(arguments.rounds):
                found["idle"].append(finished(generate(subject.url, *small, "--seconds", seconds)))
                for name, told in large.items():
                    alone[name].append(
                        finished(generate(subject.url, *told, "--seconds", seconds / 2))
                    )
                    other = generate(subject.url, *told, "--seconds", seconds + 2)
                    found[name].append(
                        finished(generate(subject.url, *small, "--seconds", seconds))
                    )
                    others[name].append(finished(other))
        finally:
            subject.process.terminate()
            subject.process.wait(60)
    idle_p50, idle_p99 = (
        statistics.median(r[p] for r in found["idle"]) for p in ("p50_ms", "p99_ms")
    )
    rows = [f"| idle | {idle_p50:.1f} | {idle_p99:.1f} | 1 | | |"]
    for name in large:
        p50, p99 = (statistics.median(r[p] for r in found[name]) for p in ("p50_ms", "p99_ms"))
        ratio = statistics.median(
            a["p99_ms"] / b["p99_ms"] for a, b in zip(found[name], found["idle"], strict=True)
        )
        beside, by_itself = (
            statistics.median(r["texts_per_s"] for r in rounds)
            for rounds in (others[name], alone[name])
        )
        rows.append(
            f"| beside {name} | {p50:.1f} | {p99:.1f} | {ratio:.2f} | {by_itself:.0f} | {beside:.0f} |"
        )
    count = sum(r["requests"] for rounds in found.values() for r in rounds)
    failed = sum(r["failed"] for rounds in [*found.values(), *others.values()] for r in rounds)
    file = result_file("lanes")
    file.write_text(
        f"""# A small client beside a large one

`python -m benchmarks.lanes`. {circumstances("onnxruntime", "fastapi", "uvicorn")}
The small client sends {arguments.rate:g} requests a second of one sentence each (open loop), {arguments.rounds} rounds of {seconds:g} s
each, {count:.0f} requests, {failed:.0f} failed. Server and generators share the machine's cores. Medians over rounds.

| | p50 ms | p99 ms | p99 is x times idle | the large one alone, texts/s | beside the small one |
|---|---|---|---|---|---|
{chr(10).join(rows)}
"""
    )
    print(file.read_text())


if __name__ == "__main__":
    main()
