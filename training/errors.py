"""What training refuses, as branches of the tree in `mexma/errors.py`.

    MexmaError
    ├── RecipeError                 a setting, or settings that do not go together
    ├── DataError                   training data that cannot be used
    ├── NonFiniteLoss               a loss or gradient is NaN or infinite; nothing was updated
    ├── WorkerLost                  a process that prepared batches is gone
    ├── Stopped                     a signal asked the run to stop, and it is saved
    └── CheckpointError
        └── RunStateError           a training run cannot be saved or resumed

They live here and not at floor 0 because nothing below or beside training can meet them.
"""

from __future__ import annotations

from mexma.errors import CheckpointError, MexmaError


class RecipeError(MexmaError):
    """A setting has the wrong type or value, or does not exist."""


class DataError(MexmaError):
    """Training data is missing, unreadable or too little."""


class NonFiniteLoss(MexmaError):
    """A loss or gradient is NaN or infinite. The weights are those of the step before."""


class WorkerLost(MexmaError):
    """A process that prepared batches, of any rank, ended before the run did, which is saved."""


class RunStateError(CheckpointError):
    """A training run cannot be saved to, or resumed from, this directory."""


class Stopped(MexmaError):
    """The run was asked to stop and its checkpoint is written. number: of the signal."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number
