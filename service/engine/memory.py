"""How much memory there is for a model beside those that are loaded."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def available_bytes(*, meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """What the machine and the container (cgroup v2) still give; None where neither says."""
    limits = []
    with suppress(OSError):
        if found := re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE):
            limits.append(int(found[1]) * 1024)
    with suppress(OSError, ValueError):  # no container, or "max"
        most = int((cgroup / "memory.max").read_text())
        stat = (cgroup / "memory.stat").read_text()
        cached = re.search(r"^inactive_file (\d+)", stat, re.MULTILINE)
        used = int((cgroup / "memory.current").read_text()) - (int(cached[1]) if cached else 0)
        limits.append(max(0, most - used))
    return min(limits, default=None)
