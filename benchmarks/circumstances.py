"""Under which circumstances a number was measured; printed with every result."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
"""What is published."""
ROOT = RESULTS.parent.parent


def result_file(what: str, accelerator: str = "", folder: Path | None = None) -> Path:
    """Where a result is kept: `<what>_<hardware>_<date>.md`.

    accelerator: name of the device that did the work; "" for the processor. folder: made where it is missing;
    None for `build/benchmarks`, as a trial must not replace what is published, or where BENCHMARK_RESULTS
    says (`benchmarks/results` to publish).
    """
    if folder is None:
        folder = Path(os.environ.get("BENCHMARK_RESULTS") or ROOT / "build" / "benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0))
    hardware = accelerator or f"{_cpuinfo('model name')} {cores}c"
    name = re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
    return folder / f"{what}_{name}_{datetime.date.today().isoformat()}.md"


def say(what: str, started: float) -> None:
    """A line of progress. started: of `time.perf_counter`."""
    print(f"{time.perf_counter() - started:6.1f} s  {what}", flush=True)


def _cpuinfo(key: str) -> str:
    rows = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    return next((value.strip() for name, _, value in rows if name.strip() == key), "unknown")


def processor() -> str:
    """The processor's name, with the number of cores this process may use."""
    flags = _cpuinfo("flags").split()
    known = [
        f for f in ("avx2", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8") if f in flags
    ]
    return f"{_cpuinfo('model name')} ({len(os.sched_getaffinity(0))} cores; {', '.join(known)})"


def circumstances(*packages: str) -> str:
    """One Markdown line: processor, versions of `packages`, commit and date."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,  # a copy without its history
    ).stdout.strip()
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} not installed")
    parts = [processor(), f"Python {platform.python_version()}", *found]
    return f"{'; '.join(parts)}; commit {commit or 'unknown'}; {datetime.date.today().isoformat()}."
