"""The same hostile clients against this service, infinity and a plain FastAPI app:
`python -m benchmarks.hostile --peers PYTHON --checkpoint DIR` (as for `benchmarks.served`).

Each server runs alone, with its defaults; each row of `hostile_clients` is done to it while a well-behaved client
sends a sentence every 0.2 s on connections of its own, and its process is watched. A server that has died, or does
not answer within a minute afterwards, is started anew for the next row.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from benchmarks.circumstances import circumstances, result_file
from benchmarks.hostile_clients import Attack, attacks
from benchmarks.soak import resident_mb
from benchmarks.subjects import Subject, infinity, ours, plain
from service.settings import DEFAULT_MODEL

SETTLE_S = 3.0
BESIDE_TIMEOUT_S = 10.0
RECOVERY_S = 60.0


@dataclass
class Row:
    """What one server made of one attack. Times of the client beside in ms; memory in MB."""

    answer: str
    served: int = 0
    not_served: int = 0
    times_ms: list[float] = field(default_factory=list)
    peak_mb: float = 0.0
    kept_mb: float = 0.0
    after: str = ""

    def cells(self) -> str:
        times = self.times_ms
        beside = f"{self.served} of {self.served + self.not_served}"
        if times:
            beside += f"; {statistics.median(times):.0f} / {max(times):.0f} ms"
        return (
            f"{self.answer} | {beside} | {self.peak_mb:+.0f} / {self.kept_mb:+.0f} | {self.after}"
        )


def ask(url: str, timeout_s: float = BESIDE_TIMEOUT_S) -> bool:
    body = {"input": ["Good morning"], "model": "m"}
    try:
        return httpx.post(url, json=body, timeout=timeout_s).status_code == 200
    except httpx.HTTPError:
        return False


class Beside:
    """A well-behaved client, and a look at the server's memory, for as long as the context lasts."""

    def __init__(self, subject: Subject, row: Row):
        self._subject, self._row = subject, row
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask), threading.Thread(target=self._watch)]
        self._before_mb = resident_mb(subject)

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        time.sleep(SETTLE_S)
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._row.kept_mb = self._resident() - self._before_mb

    def _resident(self) -> float:
        try:
            return resident_mb(self._subject)
        except OSError:
            return 0.0

    def _ask(self) -> None:
        while not self._over.wait(0.2):
            began = time.perf_counter()
            if ask(self._subject.url):
                self._row.served += 1
                self._row.times_ms.append((time.perf_counter() - began) * 1000)
            else:
                self._row.not_served += 1

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self._row.peak_mb = max(self._row.peak_mb, self._resident() - self._before_mb)


def suffer(subject: Subject, attack: Attack) -> Row:
    url = urlsplit(subject.url)
    row = Row("")
    with Beside(subject, row):
        try:
            row.answer = attack.act((url.hostname or "", url.port or 0))
        except OSError as error:
            row.answer = f"cannot connect ({type(error).__name__})"
    if subject.process.poll() is not None:
        row.after = f"**dead** ({subject.process.returncode})"
        return row
    began = time.monotonic()
    while not ask(subject.url, 5) and time.monotonic() - began < RECOVERY_S:
        pass
    took_s = time.monotonic() - began
    row.after = "serves" if took_s < 5 else f"serves after {took_s:.0f} s"
    if took_s >= RECOVERY_S:
        row.after = "**does not answer**"
    return row


def stop(subject: Subject) -> None:
    subject.process.terminate()
    try:
        subject.process.wait(20)
    except Exception:  # noqa: BLE001 - it does not end by itself
        subject.process.kill()
        subject.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, help="interpreter with infinity-emb")
    parser.add_argument("--checkpoint", type=Path, help="what the artifact was exported from")
    parser.add_argument("--hold-s", type=float, default=40, help="of clients that hold something")
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--servers", default="", help="of these names only, separated by commas")
    parser.add_argument("--keep", type=Path, help="JSON with rows of earlier runs; updated")
    parser.add_argument("--only", default="", help="attacks whose name has this in it")
    parser.add_argument("--out", type=Path, help="instead of a file in benchmarks/results")
    arguments = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    threads = len(os.sched_getaffinity(0))
    chosen = [
        a for a in attacks(arguments.hold_s, arguments.connections) if arguments.only in a.name
    ]
    results: dict[str, dict[str, str]] = {}
    if arguments.keep and arguments.keep.exists():
        results = json.loads(arguments.keep.read_text())
    with tempfile.TemporaryDirectory() as folder:
        numbers = iter(range(10**6))

        makers: dict[str, Callable[[], Subject]] = {
            "mexma": lambda: ours("mexma", Path(folder) / str(next(numbers)), DEFAULT_MODEL)
        }
        if arguments.peers:
            peer = arguments.peers, arguments.checkpoint, threads
            makers |= {"infinity": lambda: infinity(*peer), "plain FastAPI": lambda: plain(*peer)}
        wanted = [name for name in arguments.servers.split(",") if name] or list(makers)
        for name, make in makers.items():
            if name not in wanted:
                continue
            subject = make()
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            try:
                for _ in range(20):
                    ask(subject.url)
                for attack in chosen:
                    row = suffer(subject, attack)
                    results.setdefault(name, {})[attack.name] = row.cells()
                    if arguments.keep:
                        arguments.keep.write_text(json.dumps(results, indent=1))
                    print(f"{name} | {attack.name} | {row.cells()}", flush=True)
                    if "**" in row.after:
                        stop(subject)
                        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                        subject = make()
                        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
                        ask(subject.url)
            finally:
                stop(subject)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    file = arguments.out or result_file("hostile")
    every = attacks(arguments.hold_s, arguments.connections)
    file.write_text(report(arguments, every, results, soft, hard))


def report(
    arguments, chosen: list[Attack], results: dict[str, dict[str, str]], soft: int, hard: int
) -> str:
    rows = [
        f"| {attack.name} | {name} | {found[attack.name]} |"
        for attack in chosen
        for name, found in results.items()
        if attack.name in found
    ]
    return f"""# Hostile clients, against this service and others

`python -m benchmarks.hostile{" --peers PYTHON --checkpoint DIR" if arguments.peers else ""}`. {circumstances("fastapi", "uvicorn")}
Each server alone, with its defaults and the same weights, started with a limit of {soft:,} open files (this service raises it to
the {hard:,} that it may have). What is held open is held for {arguments.hold_s:g} s. Beside it a well-behaved client sends a sentence every 0.2 s:
how many it got (10 s at most), and its median and worst time. The machine was shared with other work, so times are no benchmark.
Memory: the most it grew, and what of that was left {SETTLE_S:g} s after the clients had gone.

| what clients do | server | answer | beside: served; median / worst | memory MB, most / left | afterwards |
|---|---|---|---|---|---|
{chr(10).join(rows)}
"""


if __name__ == "__main__":
    main()
