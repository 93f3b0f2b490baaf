"""Runs that are stopped at named points, and resumed; a process of its own.

    python -m tests.training.killing FOLDER POINT POINT ...

For each POINT ("name" or "name:n", the n-th time it is passed) a child trains in FOLDER/POINT
until it kills itself there with SIGKILL, or, where the point is "SIGTERM name" or "SIGINT name",
asks itself to stop and does so after the step; another child resumes it. FOLDER/whole is never stopped.
Children are forked before torch has computed anything, so torch is imported once for all.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from training import loop
from training.errors import Stopped
from training.ranks import Ranks
from training.recipe import override
from training.recipes import tiny_cpu
from training.stopping import Stop

RECIPE = override(
    tiny_cpu(),
    [
        "pairs=288",
        "batch_pairs=8",
        "accumulate=3",
        "save_every=3",
        "validate_every=4",
        "keep_last=1",
        "contrastive=0.5",
        "same_above=0.9",
        "alike=4",
    ],
)  # 36 batches, 12 steps; dropout is on


WORKERS = {"step 7": 2, "SIGINT step 6": 1}
"""Points at which processes prepare batches, before and after; elsewhere a thread does."""


def run(out: Path, *, resume: bool, point: str | None = None) -> None:
    sent, name = asks(point or "")
    name, _, count = name.partition(":")
    left = int(count or 1)

    def reached(passed: str) -> None:
        nonlocal left
        left -= passed == name
        if passed == name and left == 0:
            os.kill(os.getpid(), sent)

    torch.set_num_threads(1)
    ranks = Ranks(0, 1, torch.device("cpu"))
    stop = Stop(out)
    with stop.heeded():
        recipe = replace(RECIPE, workers=WORKERS.get(out.name, 0))
        loop.train(recipe, out, ranks, resume=resume, quiet=True, stop=stop, reached=reached)


def asks(point: str) -> tuple[signal.Signals, str]:
    """The signal of a point, and the rest of its name."""
    word, _, rest = point.partition(" ")
    if word in ("SIGTERM", "SIGINT"):
        return signal.Signals[word], rest
    return signal.SIGKILL, point


def in_child(action: Callable[[], None]) -> int:
    """Exit status, or minus the signal, of a forked child that does `action`."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            action()
            status = 0
        except Stopped as stopped:
            status = 128 + stopped.number
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    folder, *points = sys.argv[1:]
    found = loop.score_of
    # These steps make so small a model worse; counted the other way round the best one changes.
    loop.score_of = lambda scores: 1 - (found(scores) or 0)
    loop.write_report = lambda *_: None  # its pictures take longer than these runs
    signal.signal(signal.SIGINT, signal.default_int_handler)  # though tests run where it is ignored
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # imports much when first made
    whole = in_child(lambda: run(Path(folder) / "whole", resume=False))
    assert whole == 0, whole
    for point in points:
        out = Path(folder) / point
        killed = in_child(lambda: run(out, resume=False, point=point))  # noqa: B023
        sent, name = asks(point)
        if sent == signal.SIGKILL:
            assert killed == -signal.SIGKILL, (point, killed)
        else:  # within a step, which is finished and saved
            assert killed == 128 + sent, (point, killed)
            newest = max((out / "checkpoints").glob("step-*")).name
            assert newest == f"step-{int(name.removeprefix('step ')) + 1:08d}", (point, newest)
        resumed = in_child(lambda: run(out, resume=True))  # noqa: B023
        assert resumed == 0, (point, resumed)


if __name__ == "__main__":
    main()
