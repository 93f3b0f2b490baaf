"""The training run, from a recipe to the final checkpoint, to be read from top to bottom."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from tqdm import tqdm

from mexma.text import TextTokenizer
from training.batches import Batches
from training.chance import number
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.corpus import open_corpus
from training.errors import NonFiniteLoss
from training.masking import Vocabulary
from training.miniature import miniature
from training.model import PairModel
from training.optimiser import make_optimiser, rate_at, set_rate
from training.ranks import Ranks
from training.recipe import Recipe

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def train(recipe: Recipe, out: Path, ranks: Ranks) -> Path:
    """Run `recipe`; returns the final checkpoint's directory. Raises MexmaError."""
    split = open_corpus(recipe)
    start = open_backbone(recipe)
    tokenizer = TextTokenizer(
        start.tokenizer_json, max_tokens=start.max_tokens, prefix=start.prefix
    )
    vocabulary = Vocabulary.of(start.tokenizer_json, start.encoder.config.vocabulary)
    batches = Batches(split.train, tokenizer, vocabulary, recipe)

    model = PairModel(start.encoder, recipe).to(ranks.device).train()
    optimiser = make_optimiser(model, recipe)
    if ranks.device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    cast = (
        torch.autocast(ranks.device.type, DTYPES[recipe.precision])
        if recipe.precision in DTYPES
        else nullcontext()
    )
    scaler = torch.amp.GradScaler(ranks.device.type, enabled=recipe.precision == "fp16")
    learning = [p for p in model.parameters() if p.requires_grad]

    out.mkdir(parents=True, exist_ok=True)
    began, seen = time.monotonic(), 0
    log = (out / "metrics.jsonl").open("a")
    with tqdm(total=batches.steps, unit="step", disable=not ranks.first) as bar, log:
        for step, read in enumerate(batches.read(0)):
            rate = set_rate(optimiser, recipe, rate_at(step, batches.steps, recipe))
            sums: dict[str, float] = {}
            for place, batch in enumerate(read.batches):
                torch.manual_seed(number(f"dropout {recipe.seed} {step} {place} {ranks.rank}"))
                with cast:
                    losses = model(
                        batch.to(ranks.device), read.chosen, len(read.batches), ranks.world
                    )
                for name, loss in losses.items():
                    sums[name] = sums.get(name, 0.0) + loss.item()
                if not math.isfinite(losses["loss"].item()):
                    raise NonFiniteLoss(
                        f"step {step}: the loss is {losses['loss'].item()} for sample ids "
                        f"{batch.sample_ids}"
                    )
                scaler.scale(losses["loss"]).backward()
            scaler.unscale_(optimiser)
            norm = torch.nn.utils.clip_grad_norm_(learning, recipe.clip)
            scaler.step(optimiser)
            scaler.update()
            optimiser.zero_grad(set_to_none=True)

            seen += read.pairs
            speed = seen / (time.monotonic() - began)
            row = {
                "step": step + 1,
                **sums,
                "norm": norm.item(),
                "rate": rate,
                "pairs_per_s": speed,
            }
            log.write(json.dumps(row) + "\n")
            log.flush()
            shown = {k: f"{v:.3f}" for k, v in sums.items()}
            bar.set_postfix(shown | {"pairs/s": f"{speed:.0f}"}, refresh=False)
            bar.update()
            if (step + 1) % recipe.save_every == 0 and step + 1 < batches.steps:
                save_checkpoint(out / "checkpoints" / f"step-{step + 1:08d}", start, step=step + 1)
    save_checkpoint(out / "final", start, step=batches.steps)
    return out / "final"


def open_backbone(recipe: Recipe) -> Checkpoint:
    """The starting weights, with the recipe's pooling, prefix and limit."""
    if recipe.backbone == "miniature":
        start = miniature(recipe.pooling)
    else:
        start = load_checkpoint(recipe.backbone, pooling=recipe.pooling, prefix=recipe.prefix)
    limit = min(recipe.max_tokens, start.max_tokens)
    return dataclasses.replace(start, max_tokens=limit, prefix=recipe.prefix)
