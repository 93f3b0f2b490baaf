"""What torchrun starts for `test_ranks.py`: several small runs on two gloo ranks, one after another.

python -m torch.distributed.run --nproc-per-node 2 -m tests.training.two_ranks FOLDER
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

from tests.training.test_workers import workers_of
from training import loop, model
from training.corpus import Split
from training.errors import DataError, NonFiniteLoss, Stopped, WorkerLost
from training.loop import train
from training.ranks import joined
from training.recipe import Recipe, override
from training.recipes import tiny_cpu
from training.stopping import Stop

SETTINGS = ["pairs=192", "dropout=0", "save_every=3", "validate_every=3", "contrastive=0.5"]


def recipe(*settings: str) -> Recipe:
    return override(tiny_cpu(), [*SETTINGS, *settings])


def nothing(recipe: Recipe) -> Split:
    raise DataError("is not on this machine")


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    with joined("cpu") as ranks:
        train(recipe("alike=4"), folder / "ddp", ranks, quiet=True)
        train(recipe("alike=4", "sharded=true"), folder / "sharded", ranks, quiet=True)
        # A run of two ranks that stopped is gone on with.
        train(recipe("alike=4"), folder / "ddp", ranks, quiet=True, resume=True)

        # One rank is asked to stop, and both do, after the same step.
        def asked(point: str) -> None:
            if point == "step 3" and ranks.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        stop = Stop()
        try:
            with stop.heeded():
                train(
                    recipe("alike=4"),
                    folder / "stopped",
                    ranks,
                    stop=stop,
                    quiet=True,
                    reached=asked,
                )
        except Stopped as stopped:
            (folder / f"stopped-{ranks.rank}.json").write_text(json.dumps(str(stopped)))
        with_workers = recipe("alike=4", "workers=1")
        train(with_workers, folder / "stopped", ranks, quiet=True, resume=True)

        # One rank's processes that prepare batches are killed, and both stop.
        def kill(point: str) -> None:
            if point == "step 1" and ranks.rank == 1:
                for worker in workers_of(os.getpid()):
                    os.kill(worker, signal.SIGKILL)

        some = recipe("alike=4", "workers=1", "bucket_batches=1")
        try:
            train(some, folder / "lost", ranks, quiet=True, reached=kill)
        except WorkerLost as lost:
            (folder / f"lost-{ranks.rank}.json").write_text(json.dumps(str(lost)))

        # One rank finds no data, and both say so.
        found = loop.open_corpus
        if ranks.rank == 1:
            loop.open_corpus = nothing
        try:
            train(recipe(), folder / "blind", ranks, quiet=True)
        except DataError as error:
            (folder / f"blind-{ranks.rank}.json").write_text(json.dumps(str(error)))
        loop.open_corpus = found

        honest = model.alignment

        def poisoned(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return honest(source, target) * (torch.nan if ranks.rank == 1 else 1)

        model.alignment = poisoned
        try:
            train(recipe(), folder / f"nan-{ranks.rank}", ranks, quiet=True)
        except NonFiniteLoss as error:
            (folder / f"error-{ranks.rank}.json").write_text(json.dumps(str(error)))


if __name__ == "__main__":
    main()
