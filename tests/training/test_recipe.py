"""Recipes are complete, and a wrong setting is named."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from training.errors import RecipeError
from training.recipe import Recipe, override
from training.recipes import RECIPES, find_recipe, tiny_cpu


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_is_what_its_name_says_and_survives_json(name):
    recipe = find_recipe(name)
    assert recipe.name == name
    assert RECIPES[name].__doc__
    raw = json.loads(json.dumps(recipe.to_dict()))
    assert Recipe(**{k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}) == recipe


def test_the_controls_differ_from_mexma_in_what_they_are_about():
    base = find_recipe("mexma_small").to_dict()

    def differs(name: str) -> set[str]:
        return {k for k, v in find_recipe(name).to_dict().items() if v != base[k]} - {"name"}

    assert differs("sentence_gradient_only") == {"token_gradients"}
    assert differs("no_koleo") == {"koleo"}
    assert differs("contrastive") == {"contrastive", "unmasking", "alignment", "koleo"}
    assert differs("contrastive_unmasking") == {"contrastive", "alignment", "koleo"}
    cut = differs("contrastive_unmasking_no_token_gradient")
    assert cut == {"contrastive", "alignment", "koleo", "token_gradients"}
    assert differs("monolingual_mlm") == {"context"}


def test_settings_are_read_by_their_type():
    recipe = override(
        tiny_cpu(),
        [
            "clip=2",
            "data=a,b",
            "betas=0.8,0.9",
            "token_gradients=false",
            "precision=bf16",
            "seed=5",
        ],
    )
    assert recipe.clip == 2.0
    assert recipe.data == ("a", "b")
    assert recipe.betas == (0.8, 0.9)
    assert not recipe.token_gradients
    assert (recipe.precision, recipe.seed) == ("bf16", 5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("clip=x", "clip must be a number, got 'x'"),
        ("clip=nan", "clip must be a finite number, got 'nan'"),
        ("seed=1.5", "seed must be a whole number, got '1.5'"),
        ("recompute=yes", "recompute must be true or false, got 'yes'"),
        ("precision=int8", "precision must be one of fp32, bf16, fp16, got 'int8'"),
        ("betas=0.9", "betas must be 2 values separated by commas, got '0.9'"),
        ("columns=a,b", "columns must be 3 values separated by commas, got 'a,b'"),
        ("lr=1", "'lr=1': expected key=value with a key of backbone"),
        ("clip", "'clip': expected key=value"),
        ("clip=-1", "clip must be positive, got -1.0"),
        ("batch_pairs=0", "batch_pairs must be at least 1, got 0"),
        ("mask_rate=1.5", "mask_rate must be between 0 and 1, got 1.5"),
        ("warm_up_from=9", "warm_up_from must be between 0 and 1, got 9.0"),
        ("weight_decay=-3", "weight_decay must not be negative, got -3.0"),
        ("betas=2,3", "betas must be at least 0 and below 1, got (2.0, 3.0)"),
        ("koleo=-1", "koleo must not be negative, got -1.0"),
        ("pairs=-5", "pairs must not be negative, got -5"),
        ("epochs=-1", "epochs must not be negative, got -1.0"),
        ("head_heads=0", "head_heads must be at least 1, got 0"),
        ("sampled_vocabulary=-1", "sampled_vocabulary must not be negative, got -1"),
        ("validation_pairs=0", "validation_pairs must be at least 1, got 0"),
        ("mask_rate=0", "mask_rate is 0, and unmasking needs masks"),
        ("alike=2000", "alike must be at most batch_pairs (16)"),
        (
            "learning_rte=1",
            "'learning_rte=1': did you mean learning_rate or head_learning_rate? exp",
        ),
    ],
)
def test_a_wrong_setting_is_named(setting, message):
    with pytest.raises(RecipeError) as caught:
        override(tiny_cpu(), [setting])
    assert str(caught.value).startswith(message)


def test_no_masks_are_needed_where_nothing_is_unmasked():
    assert override(tiny_cpu(), ["mask_rate=0", "unmasking=0"]).mask_rate == 0


def test_settings_that_make_no_run():
    for settings in (["unmasking=0", "alignment=0"], ["pairs=0", "epochs=0"], ["clip=1", "clip=2"]):
        with pytest.raises(RecipeError, match=r"nothing to|set twice"):
            override(tiny_cpu(), settings)
    with pytest.raises(RecipeError, match="recipe must be one of paper_large"):
        find_recipe("paper")


def test_every_field_is_explained():
    """In `training/recipe.py` a setting has words beside it, or a name that needs none."""
    import inspect

    source = inspect.getsource(Recipe)
    plain = {"name", "mask_rate", "head_layers", "head_heads", "weight_decay", "betas", "seed"}
    plain |= {"keep_last", "alignment", "koleo", "epochs", "warm_up", "learning_rate"}
    for f in fields(Recipe):
        after = source.split(f"    {f.name}: ")[1].split("\n")[1]
        assert f.name in plain or after.strip().startswith('"""'), f.name
