"""The training run, from a recipe to the final checkpoint, to be read from top to bottom."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mexma.text import TextTokenizer
from training.alike import find_alike
from training.batches import Batches
from training.centring import centred
from training.chance import number
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.corpus import Split, open_corpus
from training.errors import NonFiniteLoss, RecipeError, RunStateError, Stopped, WorkerLost
from training.first_notes import first_notes
from training.masking import Vocabulary
from training.miniature import miniature
from training.model import PairModel
from training.optimiser import make_optimiser, rate_at, set_rate
from training.ranks import Ranks
from training.recipe import Recipe
from training.report import write_report
from training.run_state import (
    Progress,
    RunDirectory,
    encoder_checkpoint,
    load_state,
    state_tensors,
)
from training.runlog import RunLog
from training.stopping import Stop, resume_command
from training.validation import Vectors, choose_pairs, embed_texts, score_of, validate
from training.workers import workers_for

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def train(
    recipe: Recipe,
    out: Path,
    ranks: Ranks,
    *,
    resume: bool = False,
    quiet: bool = False,
    stop: Stop | None = None,
    reached: Callable[[str], None] = lambda point: None,
) -> Path:
    """Run `recipe` in the directory `out`; returns that of the final checkpoint.

    resume: go on from the newest intact checkpoint in `out` (from the beginning if there is
    none), as if the run had never stopped: on one machine's CPU, to the last bit. stop: asked
    after each step whether there is to be another. reached: told the name of each point that is
    passed, for tests that kill the process there.
    Raises MexmaError, one sentence each; Stopped when `stop` was asked for and all is saved.
    """
    run = RunDirectory(out, reached)
    with ExitStack() as held:

        def begin() -> None:
            if ranks.first:
                held.enter_context(run.locked())
            if not resume and run.final.exists():
                raise RunStateError(
                    f"{out}: holds a finished run already; to train it further give "
                    f"backbone={run.final} and another --out"
                )
            if not resume and run.steps():
                raise RunStateError(
                    f"{out}: holds a run already; resume it with `mexma-train resume`, or choose another"
                )

        ranks.all_or_none(begin)
        return _train(recipe, run, ranks, stop or Stop(), reached, resume=resume, quiet=quiet)


def _train(  # noqa: PLR0912, PLR0915  one path, read from top to bottom
    recipe: Recipe,
    run: RunDirectory,
    ranks: Ranks,
    stop: Stop,
    reached: Callable[[str], None],
    *,
    resume: bool,
    quiet: bool,
) -> Path:
    """What `train` does in a directory that is its own."""
    out = run.path

    # What is read -------------------------------------------------------------------------------
    def tell(text: str) -> None:
        if ranks.first and not quiet:
            print(f"{text} …", file=sys.stderr, flush=True)

    tell(f"reading {', '.join(recipe.data) or 'data'}")
    split = ranks.all_or_none(lambda: open_corpus(recipe))
    found = ranks.all_or_none(run.newest) if resume else None
    if found is not None:
        path, saved, checkpoint, damaged = found
        ranks.all_or_none(lambda: refuse_other_data(path, saved, split))
    tell(f"{len(split.train)} pairs; loading the backbone {recipe.backbone}")
    start = ranks.all_or_none(lambda: open_backbone(recipe))
    try:
        limit = min(recipe.max_tokens, start.max_tokens)
        tokenizer = TextTokenizer(start.tokenizer_json, max_tokens=limit, prefix=start.prefix)
    except ValueError as error:  # no room beside special tokens and prefix
        raise RecipeError(str(error)) from None
    vocabulary = Vocabulary.of(start.tokenizer_json, start.encoder.config.vocabulary)
    batches = Batches(
        split.train, tokenizer, vocabulary, recipe, rank=ranks.rank, world=ranks.world
    )
    if recipe.centre_texts:
        tell(f"taking out what the vectors of {recipe.centre_texts} texts have in common")
        some = batches.order.take(0, max(1, recipe.centre_texts // 2))
        start = centred(start, tokenizer, [t for side in split.train.pairs(some) for t in side])
    if recipe.alike:
        embed_start = partial(embedded_by, start, tokenizer, ranks)
        batches.alike = find_alike(
            out, split.train, batches.read_pairs, embed_start, ranks,
            start=" ".join(sorted(start.source.get("weights", {}).values())), quiet=quiet,
        )  # fmt: skip
    judges = choose_pairs(split.held_out, pairs=recipe.validation_pairs)
    hashes = start.source.get("weights", {})
    progress = Progress(
        0, recipe.to_dict(), split.train.fingerprint, hashes, None, {}, split.judges
    )

    # What learns --------------------------------------------------------------------------------
    trained = encoder_copy(start)
    model = PairModel(trained, recipe).to(ranks.device).train()
    if recipe.sharded and ranks.world > 1:
        for layer in [*trained.layers, *([] if model.head is None else model.head.layers)]:
            fully_shard(layer)
        fully_shard(model)
    optimiser = make_optimiser(model, recipe)
    scaler = torch.amp.GradScaler(ranks.device.type, enabled=recipe.precision == "fp16")
    if found is not None:
        refuse_other_start(path, saved, progress)
        load_state(path, checkpoint, model, optimiser, step=saved.step)
        scaler.load_state_dict(saved.scaler)
        progress = replace(saved, recipe=progress.recipe, judges=progress.judges)
    divided = recipe.sharded and ranks.world > 1
    stepped: torch.nn.Module = model
    if ranks.world > 1 and not divided:
        stepped = DistributedDataParallel(model, gradient_as_bucket_view=True)
    learning = [p for p in model.parameters() if p.requires_grad]
    if ranks.device.type == "cuda":
        torch.set_float32_matmul_precision("high")

    def cast() -> AbstractContextManager[Any]:
        if recipe.precision not in DTYPES:
            return nullcontext()
        return torch.autocast(ranks.device.type, DTYPES[recipe.precision])

    kept = progress.step if found is not None else -1
    log = RunLog(out, step=kept, steps=batches.steps, quiet=quiet) if ranks.first else None
    for damage in damaged if found is not None else ():
        if log:
            log.note(kept, f"passed over a damaged checkpoint ({damage}); goes on from step {kept}")
    if log and found is None:
        run.keep_recipe(recipe.to_dict())
        for text in first_notes(recipe, split, batches, judges):
            log.note(0, text)
    elif log and (moved := run.keep_places(recipe.to_dict())):
        told = ", ".join(
            f"{name}={value if isinstance(value, str) else ','.join(value)}"
            for name, value in moved.items()
        )
        log.note(kept, f"the same now lies elsewhere: {told}")

    def judge(progress: Progress) -> Progress:
        """Validate; the best score so far and its step go into the progress."""
        if not judges:
            return progress
        model.eval()
        # Divided weights are put together first: the judge runs the encoder, not the whole model.
        judged = encoder_checkpoint(model, start).encoder.to(ranks.device) if divided else trained

        def embed(texts: list[str]) -> Vectors:
            with cast():
                return embed_texts(judged, tokenizer, texts)

        scores = validate(judges, embed)
        model.train()
        score = score_of(scores)
        if log and score is not None:
            for s in scores:
                row = {"part": s.name, "to_english": s.mean[0], "from_english": s.mean[1]}
                log.validation(progress.step, row | {"languages": s.languages, "score": score})
            log.note(progress.step, f"step {progress.step}: {score:.2%} of held-out pairs found")
        if score is not None and (progress.best is None or score > progress.best[0]):
            return replace(progress, best=(score, progress.step))
        return progress

    def save(progress: Progress) -> None:
        """A checkpoint by the first rank; the others lend their shards and wait."""
        encoder = encoder_checkpoint(model, start)
        tensors = state_tensors(model, optimiser)
        problem = None
        if ranks.first:
            try:
                scaled = replace(progress, scaler=scaler.state_dict())
                run.save(scaled, encoder, tensors, keep_last=recipe.keep_last)
            except RunStateError as error:
                problem = str(error)
        if problem := ranks.gather(problem)[0]:
            raise RunStateError(problem)

    # The run ------------------------------------------------------------------------------------
    if found is None:
        if log and judges:
            log.tell(f"judging the start by {sum(p.size for p in judges)} held-out pairs …")
        progress = judge(progress)
        if is_best(progress):  # until training makes a better one
            save(progress)
    elif log and progress.step == batches.steps:
        log.tell(
            f"all {batches.steps} steps are done; to train further give backbone={run.final} and "
            "another --out"
        )
    elif log:
        log.tell(f"going on after step {progress.step} of {batches.steps}")
    began, seen = time.monotonic(), 0
    stop.wait_for_steps()
    coming = batches.read(progress.step, workers_for(ranks.device.type, recipe.workers))
    try:
        for step, read in enumerate(coming, start=progress.step):
            reached(f"step {step}")
            rate = set_rate(optimiser, recipe, rate_at(step, batches.steps, recipe))
            sums: dict[str, float] = {}
            guilty: list[int] = []
            for place, batch in enumerate(read.batches):
                last = place == len(read.batches) - 1
                if divided:
                    model.set_requires_gradient_sync(last)  # type: ignore[operator]
                alone = isinstance(stepped, DistributedDataParallel) and not last
                # Dropout is the only generator in use; set here, it has no state to save.
                torch.manual_seed(number(f"dropout {recipe.seed} {step} {place} {ranks.rank}"))
                with stepped.no_sync() if alone else nullcontext():  # type: ignore[operator]
                    with cast():
                        losses = stepped(
                            batch.to(ranks.device), read.chosen, len(read.batches), ranks.world
                        )
                    if not math.isfinite(losses["loss"].item()):
                        guilty += batch.sample_ids
                    scaler.scale(losses["loss"]).backward()
                for name, loss in losses.items():
                    sums[name] = sums.get(name, 0.0) + loss.item()
            scaler.unscale_(optimiser)
            clipped = torch.nn.utils.clip_grad_norm_(learning, recipe.clip)
            norm = float(clipped.full_tensor() if isinstance(clipped, DTensor) else clipped)

            # All ranks decide the same: a NaN on one of them is in everybody's gradients.
            exploded = not math.isfinite(norm) and not scaler.is_enabled()
            asked = stop.signal is not None
            bad, stopping, lost, *totals = ranks.sum(
                bool(guilty or exploded), asked, batches.lost is not None, *sums.values()
            )
            if bad:
                everyone = sorted(i for ids in ranks.gather(guilty) for i in ids)
                all_ids = sorted(
                    i
                    for ids in ranks.gather([b.sample_ids for b in read.batches])
                    for b in ids
                    for i in b
                )
                what = "loss" if everyone else "gradient"
                raise NonFiniteLoss(
                    f"step {step}: the {what} is not finite for the batch with sample ids "
                    f"{everyone or all_ids}; the weights are those of step {step} and no later "
                    "checkpoint was written"
                )
            scaler.step(optimiser)
            scaler.update()
            optimiser.zero_grad(set_to_none=True)

            progress = replace(progress, step=step + 1)
            seen += read.pairs
            if log:
                means = dict(zip(sums, (x / ranks.world for x in totals), strict=True))
                speed = seen / (time.monotonic() - began)
                log.step(step + 1, means | {"norm": norm, "rate": rate, "pairs_per_s": speed})
            end = step + 1 == batches.steps
            if end or (step + 1) % recipe.validate_every == 0:
                progress = judge(progress)
            if end or stopping or lost or (step + 1) % recipe.save_every == 0 or is_best(progress):
                save(progress)
            if stopping and not end:
                sent = next(n for n in ranks.gather(stop.signal) if n is not None)
                raise Stopped(
                    f"stopped by {signal.Signals(sent).name} after step {step + 1} of "
                    f"{batches.steps}; {resume_command(out)} goes on from there",
                    sent,
                )
            if lost and not end:
                whose = next(error for error in ranks.gather(batches.lost) if error is not None)
                raise WorkerLost(
                    f"{whose}; the run is saved after step {step + 1} of {batches.steps}, and "
                    f"{resume_command(out)} goes on from there, with workers=0 if need be"
                )

        # What is left behind --------------------------------------------------------------------
        final = encoder_checkpoint(model, start, recipe.average_with_start)
        if ranks.first:
            save_checkpoint(run.final, final, step=batches.steps)
        if log:
            if batches.unusable:
                text = f"{len(batches.unusable)} pairs without a token the tokenizer knows were replaced"
                log.note(progress.step, text)
            if progress.best is not None and progress.best[1] == 0:
                text = f"nothing was better than the start ({progress.best[0]:.2%} of held-out pairs found)"
                log.note(progress.step, f"{text}: best is the start, final is worse or no better")
            elif progress.best is not None and progress.best[1] < batches.steps:
                text = f"step {progress.best[1]} found most held-out pairs ({progress.best[0]:.2%})"
                log.note(
                    progress.step, f"{text}: best is that checkpoint, final is the end of the run"
                )
            log.close()
            write_report(out, recipe, asdict(progress))
    finally:
        coming.close()
        if log:
            log.close()
    return run.final


def is_best(progress: Progress) -> bool:
    """Was this step just validated as the best so far?"""
    return progress.best is not None and progress.best[1] == progress.step


def open_backbone(recipe: Recipe) -> Checkpoint:
    """The starting weights, with the recipe's pooling and prefix.

    Texts are cut to the recipe's limit while it trains; what it leaves takes as long ones as its backbone.
    """
    if recipe.backbone == "miniature":
        start = miniature(recipe.pooling)
    else:
        start = load_checkpoint(recipe.backbone, pooling=recipe.pooling, prefix=recipe.prefix)
    return replace(start, prefix=recipe.prefix)


def embedded_by(
    start: Checkpoint, tokenizer: TextTokenizer, ranks: Ranks, texts: list[str]
) -> Vectors:
    """L2-normalised vectors float32 `[n, dim]` by the starting weights."""
    start.encoder.to(ranks.device).eval()
    with torch.autocast(ranks.device.type, torch.bfloat16):
        vectors = embed_texts(start.encoder, tokenizer, texts)
    start.encoder.cpu()
    return vectors


def encoder_copy(start: Checkpoint) -> Any:
    """An encoder of its own with the starting weights."""
    encoder = type(start.encoder)(start.encoder.config)
    encoder.load_state_dict(start.encoder.state_dict())
    return encoder


def refuse_other_data(path: Path, saved: Progress, now: Split) -> None:
    """Raises RunStateError when training or held-out pairs are not those the run began with."""
    for what, before, found in (
        ("trained on a corpus", saved.corpus, now.train.fingerprint),
        ("judged by held-out pairs", saved.judges or now.judges, now.judges),
    ):
        if before != found:
            raise RunStateError(
                f"{path}: was {what} with fingerprint {before}, but the data now has {found}; a resumed "
                "run needs the same pairs in the same order, wherever they lie, and the same settings"
            )


def refuse_other_start(path: Path, saved: Progress, now: Progress) -> None:
    """Raises RunStateError when the starting weights are not those the run began with."""
    if saved.start != now.start:
        raise RunStateError(f"{path}: started from other weights than {now.recipe['backbone']} has")
