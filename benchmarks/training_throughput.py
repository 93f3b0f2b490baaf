"""Pairs per second of training, beside the straightforward implementation, in one run.

    OMP_WAIT_POLICY=passive python -m benchmarks.training_throughput BACKBONE DATA [DATA ...]

Straightforward: four padded passes over batches as they come, torch's attention operator, logits
of every position over the whole vocabulary, float32. Ours: batches of like length without padding,
gathered masked positions, chunked or sampled vocabulary, bfloat16 products. Both take the same
pairs with the same masks, in turns, and before anything is timed their losses must agree. Peak
memory of the vocabulary's cross-entropy is measured in processes of their own.

The setting is the trainer's own (`training/__init__.py`); given here, it holds for both.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.circumstances import circumstances, result_file
from mexma.text import TextTokenizer
from training.batches import Batches
from training.corpus import open_corpus
from training.encoder import sdpa
from training.loop import encoder_copy, open_backbone
from training.masking import Vocabulary
from training.model import PairBatch, PairModel
from training.objective import alignment, contrastive, koleo
from training.optimiser import make_optimiser
from training.packing import Packed
from training.recipe import override
from training.recipes import find_recipe
from training.vocabulary import chunked_cross_entropy

PAIRS = 16
ROUNDS = 6
POSITIONS = 2048


def padded(packed: Packed, first: int, last: int) -> tuple[Tensor, Tensor]:
    """ids and mask int64 `[n, longest]` of some sequences of a packed batch."""
    rows = [packed.ids[packed.rows == i] for i in range(first, last)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1)
    lengths = torch.tensor([len(r) for r in rows])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


def straightforward(model: PairModel, batch: PairBatch) -> Tensor:
    """The same loss as `PairModel` with an exact vocabulary, as one would first write it."""
    r, encoder, n = model.recipe, model.encoder, len(batch.sample_ids)
    clean = [padded(batch.clean, 0, n), padded(batch.clean, n, 2 * n)]
    vectors = []
    for ids, mask in clean:
        states = encoder.token_states(ids, mask)
        vectors.append((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
    same = model._same(batch.keys)
    loss = torch.zeros(())
    if r.alignment:
        loss = loss + r.alignment * alignment(*vectors)
    if r.koleo:
        loss = loss + r.koleo * (koleo(vectors[0], same) + koleo(vectors[1], same)) / 2
    if r.contrastive:
        loss = loss + r.contrastive * contrastive(*vectors, temperature=r.temperature, same=same)
    if model.head is None or batch.masked is None:
        return loss
    truths = torch.full((len(batch.clean.ids),), -100)
    truths[batch.chosen] = batch.truths
    for side, other in ((0, 1), (1, 0)):
        ids, mask = padded(batch.masked, side * n, side * n + n)
        states = encoder.token_states(ids, mask)
        states = torch.cat([vectors[other][:, None], states[:, 1:]], 1)
        for layer in model.head.layers:
            states = layer(states, mask, sdpa)
        logits = states @ encoder.embeddings.words.weight.T + model.head.bias
        labels = torch.full_like(ids, -100)
        for i in range(n):
            labels[i, : mask[i].sum()] = truths[batch.clean.rows == side * n + i]
        loss = (
            loss
            + r.unmasking * functional.cross_entropy(logits.flatten(0, 1), labels.flatten()) / 2
        )
    return loss


def contenders(backbone: str, data: str, name: str) -> dict[str, Callable[[int], float]]:
    """Name -> a function that trains one step and returns the seconds it took."""
    common = [f"backbone={backbone}", f"data={data}", f"batch_pairs={PAIRS}", "accumulate=1"]
    common += ["hold_out_fraction=0", f"pairs={PAIRS * ROUNDS}"]
    exact = override(
        find_recipe(name), [*common, "sampled_vocabulary=0", f"bucket_batches={ROUNDS}"]
    )
    corpus, start = open_corpus(exact).train, open_backbone(exact)
    limit = min(exact.max_tokens, start.max_tokens)
    tokenizer = TextTokenizer(start.tokenizer_json, max_tokens=limit)
    vocabulary = Vocabulary.of(start.tokenizer_json, start.encoder.config.vocabulary)

    def ready(*settings: str) -> tuple[PairModel, Batches, torch.optim.Optimizer]:
        recipe = override(find_recipe(name), [*common, *settings])
        model = PairModel(encoder_copy(start), recipe).train()
        batches = Batches(corpus, tokenizer, vocabulary, recipe)
        batches.step(0)
        return model, batches, make_optimiser(model, recipe)

    plain, as_they_come, plain_optimiser = ready("sampled_vocabulary=0", "bucket_batches=1")
    batch = as_they_come.step(0).batches[0]
    with torch.no_grad():
        ours = plain(batch, batch.chosen_by_side, 1)["loss"].item()
        theirs = straightforward(plain, batch).item()
    assert abs(ours - theirs) < 1e-4 * abs(theirs), f"losses differ: {ours} and {theirs}"
    print(f"{name}: both compute {ours:.6f} and {theirs:.6f} for the same batch", flush=True)

    def timed(
        model: PairModel, optimiser: torch.optim.Optimizer, loss: Callable[[], Tensor]
    ) -> float:
        began = time.perf_counter()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.2)
        optimiser.step()
        optimiser.zero_grad()
        return time.perf_counter() - began

    def theirs_step(step: int) -> float:
        batch = as_they_come.step(step).batches[0]
        return timed(plain, plain_optimiser, lambda: straightforward(plain, batch))

    def ours_step(*settings: str) -> Callable[[int], float]:
        model, batches, optimiser = ready(f"bucket_batches={ROUNDS}", *settings)

        def loss(batch: PairBatch) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return model(batch, batch.chosen_by_side, 1)["loss"]

        def step(number: int) -> float:
            batch = batches.step(number).batches[0]
            return timed(model, optimiser, lambda: loss(batch))

        return step

    made = {"straightforward": theirs_step, "ours": ours_step("sampled_vocabulary=0")}
    if plain.head is not None:
        made["ours, sampled vocabulary"] = ours_step("sampled_vocabulary=4096")
    return made


def peak_of(what: str) -> int:
    """Bytes by which the peak memory of a process grows in one cross-entropy with gradients."""
    command = [sys.executable, "-m", "benchmarks.training_throughput", "--memory", what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


def memory(what: str) -> None:
    states, table = torch.randn(POSITIONS, 384), torch.randn(250_037, 384) * 0.05
    states.requires_grad_()
    bias, targets = torch.zeros(len(table)), torch.randint(len(table), (POSITIONS,))
    torch.mm(states.detach()[:1], table.T[:, :64])
    # Resets the peak; ru_maxrss would begin with that of the process that started this one.
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_kib()
    if what == "chunked":
        loss = chunked_cross_entropy(states, table, bias, targets)
    else:
        loss = functional.cross_entropy(states @ table.T + bias, targets, reduction="sum")
    loss.backward()
    print((peak_kib() - before) * 1024)


def peak_kib() -> int:
    rows = Path("/proc/self/status").read_text().splitlines()
    return int(next(row.split()[1] for row in rows if row.startswith("VmHWM")))


def main() -> None:
    if sys.argv[1] == "--memory":
        memory(sys.argv[2])
        return
    backbone, *data = sys.argv[1:]
    rows = []
    for name in ("mexma_small", "contrastive_unmasking", "contrastive"):
        steps = contenders(backbone, ",".join(data), name)
        spent = dict.fromkeys(steps, 0.0)
        for number in range(ROUNDS):
            for who, step in steps.items():
                seconds = step(number)
                spent[who] += seconds
                print(f"{name} {number} {who}: {seconds:.2f} s", flush=True)
        for who, seconds in spent.items():
            rows.append((name, who, PAIRS * ROUNDS / seconds, spent["straightforward"] / seconds))
    peaks = {what: peak_of(what) for what in ("plain", "chunked")}
    lines = ["# Training throughput", "", circumstances("torch"), ""]
    lines += [
        f"{torch.get_num_threads()} threads; {PAIRS} pairs a step, {ROUNDS} steps in turns, the same pairs."
    ]
    lines += ["", "| recipe | | pairs/s | times |", "|---|---|---|---|"]
    lines += [f"| {n} | {who} | {speed:.1f} | {times:.1f} |" for n, who, speed, times in rows]
    lines += [
        "",
        f"Peak memory of the cross-entropy with its gradient, {POSITIONS} positions, 250,037 tokens, "
        f"float32: all logits {peaks['plain'] / 2**20:.0f} MiB, in chunks "
        f"{peaks['chunked'] / 2**20:.0f} MiB ({peaks['plain'] / peaks['chunked']:.0f} times less).",
        "",
    ]
    text = "\n".join(lines)
    result_file("training_throughput").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
