"""`mexma-index migrate` with fakes for encoders, and a process in which it can be killed.

    python -m tests.service.store.milvus.migrating

Reads lines of JSON, [STEP, TIMES, ARGUMENTS], and runs the command for each in a child that is killed
when it has reached the step so many times. A model is the name of a fake: `new` has 24 dimensions,
any other 16.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path

from mexma import encoder
from service import index_command, migrate_command
from service.store import steps
from tests.conftest import ROOT
from tests.fakes import FakeEncoder

from ..crash_worker import killer

BATCH_ROWS = 8


def fake(path: Path) -> FakeEncoder:
    return FakeEncoder(name=path.name, dim=24 if path.name == "new" else 16)


class Killer:
    """The process, which forks for each kill so that a dozen of them import only once."""

    def __init__(self, log: Path):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MEXMA_")}
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )

    def kill_at(self, step: str, times: int, arguments: list[str]) -> None:
        """Run the command with these arguments, and kill it there."""
        self._process.stdin.write(json.dumps([step, times, arguments]) + "\n")
        self._process.stdin.flush()
        ended = self._process.stdout.readline().strip()
        assert ended == "killed", f"{step} was not reached, {ended}: {self._log.read_text()}"

    def close(self) -> None:
        self._process.stdin.close()
        assert self._process.wait(60) == 0


def main() -> None:
    import pymilvus  # noqa: F401 - once for all children, before there is any connection

    encoder.OnnxEncoder = fake
    migrate_command.BATCH_ROWS = BATCH_ROWS
    for line in sys.stdin:
        step, times, arguments = json.loads(line)
        if (child := os.fork()) == 0:
            try:
                os.dup2(2, 1)
                steps.observer = killer(step, times)
                index_command.main(arguments)
                os._exit(0)
            finally:  # an exception must not reach the parent's loop
                traceback.print_exc()
                os._exit(1)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print("killed" if killed else f"exit {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    main()
