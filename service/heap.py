"""The C library's heap gives back what a large request took.

glibc has up to eight heaps for each core, and keeps in each what was freed between blocks that are
still in use; and once a large block was freed it takes others of that size from the heap, too. So a
process stays as large as the largest moment of each of its threads. With two heaps, and blocks of 1 MiB
or more from the system and back to it, a service had 749 MB for 947 after seven minutes of mixed
requests, and answered as fast (`LOG.md`, 2026-11-27). Who sets glibc's own variables knows better.

Refuses to know: other allocators, which it does not touch.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

OWN = ("MALLOC_", "glibc.malloc.")
"""How glibc's variables, and those in GLIBC_TUNABLES, begin."""
MIB = 1 << 20
SETTINGS = {-8: 2, -3: MIB, -1: MIB, -2: MIB}
"""By the number that malloc.h gives them: M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD."""


def give_back(environment: Mapping[str, str] = os.environ) -> bool:
    """Set glibc's heap so, before threads are started; whether that was done.

    Not where the library is another, or `environment` sets its heap.
    """
    tunables = environment.get("GLIBC_TUNABLES", "")
    if OWN[1] in tunables or any(name.startswith(OWN[0]) for name in environment):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version") or not hasattr(library, "mallopt"):
        return False
    done = [library.mallopt(number, value) for number, value in SETTINGS.items()]
    return all(done)
