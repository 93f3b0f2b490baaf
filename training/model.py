"""Encoder and unmasking head together: a batch of pairs in, the losses out.

Four passes a pair (arXiv 2409.12737, section 3.1): both sides clean, both sides masked. The
clean ones run as one packed batch, and so do the masked ones. In the masked states, position 0
is replaced by the *other* side's clean sentence vector (with mean pooling too: it is the place
where the head expects the sentence), and the head predicts the masked tokens from both. So the
gradient reaches the encoder through the sentence vector and through every masked-side token;
`token_gradients=False` cuts the second way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.chance import number
from training.encoder import Encoder, EncoderConfig, Layer
from training.errors import RecipeError
from training.objective import alignment, contrastive, koleo, says_the_same
from training.packing import Packed, sentence_vectors, through_layers, token_states
from training.ranks import gather_rows
from training.recipe import Recipe
from training.vocabulary import chunked_cross_entropy, sample_vocabulary, sampled_cross_entropy


@dataclass(frozen=True)
class PairBatch:
    """n pairs of one rank, ready for the model.

    clean: 2n sequences, the n texts, then their n translations. masked: the same with masks, or
    None. chosen: int64 `[m]`, indices into `masked.ids` of the tokens to predict, the texts'
    before the translations'; truths: int64 `[m]`, the tokens that stood there; chosen_src: how
    many belong to the texts. keys: int64 `[n, 2]`, equal where text or translation is equal.
    sample_ids: numbers of the pairs in the corpus. step: the optimiser step, from 0.
    """

    clean: Packed
    masked: Packed | None
    chosen: Tensor
    truths: Tensor
    chosen_src: int
    keys: Tensor
    sample_ids: list[int]
    step: int

    def to(self, device: torch.device) -> PairBatch:
        """The same on another device."""
        masked = None if self.masked is None else self.masked.to(device)
        chosen, truths, keys = (t.to(device) for t in (self.chosen, self.truths, self.keys))
        return PairBatch(
            self.clean.to(device), masked, chosen, truths, self.chosen_src, keys,
            self.sample_ids, self.step,
        )  # fmt: skip

    @property
    def chosen_by_side(self) -> tuple[int, int]:
        """Masked tokens of the texts and of the translations."""
        return self.chosen_src, len(self.chosen) - self.chosen_src


class UnmaskingHead(nn.Module):
    """A few transformer layers without positions of their own, and the output's bias.

    The output projection is the encoder's token table (arXiv 2409.12737, section 4.1).
    """

    def __init__(self, encoder: EncoderConfig, recipe: Recipe):
        super().__init__()
        if encoder.hidden % recipe.head_heads:
            raise RecipeError(
                f"head_heads must divide the encoder's width {encoder.hidden}, got {recipe.head_heads}"
            )
        shape = EncoderConfig(
            vocabulary=0, hidden=encoder.hidden, layers=recipe.head_layers,
            heads=recipe.head_heads, intermediate=recipe.head_width, positions=0,
            first_position=0, pad_id=0, norm_eps=encoder.norm_eps, dropout=recipe.dropout,
        )  # fmt: skip
        self.layers = nn.ModuleList(Layer(shape) for _ in range(recipe.head_layers))
        self.bias = nn.Parameter(torch.zeros(encoder.vocabulary))
        generator = torch.Generator().manual_seed(recipe.seed ^ number("head") >> 1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02, generator=generator)
                nn.init.zeros_(module.bias)


class PairModel(nn.Module):
    """What is trained: an encoder, and a head where the recipe unmasks."""

    def __init__(self, encoder: Encoder, recipe: Recipe):
        super().__init__()
        if encoder.head is not None:
            raise RecipeError("an encoder with a dense layer on top cannot be trained here")
        self.encoder = encoder
        self.head = UnmaskingHead(encoder.config, recipe) if recipe.unmasking else None
        self.recipe = recipe
        encoder.embeddings.words.weight.requires_grad_(recipe.train_embeddings)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = recipe.dropout

    def forward(
        self, batch: PairBatch, totals: tuple[float, float], batches: int, world: int = 1
    ) -> dict[str, Tensor]:
        """The losses of one batch, weighted so that their sum over a step's batches is the step's.

        totals: masked tokens of texts and of translations in the whole step, over all batches
        and ranks; a mean over them is a mean over tokens, however they fall into batches.
        batches: of the step. Returns unweighted scalars by name (those the recipe uses, with
        graph) and "loss", their weighted sum. With more than one rank, losses on sentence
        vectors are those of all ranks' pairs, and "unmasking" is `world` times this rank's part,
        which DDP's mean makes right; see `training.ranks.gather_rows`.
        """
        r = self.recipe
        states = token_states(self.encoder, batch.clean, backend=r.attention, recompute=r.recompute)
        vectors = sentence_vectors(self.encoder, states, batch.clean)  # [2n, hidden]
        source, target = (gather_rows(v) for v in vectors.chunk(2))
        same = self._same(batch.keys)
        parts: dict[str, Tensor] = {}
        if r.alignment:
            parts["alignment"] = alignment(source, target) / batches
        if r.koleo:
            spread = koleo(source, same) + koleo(target, same)
            parts["koleo"] = spread / 2 / batches
        if r.contrastive:
            alike = same if r.same_above == 1 else same | says_the_same(target, r.same_above)
            found = contrastive(source, target, temperature=r.temperature, same=alike)
            parts["contrastive"] = found / batches
        if self.head is not None:
            src, trg = self._unmasking(batch, vectors)
            parts["unmasking"] = world * (src / max(totals[0], 1) + trg / max(totals[1], 1)) / 2
        loss = torch.stack([getattr(r, name) * part for name, part in parts.items()]).sum()
        return parts | {"loss": loss}

    @staticmethod
    def _same(keys: Tensor) -> Tensor:
        """bool `[n, n]`: pairs that share a text, over all ranks."""
        every = gather_rows(keys)
        return (every[:, None] == every[None]).any(-1)

    def _unmasking(self, batch: PairBatch, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy over the masked tokens of texts and of translations."""
        r, head, masked = self.recipe, self.head, batch.masked
        if head is None or masked is None:
            raise RecipeError("the batch has no masks, but the recipe unmasks")
        with torch.set_grad_enabled(r.token_gradients and torch.is_grad_enabled()):
            states = token_states(self.encoder, masked, backend=r.attention, recompute=r.recompute)
        if r.context == "other":
            source, target = vectors.chunk(2)
            other = torch.cat([target, source]).to(states.dtype)
            states = states.index_copy(0, masked.starts, other)
        states = through_layers(
            head.layers, states, masked, backend=r.attention, recompute=r.recompute
        )
        states = states.index_select(0, batch.chosen).float()  # [m, hidden]
        device = states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        table, bias = self.encoder.embeddings.words.weight, head.bias
        cut = batch.chosen_src
        sides = ((states[:cut], batch.truths[:cut]), (states[cut:], batch.truths[cut:]))
        if r.sampled_vocabulary:
            rows = sample_vocabulary(
                batch.clean.ids, len(table), r.sampled_vocabulary, seed=r.seed, step=batch.step
            )
            src, trg = (
                sampled_cross_entropy(x, table, bias, y, rows, dtype=dtype) for x, y in sides
            )
        else:
            src, trg = (chunked_cross_entropy(x, table, bias, y, dtype=dtype) for x, y in sides)
        return src, trg
