"""Servers under load, each in processes of its own: ours, infinity, and a plain FastAPI app."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.circumstances import ROOT
from tests.conftest import free_port, start_server, wait_until_ready

PEER_START_S = 300
PLAIN, INFINITY = "FastAPI + sentence-transformers", "infinity (torch)"
# Texts that a peer computes at once: its default on a CPU, and enough for a GPU.
PEER_BATCH = {"cpu": 32, "cuda": 256}


@dataclass
class Subject:
    """A running server. rounds: per load, what the generator said each time. interactive_until: when it had
    its last interactive request, by the monotonic clock."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    rounds: dict[tuple[int, int], list[dict[str, float]]] = field(default_factory=dict)
    interactive_until: float = -math.inf

    def median(self, load: tuple[int, int], what: str) -> float:
        return statistics.median(r[what] for r in self.rounds[load])

    def cpu_s(self) -> float:
        """Processor time so far, of all its threads and of the processes it started."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                after_name = stat.read_text().rpartition(")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            if self.process.pid in (int(stat.parent.name), int(after_name[1])):
                ticks += int(after_name[11]) + int(after_name[12])
        return ticks / os.sysconf("SC_CLK_TCK")


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


def peers(python: Path, checkpoint: Path, threads: int, device: str = "cpu") -> list[Subject]:
    """Both, or the plain app alone where the interpreter's environment has no infinity."""
    found = [infinity(python, checkpoint, threads, device)] if has_infinity(python) else []
    return [*found, plain(python, checkpoint, threads, device)]


def has_infinity(python: Path) -> bool:
    """Whether it is installed beside this interpreter."""
    return (python.parent / "infinity_emb").is_file()


def infinity(python: Path, checkpoint: Path, threads: int, device: str = "cpu") -> Subject:
    port = free_port()
    command = [
        str(python.parent / "infinity_emb"), "v2", "--model-id", str(checkpoint), "--engine", "torch",
        "--device", device, "--port", str(port), "--no-bettertransformer", "--url-prefix", "/v1",
        "--log-level", "error", "--dtype", "float32" if device == "cpu" else "float16",
        "--no-model-warmup", "--batch-size", str(PEER_BATCH[device]),
    ]  # fmt: skip
    found = _start(INFINITY, command, port, threads, python)
    found.url += "/v1/embeddings"
    return found


def plain(python: Path, checkpoint: Path, threads: int, device: str = "cpu") -> Subject:
    port = free_port()
    command = [
        str(python), str(ROOT / "benchmarks/plain_app.py"), str(checkpoint), str(port), str(threads),
        device, str(PEER_BATCH[device]),
    ]  # fmt: skip
    found = _start(PLAIN, command, port, threads, python)
    found.url += "/v1/embeddings"
    return found


def _start(name: str, command: list[str], port: int, threads: int, python: Path) -> Subject:
    """Raises RuntimeError where it does not come up: its last line, the command, and what it printed."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1",
        "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    }  # fmt: skip
    if python.absolute() != Path(sys.executable).absolute():  # another environment's packages
        environment.pop("PYTHONPATH", None)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + PEER_START_S
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    return Subject(name, url, process)
            except httpx.TransportError:
                time.sleep(0.2)
        process.kill()
        log.seek(0)
        said = log.read().decode(errors="replace")[-4000:].strip()
    last = said.rpartition("\n")[2]
    raise RuntimeError(f"{name} did not start: {last}\n{' '.join(command)}\n{said}")
