"""Memory that steps have given back is the system's again."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

from training import heap

from .test_run import short

HELD = """
import ctypes
from pathlib import Path
from training import heap

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20

blocks = [libc.malloc(100_000) for _ in range(2_000)]  # small enough not to be mapped one by one
for block in blocks:
    ctypes.memset(block, 1, 100_000)
full = resident()
for n, block in enumerate(blocks):
    if n % 20:  # the others keep the heap from shrinking by itself
        libc.free(block)
held = resident()
heap.give_back()
print(full, held, resident())
"""


def test_what_is_held_between_blocks_in_use_is_given_back():
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", HELD],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    full, held, after = map(int, ran.stdout.split())
    assert held > full - 20, "the C library gives it back by itself: nothing is tested"
    assert after < held - 150


def test_a_run_gives_back_as_it_goes(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(heap, "EVERY_STEPS", 4)
    monkeypatch.setattr(heap, "give_back", lambda: given.append(1))
    short(tmp_path / "run")
    assert len(given) == math.ceil(6 / 4)
