"""What is said of a run before its first step: what it reads, how often, and what it is judged by."""

from __future__ import annotations

from collections.abc import Iterator

from training.batches import Batches
from training.corpus import Split
from training.recipe import Recipe
from training.validation import FEW, HeldOut

MANY_PASSES = 10
"""More, and a run learns its pairs by heart rather than what they have in common."""


def first_notes(
    recipe: Recipe, split: Split, batches: Batches, judges: list[HeldOut]
) -> Iterator[str]:
    """Sentences, each for a line of its own."""
    for reason, count in split.dropped.items():
        yield f"{count} rows dropped: {reason}"
    pairs = batches.count * recipe.batch_pairs
    passes = pairs / batches.order.epoch_pairs
    yield (
        f"{len(split.train)} pairs in {len(split.train.names)} languages, {passes:.3g} passes in "
        f"{batches.steps} steps of {recipe.accumulate} x {recipe.batch_pairs} pairs; held out: "
        + (", ".join(f"{name} {len(c)}" for name, c in split.held_out.items()) or "nothing")
    )
    if recipe.pairs and pairs != recipe.pairs:
        yield f"pairs={recipe.pairs} is {pairs}: whole batches of {recipe.batch_pairs}, one at least"
    if passes > MANY_PASSES:
        yield (
            f"the run passes {passes:.0f} times over its {len(split.train)} pairs, and may learn them "
            "by heart: give more data, or fewer pairs="
        )
    for part in judges:
        if part.size < FEW:
            yield (
                f"held-out part {part.name} has {part.size} pairs, too few to choose a checkpoint by "
                f"(at least {FEW}): raise hold_out_fraction, or give more with hold_out="
            )
    if not judges:
        yield (
            "nothing is held out: no best checkpoint is chosen (give hold_out= or hold_out_fraction=)"
        )
