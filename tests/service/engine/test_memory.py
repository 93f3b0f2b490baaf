"""What is free is what the machine and the container both give."""

from __future__ import annotations

from pathlib import Path

from service.engine.memory import available_bytes

GIB = 2**30


def meminfo(folder: Path, kilobytes: int) -> Path:
    file = folder / "meminfo"
    file.write_text(f"MemTotal:       99 kB\nMemAvailable:   {kilobytes} kB\n")
    return file


def cgroup(folder: Path, most: str, used: int, cached: int) -> Path:
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\nslab 2\n")
    return folder


def test_the_smaller_of_machine_and_container(tmp_path):
    machine = meminfo(tmp_path, 4 * GIB // 1024)
    assert available_bytes(meminfo=machine, cgroup=tmp_path / "none") == 4 * GIB
    for most, expected in ((str(3 * GIB), 2 * GIB), (str(GIB // 2), 0), ("max", 4 * GIB)):
        container = cgroup(tmp_path, most, used=2 * GIB, cached=GIB)
        assert available_bytes(meminfo=machine, cgroup=container) == expected


def test_where_nothing_says_it_is_not_known(tmp_path):
    assert available_bytes(meminfo=tmp_path / "none", cgroup=tmp_path / "none") is None
