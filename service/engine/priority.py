"""The engine computes with what processor time HTTP leaves.

An engine is always hungry and uses every core. Where it competes with the event loop as its equal, requests
come in slowly, its batches are small and cost more for each text, and it takes still more of the time. Put
below it, it finds full batches. It is the kernel's own `nice`, by thread, which needs no right.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

NICE = 5
"""A third of the weight of a thread that has not been lowered."""


def lower() -> None:
    """Put the calling thread below others, and all threads that it will start. On Linux; elsewhere a
    thread has no priority of its own."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):  # some sandboxes forbid it; then the two compete as equals
            now = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, max(NICE, now))


def lowered(work: Callable[[], T]) -> T:
    """What `work` returns or raises, done in a thread of its own that is put below others: the threads of
    a session that it loads are so, too. Blocks."""
    done: Future[T] = Future()

    def run() -> None:
        lower()
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            done.set_exception(error)

    thread = threading.Thread(target=run, name="load", daemon=True)
    thread.start()
    return done.result()
