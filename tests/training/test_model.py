"""One whole step against the objective written out, and where its gradients go."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional

from mexma.text import TextTokenizer
from training.batches import Batches
from training.corpus import open_corpus
from training.encoder import sdpa
from training.errors import RecipeError
from training.loop import open_backbone
from training.masking import Vocabulary
from training.model import PairModel
from training.packing import sentence_vectors, token_states
from training.recipe import Recipe, override
from training.recipes import RECIPES, tiny_cpu


def recipe(*settings: str) -> Recipe:
    return override(tiny_cpu(), ["batch_pairs=6", "dropout=0", "head_layers=2", *settings])


def made(r: Recipe) -> tuple[PairModel, Batches]:
    start = open_backbone(r)
    vocabulary = Vocabulary.of(start.tokenizer_json, start.encoder.config.vocabulary)
    tokenizer = TextTokenizer(start.tokenizer_json, max_tokens=start.max_tokens)
    return PairModel(start.encoder, r), Batches(open_corpus(r).train, tokenizer, vocabulary, r)


def written_out(model: PairModel, batch) -> dict[str, torch.Tensor]:
    """MEXMA's loss (arXiv 2409.12737, section 3) sentence by sentence, with the padded encoder's
    layers and every logit; nothing is shared with training.model but the weights."""
    r, encoder = model.recipe, model.encoder
    n = len(batch.sample_ids)

    def states(packed, i):
        ids = packed.ids[packed.rows == i][None]
        return encoder.token_states(ids, torch.ones_like(ids))[0]

    def vector(i):
        s = states(batch.clean, i)
        return s[0] if encoder.config.pooling == "first_token" else s.mean(0)

    vectors = torch.stack([vector(i) for i in range(2 * n)])
    source, target = vectors[:n], vectors[n:]
    sides = []
    for side in (0, 1):
        losses = []
        for i in range(side * n, side * n + n):
            token = torch.arange(len(batch.masked.ids))
            mine = batch.masked.rows == i
            chosen = torch.isin(token[mine], batch.chosen)
            if not r.token_gradients:
                with torch.no_grad():
                    x = states(batch.masked, i)
            else:
                x = states(batch.masked, i)
            if r.context == "other":
                x = torch.cat([vectors[(i + n) % (2 * n)][None], x[1:]])
            x = x[None]
            for layer in model.head.layers:
                x = layer(x, torch.ones(x.shape[:2], dtype=torch.int64), sdpa)
            logits = x[0] @ encoder.embeddings.words.weight.T + model.head.bias
            truth = batch.clean.ids[batch.clean.rows == i]
            losses.append(functional.cross_entropy(logits, truth, reduction="none")[chosen])
        sides.append(torch.cat(losses).mean())
    unit = functional.normalize(vectors, dim=-1)

    def spread(u):
        distance = torch.cdist(u, u) + 9 * torch.eye(len(u))
        return -torch.log(distance.min(1).values).mean()

    return {
        "unmasking": (sides[0] + sides[1]) / 2,
        "alignment": functional.mse_loss(source, target),
        "koleo": (spread(unit[:n]) + spread(unit[n:])) / 2,
    }


@pytest.mark.parametrize("pooling", ["mean", "first_token"])
@pytest.mark.parametrize("change", ["context=other", "token_gradients=false", "context=none"])
def test_a_step_equals_the_objective_written_out(pooling, change):
    model, batches = made(recipe(f"pooling={pooling}", change))
    model.double().eval()
    read = batches.step(0)
    batch = read.batches[0]
    assert not model._same(batch.keys).fill_diagonal_(False).any(), (
        "the reference knows no duplicates"
    )
    found = model(batch, batch.chosen_by_side, 1)
    expected = written_out(model, batch)
    for name, value in expected.items():
        # states leave the model in float32 for the vocabulary, as they do under autocast
        assert found[name].item() == pytest.approx(value.item(), abs=1e-6), name
    total = expected["unmasking"] + expected["alignment"] + 0.01 * expected["koleo"]
    leaf = model.encoder.layers[0].query.weight
    (theirs,) = torch.autograd.grad(total, leaf, retain_graph=True)
    (ours,) = torch.autograd.grad(found["loss"], leaf)
    assert (ours - theirs).abs().max() / theirs.abs().max() < 1e-5


def token_gradient(r: Recipe) -> float:
    """Size of the unmasking loss's gradient in the masked side's token states."""
    model, batches = made(r)
    seen = []
    # The last layer runs twice: over the clean states, then over the masked ones.
    model.encoder.layers[-1].register_forward_hook(lambda *a: seen.append(a[2]))
    batch = batches.step(0).batches[0]
    loss = model(batch, batch.chosen_by_side, 1)["unmasking"]
    _, masked = seen
    if not masked.requires_grad:
        return 0.0
    (gradient,) = torch.autograd.grad(loss, masked)
    assert gradient[batch.masked.starts].abs().max() == 0 or r.context == "none"
    return gradient.abs().sum().item()


@pytest.mark.parametrize("name", ["mexma_small", "contrastive_unmasking", "no_koleo"])
def test_token_gradients_reach_the_encoder(name):
    assert token_gradient(controlled(name)) > 0


@pytest.mark.parametrize(
    "name", ["sentence_gradient_only", "contrastive_unmasking_no_token_gradient"]
)
def test_token_gradients_do_not_where_they_are_cut(name):
    r = controlled(name)
    assert token_gradient(r) == 0
    model, batches = made(r)
    batch = batches.step(0).batches[0]
    model(batch, batch.chosen_by_side, 1)["unmasking"].backward()
    # ... but unmasking still reaches the encoder, through the sentence vector.
    assert model.encoder.layers[0].query.weight.grad.abs().sum() > 0


def controlled(name: str) -> Recipe:
    """A named control's objective, on the miniature backbone."""
    r, small = recipe(), RECIPES[name]()
    objective = (
        "unmasking", "context", "token_gradients", "alignment", "koleo", "contrastive",
        "temperature",
    )  # fmt: skip
    return dataclasses.replace(r, name=name, **{k: getattr(small, k) for k in objective})


def test_monolingual_unmasking_sees_no_other_language():
    model, batches = made(controlled("monolingual_mlm"))
    batch = batches.step(0).batches[0]
    losses = []
    for shift in (0.0, 1.0):
        with torch.no_grad():
            other = dataclasses.replace(batch.clean, ids=(batch.clean.ids + int(shift)) % 900)
        losses.append(
            model(dataclasses.replace(batch, clean=other), batch.chosen_by_side, 1)["unmasking"]
        )
    assert losses[0] == losses[1]


def test_translations_that_say_the_same_are_no_negatives():
    """Half of the batch's other translations are left out: those nearer than the median."""
    only = ["unmasking=0", "alignment=0", "koleo=0", "contrastive=1"]
    model, batches = made(recipe(*only))
    batch = batches.step(0).batches[0]
    states = token_states(model.encoder, batch.clean)
    vectors = sentence_vectors(model.encoder, states, batch.clean)
    source, target = (functional.normalize(v, dim=-1) for v in vectors.chunk(2))
    cosines = target @ target.T
    middle = cosines[~torch.eye(6, dtype=torch.bool)].median().item()
    losses = []
    for above in (1.0, middle):
        model.recipe = dataclasses.replace(model.recipe, same_above=above)
        losses.append(model(batch, (0, 0), 1)["contrastive"].item())
        kept = cosines <= above
        kept.fill_diagonal_(True)
        score = (source @ target.T / model.recipe.temperature).masked_fill(~kept, -torch.inf)
        own = torch.arange(6)
        both = functional.cross_entropy(score, own) + functional.cross_entropy(score.T, own)
        assert losses[-1] == pytest.approx(both.item() / 2, abs=1e-5)
    assert losses[1] < losses[0]


def test_a_mean_over_tokens_however_they_fall_into_batches():
    r = recipe("accumulate=3", "koleo=0", "alignment=0")
    model, batches = made(r)
    model.eval()
    read = batches.step(0)
    apart = sum(model(b, read.chosen, 3)["unmasking"] for b in read.batches)
    src, trg = (sum(b.chosen_by_side[i] for b in read.batches) for i in (0, 1))
    assert (src, trg) == read.chosen
    one_by_one = 0.0
    for b in read.batches:
        for side, total in ((0, src), (1, trg)):
            totals = [float("inf"), float("inf")]
            totals[side] = total
            one_by_one += model(b, tuple(totals), 1)["unmasking"].item()
    assert apart.item() == pytest.approx(one_by_one, rel=1e-6)


def test_frozen_embeddings_stay_and_a_plain_contrastive_run_has_no_head():
    model, batches = made(recipe("train_embeddings=false"))
    batch = batches.step(0).batches[0]
    model(batch, batch.chosen_by_side, 1)["loss"].backward()
    assert model.encoder.embeddings.words.weight.grad is None
    assert model.encoder.embeddings.positions.weight.grad is not None
    bare, batches = made(recipe("unmasking=0", "contrastive=1"))
    assert bare.head is None
    assert batches.step(0).batches[0].masked is None


def test_a_head_that_does_not_fit():
    with pytest.raises(RecipeError, match="head_heads must divide the encoder's width 64, got 5"):
        made(recipe("head_heads=5"))
