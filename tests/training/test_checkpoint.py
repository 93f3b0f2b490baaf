"""Our checkpoint: what was saved is what is loaded, and anything else is refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import XLMRobertaModel

from mexma.checkpoint import describe_checkpoint
from mexma.errors import CheckpointError
from tests.tiny import tiny_checkpoint, tiny_encoder
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny_checkpoint(tmp_path / "step-0")
    return tmp_path / "step-0"


def refusal(path: Path, **options) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(str(path), **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def redescribe(path: Path) -> None:
    """Make hashes agree again, so that what is wrong inside is what is found."""
    describe_checkpoint(path, pooling="mean", max_tokens=64, prefix="", step=0, source={})


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_round_trip(saved):
    made, found = tiny_encoder(), load_checkpoint(str(saved))
    for (name, a), (_, b) in zip(
        made.named_parameters(), found.encoder.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    assert found.encoder.config == made.config
    assert (found.max_tokens, found.prefix) == (64, "")
    assert len(found.source["weights"]["model.safetensors"]) == 64


def test_transformers_opens_it(saved):
    theirs = XLMRobertaModel.from_pretrained(saved, add_pooling_layer=False).eval()
    ids = torch.arange(5, 15)[None]
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        expected = theirs(ids, mask).last_hidden_state
        states = load_checkpoint(str(saved)).encoder.token_states(ids, mask)
    assert (expected - states).abs().max() < 1e-5


def test_options_replace_what_is_stored(saved):
    found = load_checkpoint(str(saved), prefix="query: ", max_tokens=32)
    assert (found.prefix, found.max_tokens) == ("query: ", 32)
    assert "3 to 64" in refusal(saved, max_tokens=65)
    assert "pools by mean, but first_token" in refusal(saved, pooling="first_token")
    assert "pooling must be one of" in refusal(saved, pooling="max")


def test_a_flipped_byte(saved):
    file = saved / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "SHA-256" in refusal(saved)


def test_a_newer_schema(saved):
    edit(saved / "mexma.json", schema_version=99)
    assert "schema version 99 is newer" in refusal(saved)


def test_a_missing_tensor(saved):
    tensors = load_file(saved / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, saved / "model.safetensors")
    redescribe(saved)
    assert "lack the tensor encoder.layer.1.output.dense.weight" in refusal(saved)


def test_a_tensor_of_another_shape(saved):
    edit(saved / "config.json", intermediate_size=130)
    redescribe(saved)
    assert "has shape [128, 64], but config.json asks for [130, 64]" in refusal(saved)


def test_a_tensor_without_a_place(saved):
    tensors = load_file(saved / "model.safetensors")
    tensors["pooler.dense.weight"] = torch.zeros(64, 64)  # known, ignored
    save_file(tensors, saved / "model.safetensors")
    redescribe(saved)
    load_checkpoint(str(saved))
    tensors["encoder.layer.2.output.dense.bias"] = torch.zeros(64)
    save_file(tensors, saved / "model.safetensors")
    redescribe(saved)
    message = refusal(saved)
    assert "1 tensors have no place" in message
    assert "encoder.layer.2.output.dense.bias" in message


def test_truncated_weights(saved):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    redescribe(saved)
    assert "not a readable safetensors file" in refusal(saved)


def test_an_unknown_architecture(saved):
    for change, words in [
        ({"model_type": "t5"}, "model_type must be one of xlm-roberta, roberta, bert, found 't5'"),
        ({"hidden_act": "relu"}, "hidden_act must be 'gelu', found 'relu'"),
        ({"position_embedding_type": "rotary"}, "position_embedding_type must be 'absolute'"),
        ({"num_attention_heads": 7}, "not a multiple of the 7 attention heads"),
    ]:
        original = (saved / "config.json").read_text()
        edit(saved / "config.json", **change)
        redescribe(saved)
        assert words in refusal(saved)
        (saved / "config.json").write_text(original)


def test_a_tokenizer_that_is_none_or_does_not_fit(saved):
    original = (saved / "tokenizer.json").read_bytes()
    (saved / "tokenizer.json").write_bytes(original[: len(original) // 2])
    redescribe(saved)
    assert "not a tokenizer.json" in refusal(saved)
    larger = json.loads(original)
    larger["model"]["vocab"] += [[f"piece{i}", -20.0] for i in range(10)]
    (saved / "tokenizer.json").write_text(json.dumps(larger))
    redescribe(saved)
    assert "but the embedding table only" in refusal(saved)


def test_nothing_there(tmp_path):
    assert "neither" in refusal(tmp_path / "nowhere")
    assert "config.json: expected this file, found none" in refusal(tmp_path)


def test_a_dense_head_has_no_place_in_the_layout(tmp_path):
    encoder = tiny_encoder()
    encoder.head = torch.nn.Linear(64, 8)
    with pytest.raises(CheckpointError, match="dense head"):
        save_checkpoint(tmp_path / "x", Checkpoint(encoder, b"", 64))
    assert not (tmp_path / "x").exists()
