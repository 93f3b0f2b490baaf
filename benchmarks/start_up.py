"""How long `make serve` takes from a fresh clone, and how long the second time.

    python -m benchmarks.start_up

Clones this repository (what is committed) into a temporary directory, runs `make serve` there with
a virtual environment of its own until /health/ready says yes, stops it, and does it again. The
package index is whatever pip is configured with, so the first number depends on the network.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from benchmarks.circumstances import ROOT, circumstances, result_file
from tests.conftest import free_port


def seconds_until_ready(clone: Path, log: Path) -> float:
    """Run `make serve` in `clone` until it is ready; stop it and return the time it took."""
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MEXMA_", "VIRTUAL_"))}
    started = time.monotonic()
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["make", "serve", f"PORT={port}"],
            cwd=clone,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        while process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5)
                return time.monotonic() - started
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.05)
        sys.exit(f"make serve ended by itself:\n{log.read_text()}")
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        log = Path(folder) / "log"
        first = seconds_until_ready(clone, log)
        later = sorted(seconds_until_ready(clone, log) for _ in range(3))
        installed = subprocess.run(
            ["du", "-sm", str(clone / ".venv")], capture_output=True, text=True, check=True
        ).stdout.split()[0]
    report = f"""# Start-up

`python -m benchmarks.start_up`. {circumstances("onnxruntime", "faiss-cpu", "fastapi")}

| from a fresh clone, `make serve` until ready | |
|---|---|
| first time: environment, installation ({installed} MB), filling the demo | {first:.0f} s |
| second time (median of 3) | {later[1]:.1f} s |
"""
    result_file("start_up").write_text(report)
    print(report)


if __name__ == "__main__":
    main()
