"""Blocks give back exactly what came from blocks, and come near to everything else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mexma.errors import ArtifactError
from model_export.blocks import BLOCK, Blocks, in_blocks


@given(seed=st.integers(0, 2**32 - 1), low=st.sampled_from([-8, -7, -3]), high=st.integers(1, 7))
def test_what_came_from_four_bits_is_exact(seed, low, high):
    rng = np.random.default_rng(seed)
    codes = rng.integers(low, high + 1, (4, 2 * BLOCK)).astype(np.int8)
    codes[:, ::BLOCK] = low  # the full range is used, as a quantiser would
    scales = rng.normal(size=(4, 2)).astype(np.float16)
    matrix = Blocks(codes, scales, 4, True).widen()
    found = in_blocks(matrix, 4)
    assert found.exact
    assert np.array_equal(found.widen(), matrix)


@given(seed=st.integers(0, 2**32 - 1), size=st.floats(1e-3, 10))
def test_other_matrices_are_rounded(seed, size):
    matrix = (np.random.default_rng(seed).normal(size=(3, BLOCK)) * size).astype(np.float32)
    largest = np.abs(matrix).max(1, keepdims=True)
    for bits, steps in ((4, 7), (8, 127)):
        found = in_blocks(matrix, bits)
        assert not found.exact
        assert (np.abs(found.widen() - matrix) <= largest / steps * 1.01).all()


@pytest.mark.parametrize("moved", [0.02, 0.1, 0.3])
def test_what_was_trained_a_little_from_blocks_does_not_go_back_to_them(moved):
    """moved: by so many steps (root mean square), of which most are less than the half that rounds away."""
    rng = np.random.default_rng(0)
    stored = in_blocks(rng.normal(size=(512, 384)).astype(np.float32), 8)
    again = in_blocks(stored.widen(), 8)
    assert again.exact
    assert np.array_equal(again.widen(), stored.widen())
    # As training moves them: each block as a whole, somewhere.
    towards = np.repeat(rng.normal(size=(512, 12)), BLOCK, axis=1) + rng.normal(size=(512, 384))
    update = towards * np.repeat(stored.scales.astype(np.float32), BLOCK, axis=1)
    update = (moved * update / towards.std()).astype(np.float32)
    trained = stored.widen() + update
    trained[0, :BLOCK] = 1e-9  # too small for a scale: says nothing of the others
    coded = in_blocks(trained, 8)
    found = coded.widen() - stored.widen()
    kept = float((found * update)[1:].sum() / (update * update)[1:].sum())
    assert 0.8 < kept < 1.2
    again = in_blocks(coded.widen(), 8)
    assert again.exact, "what was stored on the other grid is found again, too"
    assert np.array_equal(again.widen(), coded.widen())


def test_zeros_are_exact():
    for bits in (4, 8):
        assert in_blocks(np.zeros((2, BLOCK), np.float32), bits).exact


def test_packing_puts_the_first_code_in_the_low_nibble():
    codes = np.tile(np.array([[-8, 7]], np.int8), (1, BLOCK // 2))
    packed = Blocks(codes, np.ones((1, 1), np.float16), 4, True).unsigned()
    assert packed.shape == (1, BLOCK // 2)
    assert (packed == 0xF0).all()
    eight = Blocks(codes, np.ones((1, 1), np.float16), 8, True).unsigned()
    assert eight[0, :2].tolist() == [120, 135]


def test_progress_is_told_and_memory_bounded():
    done: list[int] = []
    in_blocks(np.zeros((20_000, BLOCK), np.float32), 8, done.append)
    assert sum(done) == 20_000
    assert len(done) > 1


def test_columns_that_do_not_divide():
    with pytest.raises(ArtifactError, match="3 x 33 cannot be stored in blocks of 32"):
        in_blocks(np.zeros((3, 33), np.float32), 4)
