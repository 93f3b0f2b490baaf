"""What the tests of deployment are done with: helm, prometheus, promtool, systemd-analyze.

`python -m tests.deploy.tools` exits with 1 and names what is missing; `make tools` installs it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

NAMES = ("helm", "prometheus", "promtool", "systemd-analyze", "openssl")


def find(name: str) -> str | None:
    """The program's path: on PATH, or beside the interpreter, where make puts helm."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


def tool(name: str) -> str:
    path = find(name)
    assert path is not None, f"{name} is not installed; make tools installs it"
    return path


if __name__ == "__main__":
    if missing := [name for name in NAMES if find(name) is None]:
        sys.exit(f"missing: {', '.join(missing)}")
