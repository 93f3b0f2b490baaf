"""AdamW over what learns, and the learning rate as a function of the optimiser step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from training.recipe import Recipe


def make_optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """One group for the encoder, one for the head with its own factor on the learning rate."""
    groups: list[dict[str, Any]] = []
    for factor, head in ((1.0, False), (recipe.head_learning_rate, True)):
        parameters = [
            p
            for name, p in model.named_parameters()
            if p.requires_grad and ("head." in name) == head
        ]
        if parameters:
            groups.append({"params": parameters, "factor": factor})
    return torch.optim.AdamW(
        groups, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay
    )


def rate_at(step: int, steps: int, recipe: Recipe) -> float:
    """Part of the full learning rate for optimiser step `step` (from 0) of `steps`.

    Linear from `warm_up_from` to 1 over the first `warm_up` of the steps, then half a cosine
    to 0 (arXiv 2409.12737, section 4.1, with the authors' launch command).
    """
    warm = round(recipe.warm_up * steps)
    if step < warm:
        return recipe.warm_up_from + (1 - recipe.warm_up_from) * step / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def set_rate(optimiser: torch.optim.Optimizer, recipe: Recipe, rate: float) -> float:
    """Set every group's learning rate; returns the encoder's."""
    for group in optimiser.param_groups:
        group["lr"] = recipe.learning_rate * rate * group["factor"]
    return recipe.learning_rate * rate
