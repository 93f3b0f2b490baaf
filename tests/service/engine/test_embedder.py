"""Large requests on a GPU's machine: tokenised by several threads, and nobody sees that they were."""

from __future__ import annotations

import asyncio
import os

import numpy as np
import pytest

from mexma.errors import EmptyText, TextTooLong
from service.engine.embedder import ITEMS_APART, Embedded, Embedder
from service.metrics import Metrics
from service.settings import Settings
from tests.fakes import FakeEncoder

TEXTS = [f"text {i}" for i in range(5 * ITEMS_APART + 7)]


def embed(texts: list[str], encoder: FakeEncoder | None = None, **how) -> Embedded:
    async def main() -> Embedded:
        settings = Settings(device=how.pop("device", "cuda"))
        embedder = Embedder(encoder or FakeEncoder(), settings, Metrics())
        embedder.batcher.start()
        try:
            return await embedder.embed(texts, **how)
        finally:
            await embedder.stop()

    return asyncio.run(main())


def counted() -> tuple[FakeEncoder, list[int]]:
    """An encoder, and how many texts each of its tokenizer's calls had."""
    encoder, calls = FakeEncoder(), list[int]()
    real = encoder.tokenizer.encode

    def encode(texts, **how):
        calls.append(len(texts))
        return real(texts, **how)

    encoder.tokenizer.encode = encode
    return encoder, calls


def test_a_large_request_is_divided_among_threads_beside_a_gpu_alone():
    encoder, calls = counted()
    found = embed(TEXTS, encoder)
    assert len(calls) > 1 and sum(calls) == len(TEXTS) and max(calls) - min(calls) <= 1
    encoder, calls = counted()
    same = embed(TEXTS, encoder, device="cpu")
    assert calls == [len(TEXTS)]
    np.testing.assert_array_equal(found.vectors, same.vectors)
    assert [list(t.ids) for t in found.tokens] == [list(t.ids) for t in same.tokens]


def test_the_first_bad_item_is_named_by_its_place_in_the_request():
    texts = [*TEXTS]
    texts[-3] = texts[-30] = ""
    for device in ("cpu", "cuda"):
        with pytest.raises(EmptyText, match=rf"^item {len(texts) - 30} is an empty") as refused:
            embed(texts, device=device)
        assert refused.value.item == len(texts) - 30
    texts[2] = "long " * 100
    with pytest.raises(TextTooLong, match=r"^item 2 has \d+ tokens; the limit is 64"):
        embed(texts, truncate=False)


def test_each_bad_item_is_named_by_its_place_where_the_others_go_on():
    texts = [*TEXTS]
    bad = {0, 3, len(texts) - 30, len(texts) - 1}
    for i in bad:
        texts[i] = ""
    found = embed(texts, partial=True)
    assert set(found.errors) == bad
    for i, error in found.errors.items():
        assert isinstance(error, EmptyText) and error.item == i
        assert str(error).startswith(f"item {i} is an empty")
    assert {i for i, t in enumerate(found.tokens) if t is None} == bad


@pytest.mark.parametrize(
    ("device", "cores", "workers", "threads"),
    [
        ("cpu", 16, 0, 2),
        ("cuda", 16, 0, 8),
        ("cuda", 16, 8, 2),
        ("cuda", 64, 4, 8),
        ("cuda", 2, 0, 2),
    ],
)
def test_threads_that_tokenise(monkeypatch, device: str, cores: int, workers: int, threads: int):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    settings = Settings(device=device, http_workers=workers)
    assert Embedder(FakeEncoder(), settings, Metrics()).tokenizer_threads == threads
