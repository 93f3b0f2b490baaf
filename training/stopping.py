"""SIGINT (Ctrl-C) and SIGTERM: a run that is asked to stop finishes its step and saves.

The first signal while steps are made is a wish that the loop asks for after each step; all ranks
take it together. A second one ends the process at once, and so does the first where there is no
step to finish: while imports, data or weights are read. A process that ends at once leaves nothing
half done that the next one could mistake for whole, as one that is killed does not.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether this process was asked to stop, and by which signal.

    out: the run's directory, for what is said; None before it is known.
    """

    def __init__(self, out: Path | None = None):
        self.signal: int | None = None
        self._out = out
        self._stepping = False

    @contextmanager
    def heeded(self) -> Iterator[Stop]:
        """Within it, signals come here, but those that whoever started the process had it ignore (as
        shells do SIGINT for what runs in the background of a script). Python gives signals to a
        process's main thread only; elsewhere nothing is done."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        meant = [s for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
        before = {s: signal.signal(s, self._came) for s in meant}
        try:
            yield self
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)

    def wait_for_steps(self) -> None:
        """From now on there are steps to finish: the first signal is a wish, and `signal` says so."""
        self._stepping = True

    def _came(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._stepping and self.signal is None:
            self.signal = number
            _say(
                f"{name}: the step that is running is finished and saved; a second one ends at once"
            )
            return
        what = f"stopped by {name}"
        if self.signal is not None:
            what += f" at once; {resume_command(self._out)} goes on from the last checkpoint"
        elif self._out is None or not (self._out / "recipe.json").is_file():
            what += " before anything was trained"
        else:
            what += f" before a step was done; {resume_command(self._out)} starts where this did"
        _say(what)
        _end(number)


def resume_command(out: Path | None) -> str:
    """As it stands in a sentence."""
    return f"`mexma-train resume --out {out}`"


def _say(text: str) -> None:
    # Not through `sys.stderr`, in the midst of whose writing the signal may have come. Under
    # torchrun the first process of each machine speaks.
    if os.environ.get("LOCAL_RANK", "0") == "0":
        line = "" if not sys.stderr.isatty() else "\r\033[K"  # over a bar that stands there
        os.write(2, f"{line}mexma-train: {text}\n".encode())


def _end(number: int) -> NoReturn:
    # Not by an exception: libraries in the midst of importing or calling back would swallow it.
    os._exit(128 + number)
