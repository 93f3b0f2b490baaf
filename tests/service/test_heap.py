"""A service's heap, seen from inside: how many there are, and where large blocks come from."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from service import __main__

PROBE = """
import ctypes, json, re, sys, threading
from service.heap import give_back

done = give_back() if sys.argv[1] == "with" else None
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
c.malloc.argtypes, c.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
c.fopen.restype, c.fclose.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
c.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]


class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks".split()] + [
        (str(i), ctypes.c_size_t) for i in range(6)
    ]


c.mallinfo2.restype = Info
c.free(c.malloc(16 << 20))  # glibc learns from it, unless it was told
before = c.mallinfo2().hblks
c.malloc(3 << 19)
large = c.mallinfo2().hblks - before

together = threading.Barrier(6)


def work():
    c.malloc(1000)
    together.wait()


threads = [threading.Thread(target=work) for _ in range(6)]
[t.start() for t in threads], [t.join() for t in threads]
file = c.fopen(sys.argv[2].encode(), b"w")
c.malloc_info(0, file)
c.fclose(file)
heaps = len(re.findall("<heap nr", open(sys.argv[2]).read()))
print(json.dumps({"done": done, "large": large, "heaps": heaps}))
"""


def probe(tmp_path: Path, how: str, **environment: str) -> dict:
    found = subprocess.run(
        [sys.executable, "-c", PROBE, how, str(tmp_path / "heaps.xml")],
        env={"PYTHONPATH": str(Path(__file__).parents[2]), **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(found.stdout)


def test_there_are_two_heaps_and_large_blocks_come_from_the_system(tmp_path):
    plain, ours = probe(tmp_path, "without"), probe(tmp_path, "with")
    assert plain == {"done": None, "large": 0, "heaps": plain["heaps"]} and plain["heaps"] > 2
    assert ours == {"done": True, "large": 1, "heaps": 2}


@pytest.mark.parametrize(
    "own", [{"MALLOC_ARENA_MAX": "4"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}]
)
def test_who_sets_glibc_has_the_last_word(tmp_path, own):
    assert probe(tmp_path, "with", **own) == {"done": False, "large": 0, "heaps": 4}


def test_the_service_does_it_before_anything_else(monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr(__main__, "give_back", lambda: called.append(threading.active_count()))
    monkeypatch.setenv("MEXMA_API_KEYS_FILE", str(tmp_path / "none"))
    before = threading.active_count()
    with pytest.raises(SystemExit, match="none cannot be read"):
        __main__.main([])
    assert called == [before]
