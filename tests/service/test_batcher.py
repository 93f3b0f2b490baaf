"""The batcher's promises, each attacked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mexma.batching import PADDING_SHARE, PADDING_TOKENS, split_batches, take_batch
from mexma.errors import EngineError, NonFiniteVector, Overloaded
from service.batcher import Batcher
from tests.fakes import FakeEncoder, vector_of

POISON = 77


def run_with(
    encoder: FakeEncoder,
    scenario: Callable[[Batcher], Awaitable[None]],
    *,
    max_batch_tokens: int = 64,
    max_batch_items: int = 8,
    max_queue_tokens: int = 1000,
) -> None:
    async def main() -> None:
        batcher = Batcher(
            encoder.run,
            max_batch_tokens=max_batch_tokens,
            max_batch_items=max_batch_items,
            max_queue_tokens=max_queue_tokens,
        )
        batcher.start()
        try:
            await asyncio.wait_for(scenario(batcher), 30)
        finally:
            encoder.gate.set()
            await batcher.stop()

    asyncio.run(main())


def ids(length: int, fill: int = 5) -> np.ndarray:
    return np.full(length, fill, np.int64)


async def queue_is(batcher: Batcher, items: int) -> None:
    while batcher.queued_items != items:
        await asyncio.sleep(0)


async def engine_is_busy(batcher: Batcher) -> None:
    while batcher.running_s() == 0:
        await asyncio.sleep(0)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=60),
    st.integers(1, 100),
    st.integers(1, 12),
    st.data(),
)
def test_a_batch_holds_the_oldest_and_respects_its_budget(lengths, max_tokens, max_items, data):
    oldest = data.draw(st.integers(0, len(lengths) - 1))
    batch = take_batch(lengths, oldest, max_tokens=max_tokens, max_items=max_items)
    assert oldest in batch
    assert len(set(batch)) == len(batch) <= max_items
    longest = max(lengths[i] for i in batch)
    assert len(batch) == 1 or longest * len(batch) <= max_tokens
    padding = longest * len(batch) - sum(lengths[i] for i in batch)
    assert padding <= max(PADDING_TOKENS, PADDING_SHARE * longest * len(batch))
    # nothing of a length between those taken was passed over, unless equal to an end
    inside = {i for i, n in enumerate(lengths) if min(lengths[j] for j in batch) < n < longest}
    assert inside <= set(batch)


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), max_size=80), st.integers(1, 100), st.integers(1, 12))
def test_splitting_covers_everything_once(lengths, max_tokens, max_items):
    batches = split_batches(lengths, max_tokens=max_tokens, max_items=max_items)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= max_items
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= max_tokens


def test_every_caller_gets_its_own_vectors():
    encoder = FakeEncoder()
    rng = np.random.default_rng(0)
    requests = [
        [rng.integers(3, 250, rng.integers(1, 60)) for _ in range(rng.integers(1, 20))]
        for _ in range(50)
    ]

    async def scenario(batcher: Batcher) -> None:
        jobs = await asyncio.gather(*(batcher.submit(r) for r in requests))
        for request, job in zip(requests, jobs, strict=True):
            assert job.vectors is not None
            expected = np.stack([vector_of(s, 16) for s in request])
            np.testing.assert_array_equal(job.vectors, expected)

    run_with(encoder, scenario, max_queue_tokens=10**6)
    assert max(map(len, encoder.batches)) > 1, "nothing was batched"


def test_a_poisoned_sequence_fails_alone():
    encoder = FakeEncoder()
    encoder.poison = POISON

    async def scenario(batcher: Batcher) -> None:
        encoder.gate.clear()
        first = asyncio.create_task(batcher.submit([ids(3)]))
        await engine_is_busy(batcher)
        good = asyncio.create_task(batcher.submit([ids(4), ids(4, 9)]))
        mixed = asyncio.create_task(batcher.submit([ids(4, 11), ids(4, POISON), ids(4, 12)]))
        await queue_is(batcher, 5)
        encoder.gate.set()
        await first
        assert not (await good).errors
        job = await mixed
        assert list(job.errors) == [1]
        assert job.errors[1].item == 1
        assert "item 1" in str(job.errors[1])
        np.testing.assert_array_equal(job.vectors[2], vector_of(ids(4, 12), 16))
        assert not (await batcher.submit([ids(5)])).errors, "the worker must go on"

    run_with(encoder, scenario)


def test_a_vector_that_is_not_finite_never_leaves():
    encoder = FakeEncoder()
    encoder.not_finite = POISON

    async def scenario(batcher: Batcher) -> None:
        job = await batcher.submit([ids(4), ids(4, POISON)])
        assert isinstance(job.errors[1], NonFiniteVector)
        assert np.isfinite(job.vectors).all()

    run_with(encoder, scenario)


def test_a_wrong_number_of_vectors_is_an_error_not_a_mixup():
    encoder = FakeEncoder()
    encoder.run = lambda sequences: np.zeros((len(sequences) + 1, 16), np.float32)

    async def scenario(batcher: Batcher) -> None:
        job = await batcher.submit([ids(4), ids(4)])
        assert set(job.errors) == {0, 1}
        assert all(isinstance(e, EngineError) for e in job.errors.values())

    run_with(encoder, scenario)


def test_a_cancelled_caller_leaves_the_queue():
    encoder = FakeEncoder()

    async def scenario(batcher: Batcher) -> None:
        encoder.gate.clear()
        first = asyncio.create_task(batcher.submit([ids(3)]))
        await engine_is_busy(batcher)
        doomed = asyncio.create_task(batcher.submit([ids(7), ids(8), ids(9)]))
        stays = asyncio.create_task(batcher.submit([ids(10)]))
        await queue_is(batcher, 4)
        doomed.cancel()
        with suppress(asyncio.CancelledError):
            await doomed
        assert batcher.queued_items == 1
        assert batcher.queued_tokens == 10
        encoder.gate.set()
        await asyncio.gather(first, stays)

    run_with(encoder, scenario)
    assert encoder.batches == [[3], [10]], "work was done for a caller that had left"


def test_a_caller_cancelled_while_running_harms_nobody():
    encoder = FakeEncoder()

    async def scenario(batcher: Batcher) -> None:
        encoder.gate.clear()
        doomed = asyncio.create_task(batcher.submit([ids(3)]))
        await engine_is_busy(batcher)
        doomed.cancel()
        with suppress(asyncio.CancelledError):
            await doomed
        encoder.gate.set()
        assert not (await batcher.submit([ids(4)])).errors

    run_with(encoder, scenario)


def test_a_full_queue_refuses_and_says_when_to_come_back():
    encoder = FakeEncoder()

    async def scenario(batcher: Batcher) -> None:
        encoder.gate.clear()
        running = asyncio.create_task(batcher.submit([ids(3)]))
        await engine_is_busy(batcher)
        different = [ids(30, fill) for fill in range(5, 15)]
        huge = asyncio.create_task(batcher.submit(different))  # an empty queue takes it
        await queue_is(batcher, 10)
        with pytest.raises(Overloaded, match="holds 300 tokens and 5 more") as refusal:
            await batcher.submit([ids(5)])
        assert refusal.value.retry_after_s > 0
        encoder.gate.set()
        await asyncio.gather(running, huge)
        assert not (await batcher.submit([ids(5)])).errors

    run_with(encoder, scenario, max_queue_tokens=100)


def test_batches_are_grouped_by_length_and_the_oldest_goes_first():
    encoder = FakeEncoder()

    async def scenario(batcher: Batcher) -> None:
        encoder.gate.clear()
        first = asyncio.create_task(batcher.submit([ids(1)]))
        await engine_is_busy(batcher)
        mixed = asyncio.create_task(
            batcher.submit([ids(n, 5 + i) for i, n in enumerate((40, 4, 39, 5, 4, 38))])
        )
        await queue_is(batcher, 6)
        encoder.gate.set()
        await asyncio.gather(first, mixed)

    run_with(encoder, scenario, max_batch_tokens=120)
    assert encoder.batches == [[1], [38, 39, 40], [4, 4, 5]]


def test_whoever_waits_when_the_batcher_stops_gets_an_error():
    encoder = FakeEncoder()

    async def main() -> None:
        batcher = Batcher(
            encoder.run, max_batch_tokens=64, max_batch_items=1, max_queue_tokens=1000
        )
        batcher.start()
        encoder.gate.clear()
        jobs = [asyncio.create_task(batcher.submit([ids(n)])) for n in (3, 4)]
        await engine_is_busy(batcher)
        await queue_is(batcher, 1)
        await batcher.stop()
        encoder.gate.set()
        for job in await asyncio.wait_for(asyncio.gather(*jobs), 10):
            assert "shutting down" in str(job.errors[0])

    asyncio.run(main())


def test_an_empty_request_returns_at_once():
    async def scenario(batcher: Batcher) -> None:
        assert (await batcher.submit([])).count == 0

    run_with(FakeEncoder(), scenario)
