"""Load generators (`benchmarks.load`), which never run in the measuring process."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.circumstances import ROOT

COMMAND = [sys.executable, "-m", "benchmarks.load"]


def generate(url: str, *arguments: object) -> subprocess.Popen[bytes]:
    """Start one for a single load."""
    command = [*COMMAND, url, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)


def finished(generator: subprocess.Popen[bytes]) -> dict[str, float]:
    output, _ = generator.communicate()
    if generator.returncode:
        raise RuntimeError("the load generator failed")
    found: dict[str, float] = json.loads(output)
    return found


class Generator:
    """One that is started once and makes one load after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [*COMMAND, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        )

    def load(self, url: str, *arguments: object) -> dict[str, float]:
        """What it found. Raises RuntimeError where it fails."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([url, *map(str, arguments)]).encode() + b"\n")
        self._process.stdin.flush()
        if not (line := self._process.stdout.readline()):
            raise RuntimeError("the load generator failed")
        found: dict[str, float] = json.loads(line)
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
