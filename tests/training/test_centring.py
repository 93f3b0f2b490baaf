"""The mean is gone from the vectors, in both poolings, and nothing else has changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mexma.text import TextTokenizer
from tests.tiny import MAX_TOKENS, tiny_encoder, tiny_tokenizer_json
from training.centring import centred
from training.checkpoint import Checkpoint
from training.errors import RecipeError
from training.loop import train
from training.ranks import Ranks
from training.recipe import override
from training.recipes import tiny_cpu
from training.validation import pooled_vectors

TEXTS = ["I have two cats.", "猫を二匹飼っています。", "Kissa nukkuu sohvalla.", "Where?", ""]
HERE = Ranks(0, 1, torch.device("cpu"))


def start(pooling: str) -> tuple[Checkpoint, TextTokenizer]:
    content = tiny_tokenizer_json()
    encoder = tiny_encoder(pooling=pooling)
    tokenizer = TextTokenizer(content, max_tokens=MAX_TOKENS)
    return Checkpoint(encoder, content, max_tokens=MAX_TOKENS, source={"name": "tiny"}), tokenizer


@pytest.mark.parametrize("pooling", ["mean", "first_token"])
def test_the_mean_is_gone_and_the_differences_stay(pooling):
    checkpoint, tokenizer = start(pooling)
    untouched = {k: v.clone() for k, v in checkpoint.encoder.state_dict().items()}
    before = pooled_vectors(checkpoint.encoder, tokenizer, TEXTS)[:4]
    moved = centred(checkpoint, tokenizer, TEXTS)
    after = pooled_vectors(moved.encoder, tokenizer, TEXTS)[:4]
    assert np.linalg.norm(before.mean(0)) > 0.5  # else there was nothing to take out
    np.testing.assert_allclose(after.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(after - after[0], before - before[0], atol=1e-5)
    changed = [k for k, v in moved.encoder.state_dict().items() if not torch.equal(v, untouched[k])]
    assert changed == ["layers.1.output_norm.bias"]
    assert all(torch.equal(v, untouched[k]) for k, v in checkpoint.encoder.state_dict().items())


def test_texts_without_a_token_are_refused():
    checkpoint, tokenizer = start("mean")
    with pytest.raises(RecipeError, match="centring needs a text"):
        centred(checkpoint, tokenizer, [""])


def test_a_run_starts_from_the_centred_encoder(tmp_path: Path):
    """All of the start in the average: what is left is the start as it was centred."""
    settings = ["pairs=64", "batch_pairs=8", "save_every=2", "average_with_start=1"]
    finals = {}
    for texts in ("0", "500"):
        recipe = override(tiny_cpu(), [*settings, f"centre_texts={texts}"])
        finals[texts] = load_file(
            train(recipe, tmp_path / texts, HERE, quiet=True) / "model.safetensors"
        )
    moved = [k for k, v in finals["0"].items() if not torch.equal(v, finals["500"][k])]
    assert [k.endswith("output.LayerNorm.bias") for k in moved] == [True]


def test_a_centred_run_resumes_to_the_bit(tmp_path: Path):
    recipe = override(
        tiny_cpu(), ["pairs=64", "batch_pairs=8", "save_every=2", "centre_texts=100",
                     "average_with_start=0.5"],
    )  # fmt: skip
    whole = load_file(train(recipe, tmp_path / "whole", HERE, quiet=True) / "model.safetensors")

    class Killed(Exception):
        pass

    def kill(point: str) -> None:
        if point == "step 3":
            raise Killed

    with pytest.raises(Killed):
        train(recipe, tmp_path / "cut", HERE, quiet=True, reached=kill)
    final = train(replace(recipe), tmp_path / "cut", HERE, quiet=True, resume=True)
    resumed = load_file(final / "model.safetensors")
    assert all(torch.equal(v, resumed[k]) for k, v in whole.items())
