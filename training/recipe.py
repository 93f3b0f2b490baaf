"""A recipe: every setting of a training run, in one frozen value.

Refuses to know how training is done. `training.recipes` has the named ones; any field can be
overridden from the command line as `key=value`, checked against its type here.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from training.encoder import Pooling
from training.errors import RecipeError
from training.packing import Backend

RANGES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "max_tokens head_layers head_heads head_width batch_pairs accumulate bucket_batches "
        "save_every keep_last validate_every validation_pairs",
        lambda x: x >= 1,
        "be at least 1",
    ),
    (
        "centre_texts unmasking sampled_vocabulary alignment koleo contrastive most_per_source "
        "alike epochs pairs head_learning_rate weight_decay",
        lambda x: x >= 0,
        "not be negative",
    ),
    (
        "temperature language_temperature learning_rate clip",
        lambda x: x > 0,
        "be positive",
    ),
    (
        "dropout mask_rate hold_out_fraction warm_up warm_up_from average_with_start",
        lambda x: 0 <= x <= 1,
        "be between 0 and 1",
    ),
    ("workers", lambda x: x >= -1, "be at least -1"),
    ("same_above", lambda x: -1 <= x <= 1, "be between -1 and 1"),
    ("betas", lambda xs: all(0 <= x < 1 for x in xs), "be at least 0 and below 1"),
)
"""Names of settings, what their values pass, and how that is said."""


@dataclass(frozen=True)
class Recipe:
    """All there is to set. What a number means stands beside it.

    A `Recipe` is complete: a run is `train(recipe, out)` and nothing else, and the recipe is
    written into every checkpoint.
    """

    name: str
    # Where it starts ------------------------------------------------------------------------
    backbone: str
    """A checkpoint, a Hugging Face directory, a hub name, or "miniature": built on the spot."""
    pooling: Pooling
    """How token states become the sentence vector."""
    prefix: str = ""
    """Put before every text, in training and by whoever uses the result."""
    max_tokens: int = 200
    """Longer texts are cut on the right."""
    dropout: float = 0.1
    """Of hidden states in encoder and head; attention weights are never dropped."""
    train_embeddings: bool = True
    """Whether the token table learns. Frozen, a small encoder trains faster and forgets less."""
    centre_texts: int = 0
    """Over so many training texts the mean vector is taken out of the encoder before it starts
    (see `training.centring`). 0: what the backbone has in common for all texts stays in."""

    # What it minimises ----------------------------------------------------------------------
    unmasking: float = 1.0
    """Weight of the unmasking loss; 0 leaves out masked passes and head."""
    context: Literal["other", "none"] = "other"
    """What stands at position 0 of the masked side: the other side's clean sentence vector, or
    what stood there (then unmasking is plain monolingual masked language modelling)."""
    token_gradients: bool = True
    """Whether unmasking reaches the encoder through the masked side's tokens, or only through
    the sentence vector at position 0."""
    mask_rate: float = 0.4
    head_layers: int = 6
    head_heads: int = 8
    head_width: int = 3072
    """Of the perceptron within the head's layers; the head is as wide as the encoder."""
    sampled_vocabulary: int = 0
    """0: exact. Else unmask against the batch's tokens and so many random ones: cheap, biased."""
    alignment: float = 1.0
    koleo: float = 0.01
    contrastive: float = 0.0
    """Weights of the losses on sentence vectors; see `training.objective`."""
    temperature: float = 0.02
    """Of the contrastive loss. Higher: gentler; lower: only the hardest negatives count."""
    same_above: float = 1.0
    """Translations with a higher cosine than this say the same, as far as the model knows by then, and
    their pairs are no negatives for each other. 1: only pairs that share a text are none."""

    # What it reads --------------------------------------------------------------------------
    data: tuple[str, ...] = ()
    """Files, directories, glob patterns or `hf://` addresses; see `training.sources`."""
    hold_out: tuple[str, ...] = ()
    """More of them, read for validation only. Their sentences are dropped from training."""
    hold_out_fraction: float = 0.0
    """Part of the English sentences, with all their translations, kept for validation."""
    decontaminate: tuple[str, ...] = ()
    """What training must not have seen: `.txt` files of sentences, one a line, or pairs as in
    `data`. Pairs with one of these sentences, but for case and punctuation, are dropped."""
    columns: tuple[str, str, str] = ("src", "trg", "lang")
    """Names of the columns: text, its English translation, language tag of the text."""
    most_per_source: int = 0
    """At most so many pairs of one language from one source, drawn with the seed. 0: all. So a
    large source does not drown the others, and a language does not speak of one subject only."""
    language_temperature: float = 1.0
    """A language with n pairs is drawn in proportion to n ** (1 / temperature). 1: as they come;
    higher: small languages more often, and so repeated more."""

    # How long, how large --------------------------------------------------------------------
    batch_pairs: int = 150
    """Pairs that meet in one forward pass, over all ranks together; a multiple of the ranks."""
    accumulate: int = 2
    """Such batches before each optimiser step."""
    alike: int = 0
    """Batches take groups of so many pairs whose English sentences are near to one another, by the
    starting weights: negatives that are hard to tell apart (see `training.alike`). The groups are
    found among the pairs of `bucket_batches` batches: the more, the nearer. 0: none."""
    bucket_batches: int = 64
    """Batches are cut from this many sorted by length: more, and less is padded."""
    epochs: float = 3.0
    pairs: int = 0
    """How long: so many pairs, or, where 0, so many passes over the training pairs."""
    learning_rate: float = 1e-4
    head_learning_rate: float = 1.0
    """Factor for head and output bias, which start from nothing."""
    warm_up: float = 0.3
    warm_up_from: float = 0.1
    """Linear over this part of the run, from this factor; then cosine to 0."""
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.2
    """Longest gradient."""
    seed: int = 1

    # On what --------------------------------------------------------------------------------
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Of matrix products, by autocast; weights, optimiser and losses are float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where torch finds it."""
    workers: int = -1
    """Processes beside each rank that tokenize and group ahead; what is read stays the same. One takes the
    memory of a tokenizer and a bucket. Too few, and a GPU waits at each bucket; more than cores, and they
    hold up one another. 0: a thread does it. -1: on CUDA one for each core but one, at most 4; on a CPU,
    whose cores all train, 0 (see `training.workers`)."""
    attention: Backend = "auto"
    """See `training.packing`."""
    recompute: bool = False
    """Gradient checkpointing: a third slower, far less memory."""
    sharded: bool = False
    """FSDP2 instead of DDP: weights, gradients and optimiser state are divided among ranks."""

    # What it keeps --------------------------------------------------------------------------
    save_every: int = 500
    """Optimiser steps between checkpoints; one more at the end, and of whatever is the best so far."""
    keep_last: int = 2
    validate_every: int = 500
    """Optimiser steps between validations; one more before the first step and at the end."""
    validation_pairs: int = 4000
    """About so many pairs of each held-out part, in equal shares of its languages."""
    average_with_start: float = 0.0
    """Weight of the starting weights in the final checkpoint (Wortsman et al. 2022, arXiv
    2109.01903): what fine-tuning forgot comes back, what it learned mostly stays."""

    def __post_init__(self) -> None:
        """Raises RecipeError for values no run can have."""
        for names, fits, words in RANGES:
            for name in names.split():
                if not fits(getattr(self, name)):
                    raise RecipeError(f"{name} must {words}, got {getattr(self, name)}")
        if self.unmasking and not self.mask_rate:
            raise RecipeError("mask_rate is 0, and unmasking needs masks: set it, or unmasking=0")
        if self.alike > self.batch_pairs:
            raise RecipeError(
                f"alike must be at most batch_pairs ({self.batch_pairs}): a group is within a batch; "
                f"got {self.alike}"
            )
        if not (self.unmasking or self.alignment or self.contrastive):
            raise RecipeError("unmasking, alignment and contrastive are all 0: nothing to learn")
        if not (self.pairs or self.epochs):
            raise RecipeError("pairs and epochs are both 0: nothing to do")

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON can hold them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def override(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """Apply `key=value` settings. Raises RecipeError, naming the setting.

    Lists are separated by commas; truth is `true` or `false`.
    """
    hints = get_type_hints(Recipe)
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or key not in hints or key == "name":
            names = [f.name for f in fields(Recipe) if f.name != "name"]
            near = get_close_matches(key, names) if equals else []
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise RecipeError(
                f"{setting!r}: {hint}expected key=value with a key of {', '.join(names)}"
            )
        if key in changes:
            raise RecipeError(f"{setting!r}: {key} is set twice")
        try:
            changes[key] = _parse(text, hints[key])
        except ValueError as error:
            raise RecipeError(f"{key} must be {error}, got {text!r}") from None
    return replace(recipe, **changes)


def _parse(text: str, kind: Any) -> Any:
    """Text to a value of a field's type; ValueError says what was expected."""
    if get_origin(kind) is Literal:
        if text in get_args(kind):
            return text
        raise ValueError("one of " + ", ".join(get_args(kind)))
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        words = [w for w in text.split(",") if w]
        if inner[-1] is not Ellipsis and len(words) != len(inner):
            raise ValueError(f"{len(inner)} values separated by commas")
        return tuple(_parse(w, inner[0]) for w in words)
    assert get_origin(kind) not in (Union, types.UnionType)  # noqa: S101  no field has one
    if kind is bool:
        if text in ("true", "false"):
            return text == "true"
        raise ValueError("true or false")
    try:
        value = kind(text)
    except ValueError:
        article = {int: "a whole number", float: "a number"}[kind]
        raise ValueError(article) from None
    if kind is float and not abs(value) < float("inf"):
        raise ValueError("a finite number")
    return value
