"""Directories as others publish them, built on the spot, against a plain computation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaForMaskedLM

from mexma.errors import CheckpointError
from tests.tiny import tiny_tokenizer_json
from training import hugging_face
from training.checkpoint import load_checkpoint

VOCABULARY = len(json.loads(tiny_tokenizer_json())["model"]["vocab"])
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 64, "initializer_range": 0.3,
}  # fmt: skip
MODELS = "sentence_transformers.models"


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(5, VOCABULARY, (3, 9), generator=generator)
    mask = (torch.arange(9)[None] < torch.tensor([9, 4, 1])[:, None]).long()
    return ids, mask


def publish(folder: Path, model, **modules: dict | None) -> Path:
    """Save like sentence-transformers: the backbone in `folder`, one subfolder a module."""
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tiny_tokenizer_json())
    listed = [{"idx": 0, "name": "0", "path": "", "type": f"{MODELS}.Transformer"}]
    for i, (kind, config) in enumerate(modules.items(), 1):
        path = f"{i}_{kind}"
        listed.append({"idx": i, "name": str(i), "path": path, "type": f"{MODELS}.{kind}"})
        (folder / path).mkdir()
        if config is not None:
            (folder / path / "config.json").write_text(json.dumps(config))
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


def bert(**changes) -> BertModel:
    torch.manual_seed(0)
    shape = SHAPE | {"max_position_embeddings": 40, "pad_token_id": 0} | changes
    return BertModel(BertConfig(**shape)).eval()


CLS = {
    "word_embedding_dimension": 32,
    "pooling_mode_cls_token": True,
    "pooling_mode_mean_tokens": False,
}
MEAN = {
    "word_embedding_dimension": 32,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": True,
}
TANH = {
    "in_features": 32, "out_features": 24, "bias": True,
    "activation_function": "torch.nn.modules.activation.Tanh",
}  # fmt: skip


def refusal(folder: Path, **options) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(str(folder), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mean_and_normalise_as_in_e5(tmp_path):
    model = bert()
    folder = publish(tmp_path, model, Pooling=MEAN, Normalize=None)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20}))
    found = load_checkpoint(str(folder))
    assert found.max_tokens == 20
    ids, mask = batch()
    with torch.inference_mode():
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        rows = torch.stack([states[i, :n].sum(0) / n for i, n in enumerate((9, 4, 1))])
        expected = rows / (rows**2).sum(1, keepdim=True).sqrt()
        assert (found.encoder(ids, mask) - expected).abs().max() < 1e-5


def test_first_token_dense_tanh_as_in_labse(tmp_path):
    model = bert()
    folder = publish(tmp_path, model, Pooling=CLS, Dense=TANH, Normalize=None)
    weight, bias = torch.randn(24, 32), torch.randn(24)
    save_file({"linear.weight": weight, "linear.bias": bias}, folder / "2_Dense/model.safetensors")
    found = load_checkpoint(str(folder))
    assert found.encoder.config.dim == 24
    ids, mask = batch()
    with torch.inference_mode():
        first = model(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
        rows = torch.tanh(first @ weight.T + bias)
        expected = rows / (rows**2).sum(1, keepdim=True).sqrt()
        assert (found.encoder(ids, mask) - expected).abs().max() < 1e-5


def test_a_default_prompt_becomes_the_prefix(tmp_path):
    folder = publish(tmp_path, bert(), Pooling=MEAN)
    assert load_checkpoint(str(folder)).prefix == ""
    described = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(described))
    assert load_checkpoint(str(folder)).prefix == "query: "
    assert load_checkpoint(str(folder), prefix="").prefix == ""
    described["default_prompt_name"] = "passage"
    (folder / "config_sentence_transformers.json").write_text(json.dumps(described))
    assert "default_prompt_name is 'passage', but prompts lacks it" in refusal(folder)


def test_a_dense_layer_of_another_shape(tmp_path):
    folder = publish(tmp_path, bert(), Pooling=CLS, Dense=TANH)
    save_file({"linear.weight": torch.zeros(24, 31)}, folder / "2_Dense/model.safetensors")
    assert "expected linear.weight of shape [24, 32], found [24, 31]" in refusal(folder)


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ({"Pooling": MEAN, "LSTM": {}}, "module 'LSTM' is not one of"),
        ({"Pooling": MEAN, "Normalize": None, "Dense": TANH}, "expected Transformer, Pooling"),
        ({"Pooling": {"pooling_mode_max_tokens": True}}, "found max_tokens"),
        ({"Pooling": CLS | MEAN | {"pooling_mode_cls_token": True}}, "cls_token + mean_tokens"),
        ({"Pooling": MEAN | {"include_prompt": False}}, "leaves out the prompt"),
        ({"Pooling": {"pooling_mode": "lasttoken"}}, "found lasttoken"),
        (
            {"Pooling": CLS, "Dense": TANH | {"activation_function": "torch.nn.ReLU"}},
            "with Tanh, found 32 with ReLU",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused(tmp_path, modules, words):
    assert words in refusal(publish(tmp_path, bert(), **modules))


def test_a_modules_json_that_is_none(tmp_path):
    folder = publish(tmp_path, bert(), Pooling=MEAN)
    for content, words in [
        ("[]", "expected a list of modules"),
        ('{"a": 1}', "expected a list of modules"),
        ('[{"path": ""}]', "every module needs a type and a path"),
        ("[", "not valid JSON"),
    ]:
        (folder / "modules.json").write_text(content)
        assert words in refusal(folder)


def test_pooling_must_be_said_where_nothing_says_it(tmp_path):
    bert().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(tiny_tokenizer_json())
    assert "--pooling first_token or --pooling mean" in refusal(tmp_path)
    assert load_checkpoint(str(tmp_path), pooling="mean").encoder.config.pooling == "mean"


def test_a_known_name_needs_no_pooling(tmp_path, monkeypatch):
    bert().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(tiny_tokenizer_json())
    monkeypatch.setattr(hugging_face, "fetch", lambda name: tmp_path)
    found = load_checkpoint("facebook/MEXMA")
    assert found.encoder.config.pooling == "first_token"
    assert found.source["name"] == "facebook/MEXMA"


def test_a_masked_language_model_with_its_head(tmp_path):
    """Published with a prefix on every name and an lm_head, which is not ours to use."""
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        **SHAPE, max_position_embeddings=40, type_vocab_size=1, pad_token_id=1
    )
    model = XLMRobertaForMaskedLM(config).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(tiny_tokenizer_json())
    encoder = load_checkpoint(str(tmp_path), pooling="mean").encoder
    ids, mask = batch()
    ids = ids.where(mask.bool(), 1)
    with torch.inference_mode():
        expected = model.roberta(input_ids=ids, attention_mask=mask).last_hidden_state
        assert (expected - encoder.token_states(ids, mask)).abs()[mask.bool()].max() < 1e-5


def test_pickled_weights_hold_tensors_or_are_refused(tmp_path):
    model = bert()
    model.config.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(tiny_tokenizer_json())
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    load_checkpoint(str(tmp_path), pooling="mean")
    torch.save({"weights": Path("x")}, tmp_path / "pytorch_model.bin")
    assert "expected a file of tensors only" in refusal(tmp_path, pooling="mean")


def test_weights_in_shards(tmp_path):
    model = bert()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    (tmp_path / "tokenizer.json").write_bytes(tiny_tokenizer_json())
    found = load_checkpoint(str(tmp_path), pooling="mean")
    assert len(found.source["weights"]) > 1
    next(tmp_path.glob("model-*.safetensors")).unlink()
    assert "listed in model.safetensors.index.json but missing" in refusal(tmp_path, pooling="mean")
