"""What happens at twice the capacity? `python -m benchmarks.overload --minutes 10`.

First the capacity: the best rate of sentences answered to clients that send when their last answer has come
(closed loop, one sentence a request, a mix of lengths, no two equal). Then an open load of `--factor` times that:
requests start by a Poisson process whether answers come or not, of 16 clients with credentials of their own. Most
of those who are refused never come back. A share (`--returning`) comes back when it was told to, half of it by
`retry-after-ms`, half by `Retry-After`: what they find then is whether the header was true, since the load goes on.

The load generator shares the machine's cores with the server, in both phases: what it takes grows with the rate,
so some of what is missing from the peak under overload is its.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray

from benchmarks.circumstances import circumstances, result_file
from benchmarks.generators import finished, generate
from benchmarks.soak import resident_mb
from service.settings import DEFAULT_MODEL
from tests.conftest import Server, start_server, wait_until_ready

CALLERS = 16
PEAK_CLIENTS = (32, 64, 128)


@dataclass
class Window:
    """A stretch of the load. Times in ms, rates a second; told: of those who came back, the share
    accepted when they first did."""

    until_s: float
    goodput: float
    refused: float
    refusal_ms: tuple[float, float]
    accepted_ms: tuple[float, float]
    came_back: int
    told: float
    resident_mb: float
    failed: int


def capacity(url: str, seconds: float) -> tuple[float, dict[int, float]]:
    """The best rate of sentences, and the rate by number of clients."""
    rates = {}
    for clients in PEAK_CLIENTS:
        told = ("--clients", clients, "--callers", CALLERS, "--seconds", seconds)
        found = finished(generate(url, *told))
        rates[clients] = found["requests_per_s"]
    return max(rates.values()), rates


def hold(
    server: Server, url: str, rate: float, seconds: float, returning: float, record: Path
) -> tuple[dict[str, NDArray[np.float64]], list[tuple[float, float]], float]:
    """Every answer, (time, resident MB) twice a second, and the generator's us a request."""
    memory: list[tuple[float, float]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            memory.append((time.monotonic() - begun, resident_mb(server)))

    watcher = threading.Thread(target=watch)
    begun = time.monotonic()
    watcher.start()
    try:
        told = ("--rate", rate, "--seconds", seconds, "--callers", CALLERS, "--clients", 0)
        generator = generate(url, *told, "--returning", returning, "--record", record)
        cost = finished(generator)["generator_cpu_us_per_request"]
    finally:
        over.set()
        watcher.join()
    with np.load(record) as found:
        return {name: found[name] for name in found}, memory, cost


def percentiles(times_s: NDArray[np.float64]) -> tuple[float, float]:
    if not len(times_s):
        return float("nan"), float("nan")
    p50, p99 = np.percentile(times_s, [50, 99]) * 1000
    return float(p50), float(p99)


def window(answers, memory, since: float, until: float) -> Window:
    inside = (answers["ended_s"] >= since) & (answers["ended_s"] < until)
    status, took = answers["status"][inside], answers["took_s"][inside]
    good, refused = status == 200, status == 503
    first = answers["returns"][inside] == 1
    seen = [mb for at, mb in memory if since <= at < until]
    return Window(
        until,
        goodput=int(good.sum()) / (until - since),
        refused=int(refused.sum()) / (until - since),
        refusal_ms=percentiles(took[refused]),
        accepted_ms=percentiles(took[good]),
        came_back=int(first.sum()),
        told=float((first & good).sum() / first.sum()) if first.any() else float("nan"),
        resident_mb=float(np.median(seen)) if seen else float("nan"),
        failed=int((~good & ~refused).sum()),
    )


def picture(answers, memory, peak: float, seconds: float, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 1, figsize=(9, 7.5), sharex=True, layout="constrained")
    bins = np.arange(0, seconds + 1e-9, max(1.0, seconds / 120))
    centres, width = (bins[1:] + bins[:-1]) / 2, bins[1] - bins[0]
    good, refused = answers["status"] == 200, answers["status"] == 503
    for which, name, colour in ((good, "answered", "#0b6e4f"), (refused, "refused", "#c8553d")):
        counts, _ = np.histogram(answers["ended_s"][which], bins)
        axes[0].plot(centres, counts / width, label=name, color=colour)
        times = [
            percentiles(answers["took_s"][which & (answers["ended_s"] >= a) & (answers["ended_s"] < b)])
            for a, b in itertools.pairwise(bins)
        ]  # fmt: skip
        axes[1].plot(centres, [p50 for p50, _ in times], label=f"{name}, p50", color=colour)
        axes[1].plot(centres, [p99 for _, p99 in times], label="p99", color=colour, linestyle=":")
    axes[0].axhline(peak, color="black", linestyle="--", linewidth=1, label="capacity")
    axes[0].set_ylim(0)
    axes[0].set_ylabel("requests per second")
    axes[1].axhline(50, color="grey", linestyle="--", linewidth=1)
    axes[1].set_yscale("log")
    axes[1].set_ylabel("ms")
    axes[2].plot([at for at, _ in memory], [mb for _, mb in memory], color="#0b6e4f")
    axes[2].set_ylim(0)
    axes[2].set_xlim(0, seconds)
    axes[2].set_ylabel("resident memory, MB")
    axes[2].set_xlabel("seconds")
    for axis in axes[:2]:
        axis.legend(frameon=False, ncols=4, fontsize="small")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--factor", type=float, default=2, help="of the capacity")
    parser.add_argument("--returning", type=float, default=0.2, help="share that comes back")
    parser.add_argument("--peak-seconds", type=float, default=10, help="for each number of clients")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--out", type=Path, help="instead of a file in benchmarks/results")
    arguments = parser.parse_args()
    seconds = arguments.minutes * 60
    with tempfile.TemporaryDirectory() as folder:
        server = start_server(Path(folder), demo="false", model=arguments.model)
        wait_until_ready(server)
        url = f"{server.url}/v1/embeddings"
        try:
            capacity(url, 2)  # warm
            peak, rates = capacity(url, arguments.peak_seconds)
            before_mb = resident_mb(server)
            rate = peak * arguments.factor
            answers, memory, cost_us = hold(
                server, url, rate, seconds, arguments.returning, Path(folder) / "answers.npz"
            )
            ready = httpx.get(f"{server.url}/health/ready").status_code
            after, _ = capacity(url, arguments.peak_seconds)
        finally:
            server.process.terminate()
            ended = server.process.wait(60)
        said = [line for line in server.log.read_text().splitlines() if "dropped" in line]
    assert ready == 200 and ended == 0, (ready, ended)
    print("of connections the server says:", *(said or ["nothing"]), sep="\n")
    odd = ~np.isin(answers["status"], (200, 503))
    kinds, counts = np.unique(answers["status"][odd], return_counts=True)
    print(
        "neither answered nor refused, by status (0: cut):", dict(zip(kinds, counts, strict=True))
    )
    file = arguments.out or result_file("overload")
    picture(answers, memory, peak, seconds, file.with_suffix(".png"))
    text = report(arguments, file, answers, memory, peak, rates, after, before_mb, cost_us)
    file.write_text(text)
    print(text)


def report(
    arguments, file: Path, answers, memory, peak: float, rates, after: float, before_mb: float,
    cost_us: float,
) -> str:  # fmt: skip
    seconds = arguments.minutes * 60
    step = 60.0 if seconds >= 180 else max(5.0, seconds / 6)
    edges = [*np.arange(0, seconds - step / 2, step), seconds]
    windows = [window(answers, memory, a, b) for a, b in itertools.pairwise(edges)]
    whole = window(answers, memory, 0, seconds)
    tenth = max(1, len(memory) // 10)
    levels = [mb for at, mb in memory if at < seconds]
    # The queue fills in the first tenth: what it holds is no growth.
    first, last = np.median(levels[tenth : 2 * tenth]), np.median(levels[-tenth:])
    back = answers["returns"] == 1
    rows = "\n".join(
        f"| {w.until_s / 60:.1f} | {w.goodput:.0f} | {w.goodput / peak:.2f} | {w.refused:.0f} | "
        f"{w.refusal_ms[0]:.1f} / {w.refusal_ms[1]:.0f} | {w.accepted_ms[0]:.0f} / {w.accepted_ms[1]:.0f} | "
        f"{w.came_back} | {w.told:.1%} | {w.resident_mb:.0f} |"
        for w in windows
    )
    by = []
    for number, header in ((1, "retry-after-ms"), (2, "Retry-After")):
        some = back & (answers["by"] == number)
        good = some & (answers["status"] == 200)
        sent_away = (answers["by"] == number) & (answers["returns"] == 0) & (answers["told_s"] >= 0)
        told = answers["told_s"][sent_away]
        p50, p99 = percentiles(answers["took_s"][good])
        by.append(
            f"| `{header}` | {int(sent_away.sum())} | {np.median(told) if len(told) else float('nan'):.2f} | "
            f"{int(some.sum())} | {good.sum() / max(1, some.sum()):.2%} | {p50:.0f} / {p99:.0f} |"
        )
    command = f"python -m benchmarks.overload --minutes {arguments.minutes:g} --factor {arguments.factor:g}"
    return f"""# Under {arguments.factor:g} times the load it can take

`{command}`. {circumstances("onnxruntime", "fastapi", "uvicorn", "uvloop")}
One sentence a request, {CALLERS} clients with credentials of their own. Capacity (closed loop, {
        arguments.peak_seconds:g} s each): {
        ", ".join(f"{c} connections {r:.0f}/s" for c, r in rates.items())
    }; after the load {after:.0f}/s. Then {arguments.factor:g} times
{peak:.0f}/s, open loop, for {arguments.minutes:g} minutes: {
        len(answers["status"])
    } requests. The generator shares the cores with the server and took {cost_us:.0f} us of
processor time a request. {
        arguments.returning:.0%} of the clients come back when they were told to, the others never.

| | bar | |
|---|---|---|
| goodput, of the capacity | >= 0.90 | {whole.goodput / peak:.2f} |
| refusals, median | <= 50 ms | {whole.refusal_ms[0]:.1f} ms (p99 {whole.refusal_ms[1]:.0f}) |
| of those who came back when told, accepted at once | | {
        (back & (answers["status"] == 200)).sum() / max(1, back.sum()):.2%} of {int(back.sum())} |
| resident memory: second tenth, last tenth, drift | flat | {first:.0f} MB, {last:.0f} MB, {
        (last - first) / first:+.1%} (before the load {before_mb:.0f}) |
| neither answered nor refused | 0 | {
        int(((answers["status"] != 200) & (answers["status"] != 503)).sum())
    } |

| until minute | answered/s | of the capacity | refused/s | refusal ms p50 / p99 | answer ms p50 / p99 | came back | accepted then | MB |
|---|---|---|---|---|---|---|---|---|
{rows}

| told by | sent away | told, median s | came back in time | accepted then | then answered in ms p50 / p99 |
|---|---|---|---|---|---|
{chr(10).join(by)}

![goodput, latency and memory over time]({file.with_suffix(".png").name})
"""


if __name__ == "__main__":
    main()
