"""Our encoder and transformers' own: two ways to the same token states."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

from tests.tiny import tiny_encoder
from training.checkpoint import Checkpoint, load_checkpoint
from training.encoder import sdpa

SHAPE = {
    "vocab_size": 90, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 80, "initializer_range": 0.3,
}  # fmt: skip


def padded_batch(pad_id: int, vocabulary: int = 90) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 `[4, 17]` ids and mask, of lengths 17, 1, 5 and 12."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, vocabulary, (4, 17), generator=generator)
    mask = (torch.arange(17)[None] < torch.tensor([17, 1, 5, 12])[:, None]).long()
    return ids.where(mask.bool(), pad_id), mask


def published(model, folder, tokenizer_json: bytes) -> Checkpoint:
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer_json)
    return load_checkpoint(str(folder), pooling="mean")


@pytest.fixture
def small_tokenizer() -> bytes:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer.to_str().encode()


def test_equals_xlm_roberta(tmp_path, small_tokenizer):
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        **SHAPE, max_position_embeddings=40, type_vocab_size=1, pad_token_id=1
    )
    theirs = XLMRobertaModel(config).eval()
    found = published(theirs, tmp_path, small_tokenizer)
    assert found.max_tokens == 38
    ids, mask = padded_batch(pad_id=1)
    with torch.inference_mode():
        expected = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
        states = found.encoder.token_states(ids, mask)
    assert (expected - states).abs()[mask.bool()].max() < 1e-5


def test_equals_bert(tmp_path, small_tokenizer):
    torch.manual_seed(1)
    config = BertConfig(**SHAPE, max_position_embeddings=33, type_vocab_size=2, pad_token_id=0)
    theirs = BertModel(config).eval()
    found = published(theirs, tmp_path, small_tokenizer)
    assert found.max_tokens == 33
    ids, mask = padded_batch(pad_id=0)
    with torch.inference_mode():
        expected = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
        states = found.encoder.token_states(ids, mask)
    assert (expected - states).abs()[mask.bool()].max() < 1e-5


@pytest.mark.parametrize("pooling", ["mean", "first_token"])
def test_padding_and_neighbours_change_nothing(pooling):
    encoder = tiny_encoder(pooling=pooling)
    ids, mask = padded_batch(pad_id=1)
    with torch.inference_mode():
        together = encoder(ids, mask)
        for row, length in enumerate(mask.sum(1)):
            alone = encoder(ids[row : row + 1, :length], mask[row : row + 1, :length])
            assert torch.allclose(alone[0], together[row], atol=1e-6)
    assert together.dtype == torch.float32
    assert torch.allclose(together.norm(dim=1), torch.ones(4), atol=1e-6)


def test_pooling_is_what_its_name_says():
    ids, mask = padded_batch(pad_id=1)
    with torch.inference_mode():
        for pooling in ("mean", "first_token"):
            encoder = tiny_encoder(pooling=pooling)
            states = encoder.token_states(ids, mask)
            rows = [
                states[i, :n].mean(0) if pooling == "mean" else states[i, 0]
                for i, n in enumerate(mask.sum(1))
            ]
            expected = torch.stack([row / row.norm() for row in rows])
            assert torch.allclose(encoder(ids, mask), expected, atol=1e-6)


def test_sdpa_equals_attention_written_out():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 6, 8, generator=generator) for _ in range(3))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    out = sdpa(q, k, v, mask, 2)
    for row, length in enumerate(mask.sum(1)):
        for head in (slice(0, 4), slice(4, 8)):
            scores = q[row, :, head] @ k[row, :length, head].T / 2  # sqrt of 4 per head
            expected = scores.softmax(1) @ v[row, :length, head]
            assert torch.allclose(out[row, :, head], expected, atol=1e-6)


def test_every_weight_learns():
    encoder = tiny_encoder().train()
    ids, mask = padded_batch(pad_id=1)
    encoder(ids, mask)[:, 0].sum().backward()
    silent = {n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()}
    # a bias of the keys shifts all scores of a query alike, so only rounding moves it
    assert silent <= {"layers.0.key.bias", "layers.1.key.bias"}
