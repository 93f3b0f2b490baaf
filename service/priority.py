"""Threads that compute take what processor time is left by threads that answer.

An engine uses every core that it gets, and under overload the event loop, its equal, falls behind: of
80,000 requests at twice the load 19,000 were cut, and none with the engine below the loop (`LOG.md`,
2026-11-26); below capacity it makes no difference. Index builds, which nobody waits for, go below that. It is
the kernel's own `nice`, by thread, which needs no right, and cannot be taken back without one.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

BELOW = 5
"""For what somebody waits for: a third of the weight of a thread that has not been lowered."""
FAR_BELOW = 15
"""For what nobody waits for, or what copies and hashes gigabytes: a thirtieth. A thread that is put off while
it has the interpreter lets all others wait, so little above is too much: searches beside a backup and writes
to a million rows had a p99 of 5.2 to 5.6 ms with BELOW, and of 2.8 with this (`LOG.md`, 2026-11-27)."""


def lower(nice: int = BELOW) -> None:
    """Put the calling thread below others, and all threads that it will start. On Linux; elsewhere a
    thread has no priority of its own."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):  # some sandboxes forbid it; then it competes as an equal
            now = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, max(nice, now))


def lowered(work: Callable[[], T], nice: int = BELOW) -> T:
    """What `work` returns or raises, done in a thread of its own that is put below others: the threads of
    a session that it loads are so, too. Blocks."""
    with ThreadPoolExecutor(1, "lowered", initializer=lower, initargs=(nice,)) as thread:
        return thread.submit(work).result()
