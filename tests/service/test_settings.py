"""Defaults that depend on another setting."""

from __future__ import annotations

from service.settings import Settings


def test_a_gpu_gets_larger_batches_unless_told_otherwise(monkeypatch):
    assert Settings().max_batch_tokens == 1024
    monkeypatch.setenv("MEXMA_DEVICE", "cuda")
    assert (Settings().max_batch_tokens, Settings().max_batch_items) == (16_384, 512)
    monkeypatch.setenv("MEXMA_MAX_BATCH_TOKENS", "2048")
    assert (Settings().max_batch_tokens, Settings().max_batch_items) == (2048, 512)
    assert Settings(device="cpu", max_batch_items=7).max_batch_items == 7
