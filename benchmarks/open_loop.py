"""How long does an answer take at a given rate? `python -m benchmarks.open_loop --peers PYTHON --checkpoint DIR`.

One sentence a request. Requests start by a Poisson process whether answers come or not, and times count from when
one was due: what a stall delays is seen. The rate is raised step by step, interleaved between the servers; one that
answers less than KEEPS_UP of it has met its limit and is asked no more. Servers and peers are those of `benchmarks.served`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from benchmarks.circumstances import circumstances, result_file
from benchmarks.generators import finished, generate
from benchmarks.served import COLOURS
from benchmarks.subjects import Subject, ours, peers
from service.settings import DEFAULT_MODEL

RATES = (5, 10, 20, 50, 100, 200, 400, 800, 1_200, 1_600, 2_000, 3_000)
CONNECTIONS = 256
KEEPS_UP = 0.95


def climb(subjects: list[Subject], seconds: float, rounds: int) -> dict[tuple[str, int], list]:
    """(server, rate) -> what the generator said in each round; nothing beyond a server's limit."""
    found: dict[tuple[str, int], list] = {}
    able = list(subjects)
    for rate in RATES:
        for _ in range(rounds):
            for subject in able:
                told = ("--clients", CONNECTIONS, "--rate", rate, "--seconds", seconds)
                found.setdefault((subject.name, rate), []).append(
                    finished(generate(subject.url, *told))
                )
        able = [
            subject
            for subject in able
            if median(found[subject.name, rate], "requests_per_s") >= KEEPS_UP * rate
        ]
    return found


def median(rounds: list[dict[str, float]], what: str) -> float:
    return statistics.median(r[what] for r in rounds)


def picture(subjects: list[Subject], found: dict[tuple[str, int], list], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for subject, colour in zip(subjects, COLOURS, strict=False):
        rates = [rate for rate in RATES if (subject.name, rate) in found]
        for what, style in (("p50_ms", "-"), ("p99_ms", ":")):
            times = [median(found[subject.name, rate], what) for rate in rates]
            axis.plot(rates, times, style, color=colour, marker="o", markersize=3,
                      label=f"{subject.name}, {what[:3]}")  # fmt: skip
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(RATES, [str(rate) for rate in RATES])
    axis.minorticks_off()
    axis.set_xlabel(
        "requests a second; a line ends with the rate that its server could not keep up with"
    )
    axis.set_ylabel("ms")
    axis.legend(frameon=False, fontsize="small")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4, help="of each step")
    arguments = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    subjects: list[Subject] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            subjects.append(ours("mexma", Path(folder) / "one", arguments.model))
            if arguments.peers:
                subjects += peers(arguments.peers, arguments.checkpoint, threads)
            for subject in subjects:
                finished(generate(subject.url, "--clients", 8, "--seconds", 2))  # warm
            found = climb(subjects, arguments.seconds, arguments.rounds)
        finally:
            for subject in subjects:
                subject.process.terminate()
            for subject in subjects:
                subject.process.wait(60)
    file = result_file("open_loop")
    picture(subjects, found, file.with_suffix(".png"))
    rows = [
        f"| {rate} | {subject.name} | {median(rounds, 'requests_per_s'):.0f} | "
        f"{median(rounds, 'p50_ms'):.1f} | {median(rounds, 'p90_ms'):.1f} | {median(rounds, 'p99_ms'):.1f} |"
        for rate in RATES
        for subject in subjects
        if (rounds := found.get((subject.name, rate)))
    ]
    file.write_text(
        f"""# Latency by rate, open loop

`python -m benchmarks.open_loop{" --peers PYTHON --checkpoint DIR" if arguments.peers else ""}`. {circumstances("onnxruntime", "fastapi", "uvicorn", "uvloop")}
One sentence a request, {CONNECTIONS} connections, Poisson arrivals, times from when a request was due; {arguments.rounds} interleaved rounds of
{arguments.seconds:g} s, medians; {threads} threads for each server, and the generator on the same cores. A server that answers less than {KEEPS_UP:.0%} of a rate is
asked for no higher one.

| requests a second | server | answered/s | p50 ms | p90 ms | p99 ms |
|---|---|---|---|---|---|
{chr(10).join(rows)}

![latency by rate]({file.with_suffix(".png").name})
"""
    )
    print(file.read_text())


if __name__ == "__main__":
    main()
