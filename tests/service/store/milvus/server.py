"""A real Milvus Lite server in a process of its own, on a folder, that can be killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


class MilvusServer:
    """environment: beside this process's. prefix: a command that runs it, such as strace."""

    def __init__(
        self, folder: Path, environment: dict[str, str] | None = None, prefix: Sequence[str] = ()
    ):
        self.folder = folder
        self._environment = os.environ | (environment or {})
        self._prefix = prefix
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, also after a kill: the same folder, the same address."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [*self._prefix, sys.executable, "-m", "milvus_lite", "server"]
        command += ["--data-dir", str(self.folder)]
        with (self.folder.parent / "milvus.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self.port)],
                env=self._environment,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        for _ in range(1_200):
            assert self._process.poll() is None, (self.folder.parent / "milvus.log").read_text()
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise TimeoutError("Milvus Lite does not listen")

    def hang(self, stopped: bool = True) -> None:
        """Accept connections and answer nothing, or go on answering."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP if stopped else signal.SIGCONT)

    def stop_tracing(self) -> None:
        """End the command that runs it, which writes down what it has; the server runs on."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait()

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
