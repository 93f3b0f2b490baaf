"""A run on disk: its checkpoints, of which each holds all that is needed to go on from it.

    runs/first/
        recipe.json                  what the run was started with
        checkpoints/step-00000500/   a checkpoint in our layout, which mexma-export reads, and
            head.safetensors         the unmasking head
            optimiser.safetensors    AdamW's moments, by parameter name
            training.json            step, recipe, corpus fingerprint, best score, hashes
        best -> checkpoints/step-…   the best validated one, kept beyond its turn; step 0 is the start
        final/                       the last weights (averaged, if asked for), without state
        .lock                        held by the process that trains here, while it lives

A checkpoint takes its name when everything in it is written and synced, and an older one is
removed only after that. So whenever the process dies, the newest intact one is whole, and what
a dying process left half written has a name that nobody reads and the next one sweeps up.

There is no state of random generators to save: see `training.chance`.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from mexma.artifact import hash_file
from mexma.checkpoint import is_checkpoint
from mexma.errors import CheckpointError
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.errors import RunStateError
from training.model import PairModel

RECIPE = "recipe.json"
STATE = "training.json"
HEAD = "head.safetensors"
OPTIMISER = "optimiser.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
PLACES = ("data", "hold_out", "decontaminate", "backbone")
"""Settings that say where something lies: it may lie elsewhere when a run goes on, if it is the same."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands after `step` optimiser steps.

    recipe, corpus (fingerprint) and start (hashes of the starting weights) must be the same
    when the run goes on. best: highest validation score so far and its step. scaler: state of
    the loss scaling, empty but for fp16. judges: fingerprint of the held-out pairs, which must be the
    same too; empty in checkpoints from before there was one.
    """

    step: int
    recipe: dict[str, Any]
    corpus: str
    start: dict[str, str]
    best: tuple[float, int] | None
    scaler: dict[str, Any]
    judges: str = ""


class RunDirectory:
    """The checkpoints of one run. Only the first rank writes."""

    def __init__(self, path: Path, reached: Callable[[str], None] = lambda point: None):
        """reached: called with the name of each point of a save as it is passed, for tests."""
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._reached = reached

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within it no other process has this run; made if need be. The kernel gives the lock back
        when this one dies.

        Raises RunStateError where another has it, or where no directory can be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RunStateError(
                f"{self.path}: cannot be the directory of a run ({error.strerror})"
            ) from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 32, 0).decode() or "unknown"
                raise RunStateError(
                    f"{self.path}: process {holder} trains there; stop it first, or choose another "
                    "directory"
                ) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(descriptor)

    @property
    def final(self) -> Path:
        """What the run leaves in the end."""
        return self.path / "final"

    def keep_recipe(self, recipe: dict[str, Any]) -> None:
        """Write recipe.json: the old one or the new one is there, whole, whatever stops it."""
        new = self.path / ".recipe.json.new"
        new.write_text(json.dumps(recipe, indent=2) + "\n")
        new.rename(self.path / RECIPE)

    def keep_places(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """Write into recipe.json where data lies by `recipe`; returns what is new."""
        kept = json.loads((self.path / RECIPE).read_bytes())
        moved = {name: recipe[name] for name in PLACES if recipe[name] != kept.get(name)}
        if moved:
            self.keep_recipe(kept | moved)
        return moved

    def steps(self) -> list[Path]:
        """Finished checkpoints, newest first."""
        return sorted(
            (p for p in self.checkpoints.glob("step-*") if is_checkpoint(p)), reverse=True
        )

    def save(
        self,
        progress: Progress,
        checkpoint: Checkpoint,
        tensors: tuple[dict[str, Tensor], dict[str, Tensor]],
        *,
        keep_last: int,
    ) -> Path:
        """Write the checkpoint of a step, then remove those whose turn is over.

        tensors: of the head and of the optimiser; see `state_tensors`. Raises RunStateError
        when it cannot be written; the older ones are then untouched.
        """
        path = self.checkpoints / f"step-{progress.step:08d}"
        self._sweep()

        def state(directory: Path) -> None:
            self._reached("weights written")
            for name, content in zip((HEAD, OPTIMISER), tensors, strict=True):
                save_file(content, directory / name)
            hashes = {name: hash_file(directory / name).sha256 for name in (HEAD, OPTIMISER)}
            record = asdict(progress) | {"files": hashes}
            (directory / STATE).write_text(json.dumps(record, indent=2) + "\n")
            self._reached("state written")

        try:
            save_checkpoint(path, checkpoint, step=progress.step, more=state)
        except (OSError, SafetensorError) as error:
            kept = self.steps()
            raise RunStateError(
                f"{path}: cannot be saved ({error}); "
                + (f"the run can go on from {kept[0]}" if kept else "no earlier checkpoint exists")
            ) from None
        self._reached("named")
        # Also when the best is an earlier one: the process may have died between its name and this.
        if progress.best is not None:
            best_path = self.checkpoints / f"step-{progress.best[1]:08d}"
            if is_checkpoint(best_path):
                self._point_at_best(best_path)
        self._reached("best is known")
        best = (self.path / "best").resolve()
        for old in self.steps()[keep_last:]:
            if old.resolve() != best:
                # mexma.json first: without it a half removed directory is no checkpoint.
                (old / "mexma.json").unlink()
                shutil.rmtree(old)
                self._reached("one removed")
        return path

    def newest(self) -> tuple[Path, Progress, Checkpoint, list[CheckpointError]] | None:
        """The newest intact checkpoint, and the damage of those passed over; None for a run that has
        none yet. Raises RunStateError with the newest's damage where none is intact.
        """
        damage: list[CheckpointError] = []
        for path in self.steps():
            try:
                progress = _read_progress(path)
                return path, progress, load_checkpoint(str(path)), damage
            except CheckpointError as error:
                damage.append(error)
        if damage:
            raise RunStateError(f"{self.path}: no checkpoint is intact; the newest: {damage[0]}")
        return None

    def _point_at_best(self, path: Path) -> None:
        link = self.path / ".best"
        link.unlink(missing_ok=True)
        link.symlink_to(path.relative_to(self.path))
        os.replace(link, self.path / "best")  # noqa: PTH105  over an existing link, atomically

    def _sweep(self) -> None:
        """Remove what a process that died while saving left half written."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        for left in [*self.checkpoints.glob(".step-*"), *self.checkpoints.glob("step-*")]:
            if left.name.startswith(".") or not is_checkpoint(left):
                shutil.rmtree(left)


def _read_progress(path: Path) -> Progress:
    file = path / STATE
    try:
        raw = json.loads(file.read_bytes())
        hashes = raw.pop("files")
        best = raw.pop("best")
        progress = Progress(**raw, best=None if best is None else (float(best[0]), int(best[1])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunStateError(f"{file}: cannot be read ({type(error).__name__}: {error})") from None
    for name, expected in hashes.items():
        if not (path / name).is_file():
            raise RunStateError(f"{path / name}: listed in {STATE} but missing")
        found = hash_file(path / name).sha256
        if found != expected:
            raise RunStateError(
                f"{path / name}: expected SHA-256 {expected[:16]}…, found {found[:16]}…"
            )
    return progress


def whole(tensor: Tensor) -> Tensor:
    """A parameter or moment on the CPU, put together from all ranks where it is divided.

    With FSDP2 every rank must call it, in the same order.
    """
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().to("cpu", copy=True).contiguous()


def state_tensors(
    model: PairModel, optimiser: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The head's parameters and the optimiser's moments, by name, whole and on the CPU."""
    head = {} if model.head is None else {n: whole(p) for n, p in model.head.named_parameters()}
    moments = {
        f"{name}.{moment}": whole(optimiser.state[parameter][moment])
        for name, parameter in _learning(model)
        for moment in MOMENTS
        if parameter in optimiser.state
    }
    return head, moments


def encoder_checkpoint(model: PairModel, start: Checkpoint, average: float = 0.0) -> Checkpoint:
    """The model's encoder as a checkpoint; average: weight of the starting weights in it."""
    encoder = type(start.encoder)(start.encoder.config)
    began = dict(start.encoder.named_parameters())
    state = {}
    for name, parameter in model.encoder.named_parameters():
        weight = whole(parameter)
        state[name] = weight if not average else weight.lerp(began[name].detach(), average)
    encoder.load_state_dict(state, assign=True)
    return replace(start, encoder=encoder.eval())


def load_state(
    path: Path, saved: Checkpoint, model: PairModel, optimiser: torch.optim.Optimizer, *, step: int
) -> None:
    """Put a checkpoint's weights and moments into model and optimiser. step: that it was saved after;
    the start, 0, has no moments.

    Raises RunStateError when they are of another architecture.
    """
    ours, theirs = model.encoder.config, saved.encoder.config
    for name in ("vocabulary", "hidden", "layers", "heads", "intermediate", "positions", "pooling"):
        if getattr(ours, name) != getattr(theirs, name):
            raise RunStateError(
                f"{path}: an encoder with {name} {getattr(theirs, name)}, but this run's has "
                f"{getattr(ours, name)}"
            )
    head, moments = (load_file(path / name) for name in (HEAD, OPTIMISER))
    weights: dict[str, Tensor] = dict(saved.encoder.named_parameters(prefix="encoder"))
    weights |= {f"head.{name}": tensor for name, tensor in head.items()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_like(parameter, _find(path, name, weights, parameter)))
    for name, parameter in _learning(model) if step else ():
        if f"{name}.step" not in moments:
            raise RunStateError(f"{path / OPTIMISER}: has no moments of {name}")
        optimiser.state[parameter] = {
            "step": moments[f"{name}.step"],
            "exp_avg": _like(parameter, _find(path, f"{name}.exp_avg", moments, parameter)),
            "exp_avg_sq": _like(parameter, _find(path, f"{name}.exp_avg_sq", moments, parameter)),
        }


def _learning(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def _find(path: Path, name: str, tensors: dict[str, Tensor], like: Tensor) -> Tensor:
    found = tensors.get(name)
    if found is None or found.shape != like.shape:
        raise RunStateError(
            f"{path}: expected a tensor {name} of shape {list(like.shape)}, found "
            f"{'none' if found is None else list(found.shape)}"
        )
    return found


def _like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """On the parameter's device, divided among ranks as it is."""
    moved = tensor.detach().to(parameter.device, parameter.dtype)
    if isinstance(parameter, DTensor):
        return distribute_tensor(moved, parameter.device_mesh, parameter.placements)
    return moved
