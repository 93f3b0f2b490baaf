"""What the C library keeps of memory that a step has given back.

Each step of a CPU run asks for tensors of other sizes, and what one leaves is seldom as large as what the
next needs: with glibc a run that used 8 GB at a time held 10 after 24 steps and 16 after 250, and on a
machine of 24 GB was killed (`LOG.md`, 2026-11-27). Giving pages back costs the time to get them again, so
it is done once in so many steps.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

EVERY_STEPS = 16


def give_back() -> None:
    """Return unused pages to the system, where the C library can (glibc)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
