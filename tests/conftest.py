"""The real thing: one server process with the default model, shared by the tests that need it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[1]
START_TIMEOUT_S = 180


@dataclass
class Server:
    """A running `mexma-serve`."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def rss_bytes(self) -> int:
        """Resident memory of the server."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def children(self) -> list[int]:
        """The processes that it has started."""
        pid = self.process.pid
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_server(
    folder: Path, *, script: str | None = None, own_group: bool = False, **settings: object
) -> Server:
    """Start `mexma-serve` with its data in `folder`; returns before it is ready. script: run this
    in its place. own_group: of processes, so that a signal can be sent to all of them."""
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MEXMA_")}
    environment |= {"MEXMA_PORT": str(port), "MEXMA_DATA_DIR": str(folder / "data")}
    environment["MEXMA_BULK_BATCH_TOKENS"] = (
        "1024"  # measured where a test, or a benchmark, wants it
    )
    environment |= {f"MEXMA_{k.upper()}": str(v) for k, v in settings.items()}
    log = folder / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *(("-m", "service") if script is None else ("-c", script))],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=ROOT,
            process_group=0 if own_group else None,
        )
    return Server(f"http://127.0.0.1:{port}", process, log)


def wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            if httpx.get(f"{server.url}/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    server.process.kill()
    raise AssertionError(f"the server did not become ready:\n{server.log.read_text()}")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The default model, served with its demo by a process of its own."""
    made = start_server(tmp_path_factory.mktemp("served"))
    wait_until_ready(made)
    yield made
    made.process.terminate()
    assert made.process.wait(60) == 0, made.log.read_text()
