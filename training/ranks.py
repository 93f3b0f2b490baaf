"""The processes of one run: who am I, and what do all of us have together.

One process is the rule and needs no torch.distributed. Under torchrun there are more; then
losses over a batch must see the batch of all ranks, and decisions must be taken by all or none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from mexma.errors import MexmaError
from training.errors import RecipeError, Stopped, WorkerLost

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """rank: this process, from 0. world: how many there are. device: this process's."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """The process that writes and speaks."""
        return self.rank == 0

    def sum(self, *numbers: float) -> list[float]:
        """Each number summed over ranks."""
        if self.world == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return [float(x) for x in total.tolist()]

    def gather(self, thing: Any) -> list[Any]:
        """One picklable object from each rank, in rank order, to all."""
        if self.world == 1:
            return [thing]
        things: list[Any] = [None] * self.world
        distributed.all_gather_object(things, thing)
        return things

    def all_or_none(self, action: Callable[[], T]) -> T:
        """What `action` returns here. Where it raises a MexmaError on one rank, all raise that one:
        nobody waits for who has left, and the first can say why."""
        if self.world == 1:
            return action()
        done: list[T] = []
        error = None
        try:
            done.append(action())
        except MexmaError as raised:
            error = raised
        for any_error in self.gather(error):
            if any_error is not None:
                raise any_error
        return done[0]


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the other processes that torchrun started, if it did; leave them at the end.

    device: "auto", "cpu" or "cuda". Raises RecipeError for a CUDA that is not there.
    """
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise RecipeError("device=cuda was asked for, but torch finds no CUDA device here")
    kind = "cuda" if cuda and device != "cpu" else "cpu"
    if "RANK" not in os.environ:
        yield Ranks(0, 1, torch.device(kind))
        return
    here = (
        torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
    )
    if kind == "cuda":
        torch.cuda.set_device(here)
    distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        try:
            yield Ranks(distributed.get_rank(), distributed.get_world_size(), here)
        except (Stopped, WorkerLost):  # by all, after the same step
            distributed.barrier()
            raise
        distributed.barrier()  # who is left behind in the midst of a message aborts
    finally:
        distributed.destroy_process_group()


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Tensor:
        total = outer[0].clone()
        distributed.all_reduce(total)
        return total.chunk(distributed.get_world_size())[distributed.get_rank()]


def gather_rows(rows: Tensor) -> Tensor:
    """`[n, ...]` on each rank -> `[world * n, ...]` on all, in rank order, with gradients.

    Backward sums what all ranks send back to a row. So a loss that every rank computes over all
    rows has `world` times its gradient, which DDP's mean over ranks makes exact again.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows)  # type: ignore[no-untyped-call]
    return gathered
