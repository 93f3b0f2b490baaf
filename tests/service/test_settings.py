"""Defaults that depend on another setting."""

from __future__ import annotations

import pytest

from service.__main__ import _settings
from service.settings import Settings


def test_a_gpu_gets_larger_batches_and_a_longer_queue_unless_told_otherwise(monkeypatch):
    assert Settings().max_batch_tokens == 1024
    monkeypatch.setenv("MEXMA_DEVICE", "cuda")
    assert (Settings().max_batch_tokens, Settings().max_batch_items) == (16_384, 512)
    assert Settings().max_queue_tokens == 16 * Settings(device="cpu").max_queue_tokens
    monkeypatch.setenv("MEXMA_MAX_BATCH_TOKENS", "2048")
    assert (Settings().max_batch_tokens, Settings().max_batch_items) == (2048, 512)
    assert Settings(device="cpu", max_batch_items=7).max_batch_items == 7


@pytest.mark.parametrize("endpoint", ["localhost:4318", "grpc://collector:4317", "http://", "://x"])
def test_a_collector_has_an_address_with_a_scheme(monkeypatch, endpoint):
    monkeypatch.setenv("MEXMA_OTLP_ENDPOINT", endpoint)
    with pytest.raises(SystemExit) as refused:
        _settings()
    message = str(refused.value)
    assert message.startswith("mexma-serve: setting MEXMA_OTLP_ENDPOINT: ")
    assert "'http://collector:4318'" in message
    assert message.endswith(f"found {endpoint!r}")
    for right in ("http://collector:4318", "https://c", ""):
        monkeypatch.setenv("MEXMA_OTLP_ENDPOINT", right)
        assert _settings().otlp_endpoint == right
