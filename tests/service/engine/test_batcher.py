"""The batcher's promises, each attacked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mexma.batching import PADDING_SHARE, PADDING_TOKENS, split_batches, take_batch
from mexma.errors import DeadlineExceeded, EngineError, NonFiniteVector, Overloaded
from service.engine.batcher import Batcher, Job
from service.engine.cache import VectorCache
from tests.fakes import FakeEncoder, vector_of

POISON = 77


def run_with(
    encoder: FakeEncoder,
    scenario: Callable[[Batcher], Awaitable[None]],
    *,
    max_batch_tokens: int = 64,
    max_batch_items: int = 8,
    max_queue_tokens: int = 1000,
    **more: Any,
) -> None:
    async def main() -> None:
        batcher = Batcher(
            encoder.run,
            max_batch_tokens=max_batch_tokens,
            max_batch_items=max_batch_items,
            max_queue_tokens=max_queue_tokens,
            **more,
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


def test_a_batch_without_memory_fails_alone():
    encoder = FakeEncoder()
    run, failing = encoder.run, [MemoryError()]

    def without_memory(sequences):
        if failing:
            raise failing.pop()
        return run(sequences)

    encoder.run = without_memory

    async def scenario(batcher: Batcher) -> None:
        assert isinstance((await batcher.submit([ids(3)])).errors[0], EngineError)
        assert not (await batcher.submit([ids(3)])).errors

    run_with(encoder, scenario)


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


def test_before_a_pace_is_known_waits_are_told_by_what_was_measured():
    encoder = FakeEncoder()

    async def scenario(batcher: Batcher) -> None:
        batcher.expect(600.0)
        encoder.gate.clear()
        running = asyncio.create_task(batcher.submit([ids(3)]))
        await engine_is_busy(batcher)
        huge = [ids(30, fill) for fill in range(5, 15)]
        first = asyncio.create_task(batcher.submit(huge, client="large"))
        await queue_is(batcher, 10)
        with pytest.raises(Overloaded) as refusal:
            await batcher.submit([ids(95)], client="other")
        assert refusal.value.retry_after_s == pytest.approx(300 / 600)
        encoder.gate.set()
        await asyncio.gather(running, first)

    run_with(encoder, scenario, max_queue_tokens=100)


def test_bulk_work_fills_no_room_of_interactive_requests():
    encoder = FakeEncoder()

    async def scenario(batcher: Batcher) -> None:
        encoder.gate.clear()
        running = asyncio.create_task(batcher.submit([ids(3)]))
        await engine_is_busy(batcher)
        huge = [ids(30, fill) for fill in range(5, 15)]  # an empty queue takes it, however large
        bulk = asyncio.create_task(batcher.submit(huge, lane="bulk", client="large"))
        await queue_is(batcher, 10)
        with pytest.raises(Overloaded, match="holds 300 tokens and 5 more"):
            await batcher.submit([ids(5)], lane="bulk", client="other")
        small = [
            asyncio.create_task(batcher.submit([ids(5, 20 + n)], client=client))
            for n, client in enumerate(("large", "other"))
        ]
        await queue_is(batcher, 12)
        with pytest.raises(Overloaded, match="holds 10 tokens and 95 more"):
            await batcher.submit([ids(95, 30)], client="large")
        encoder.gate.set()
        await asyncio.gather(running, bulk, *small)

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


@pytest.mark.parametrize(("pads", "computed"), [(True, 15), (False, 12)])
def test_padding_is_counted_where_the_engine_computes_it(pads, computed):
    class Observer:
        def batch_done(self, *, items: int, tokens: int, padded_tokens: int, seconds: float):
            self.seen = (items, tokens, padded_tokens)

    encoder, observer = FakeEncoder(), Observer()

    async def main() -> None:
        batcher = Batcher(
            encoder.run,
            max_batch_tokens=64,
            max_batch_items=8,
            max_queue_tokens=1000,
            pads=pads,
            observer=observer,
        )
        batcher.start()
        await batcher.submit([ids(3), ids(4), ids(5)])
        await batcher.stop()

    asyncio.run(main())
    assert observer.seen == (3, 12, computed)


def test_an_empty_request_returns_at_once():
    async def scenario(batcher: Batcher) -> None:
        assert (await batcher.submit([])).count == 0

    run_with(FakeEncoder(), scenario)


def test_equal_sequences_of_different_callers_are_computed_once():
    encoder = FakeEncoder()

    async def scenario(batcher: Batcher) -> None:
        encoder.gate.clear()
        first = asyncio.create_task(batcher.submit([ids(3)]))
        await engine_is_busy(batcher)
        callers = [asyncio.create_task(batcher.submit([ids(9), ids(9), ids(4)])) for _ in range(5)]
        callers.append(asyncio.create_task(batcher.submit([ids(3)])))  # joins what is running
        await queue_is(batcher, 2)
        callers[0].cancel()  # the others still want it
        encoder.gate.set()
        jobs = await asyncio.gather(*callers[1:])
        for job in jobs[:-1]:
            expected = [vector_of(ids(9), 16), vector_of(ids(9), 16), vector_of(ids(4), 16)]
            np.testing.assert_array_equal(job.vectors, expected)
        np.testing.assert_array_equal(jobs[-1].vectors, (await first).vectors)

    run_with(encoder, scenario)
    assert sorted(n for batch in encoder.batches for n in batch) == [3, 4, 9]


def test_who_joins_a_batch_that_fails_is_told_so_too():
    encoder = FakeEncoder()
    encoder.poison = POISON

    async def scenario(batcher: Batcher) -> None:
        encoder.gate.clear()
        jobs = [asyncio.create_task(batcher.submit([ids(5, POISON)]))]
        await engine_is_busy(batcher)
        jobs.append(asyncio.create_task(batcher.submit([ids(4), ids(5, POISON)])))
        await queue_is(batcher, 1)
        encoder.gate.set()
        first, second = await asyncio.gather(*jobs)
        assert (list(first.errors), list(second.errors)) == ([0], [1])
        assert "item 1" in str(second.errors[1])

    run_with(encoder, scenario)


def test_what_is_past_its_deadline_is_not_run():
    encoder = FakeEncoder()
    now = 0.0

    async def main() -> None:
        nonlocal now
        batcher = Batcher(
            encoder.run,
            max_batch_tokens=64,
            max_batch_items=8,
            max_queue_tokens=1000,
            clock=lambda: now,
        )
        batcher.start()
        encoder.gate.clear()
        now = 1.0
        running = asyncio.create_task(batcher.submit([ids(3)], deadline=2.0))
        while not encoder.batches:
            await asyncio.sleep(0)
        late = asyncio.create_task(batcher.submit([ids(7), ids(8)], deadline=2.0))
        shared = asyncio.create_task(batcher.submit([ids(8), ids(9)], deadline=9.0))
        await queue_is(batcher, 3)
        now = 5.0
        encoder.gate.set()
        assert not (await running).errors, "what runs is not thrown away"
        with pytest.raises(DeadlineExceeded):
            await late
        assert not (await shared).errors
        await batcher.stop()

    asyncio.run(main())
    assert encoder.batches == [[3], [8, 9]]


class Returns:
    """An observer."""

    def __init__(self) -> None:
        self.accepted: list[bool] = []

    def batch_done(self, **_: Any) -> None: ...

    def batch_failed(self, **_: Any) -> None: ...

    def spared(self, **_: Any) -> None: ...

    def returned(self, *, accepted: bool) -> None:
        self.accepted.append(accepted)


class Busy:
    """A batcher whose engine stands still, at a pace of 100 tokens a second, with a clock of the
    test's."""

    def __init__(self, encoder: FakeEncoder, batcher: Batcher):
        encoder.gate.clear()
        self.batcher = batcher
        batcher.pace.observe(100, 1.0)
        self.now = 1000.0
        batcher._clock = lambda: self.now
        self.jobs: list[Job] = []

    async def enqueue(self, *lengths: int, **how: Any) -> Job:
        """Each another sequence."""
        made = [ids(n, 100 * len(self.jobs) + i) for i, n in enumerate(lengths, 5)]
        self.jobs.append(self.batcher.enqueue(made, **how))
        if len(self.jobs) == 1:
            await queue_is(self.batcher, 0)
        return self.jobs[-1]

    async def refused_s(self, *lengths: int, **how: Any) -> float:
        """After how many seconds it shall come back."""
        with pytest.raises(Overloaded) as refusal:
            await self.enqueue(*lengths, **how)
        return refusal.value.retry_after_s


def test_interactive_work_that_would_wait_too_long_is_refused_and_bulk_work_waits():
    encoder = FakeEncoder()

    async def scenario(batcher: Batcher) -> None:
        busy = Busy(encoder, batcher)
        await busy.enqueue(3)
        await busy.enqueue(30, 30, 30, 30, 30, client="heavy")
        await busy.enqueue(40, client="heavy")  # 1.5 s before it
        assert await busy.refused_s(40, client="heavy") == pytest.approx(1.9)
        await busy.enqueue(40, client="heavy", lane="bulk")
        await busy.enqueue(20, client="light")  # its turn comes before

    run_with(encoder, scenario, max_wait_s=1.8)


def test_jobs_that_have_been_let_in_and_are_not_in_the_queue_yet_count():
    """Or a loop that is behind lets in far more than the engine can do in time."""
    encoder = FakeEncoder()

    async def scenario(batcher: Batcher) -> None:
        busy = Busy(encoder, batcher)
        assert batcher.refusal(10, lane="interactive", client="one", coming=5) is None
        for waiting in (False, True):
            if waiting:
                await busy.enqueue(3)
                await busy.enqueue(30, client="other")
            refused = batcher.refusal(10, lane="interactive", client="one", coming=1000)
            assert refused is not None and refused.retry_after_s is not None
            assert refused.retry_after_s == 60.0  # the longest that anybody is told

    run_with(encoder, scenario, max_wait_s=2.0, max_queue_tokens=10**6)


def test_work_that_would_not_begin_before_its_deadline_is_refused_at_once():
    encoder = FakeEncoder()

    async def scenario(batcher: Batcher) -> None:
        busy = Busy(encoder, batcher)
        await busy.enqueue(3)
        await busy.enqueue(30, 30, 30)
        await busy.enqueue(30, deadline=busy.now + 1.0)
        await busy.refused_s(30, deadline=busy.now + 1.0)
        await busy.refused_s(30, deadline=busy.now + 1.0, lane="bulk")
        await busy.enqueue(30, deadline=busy.now + 1.3)

    run_with(encoder, scenario)


def test_a_guess_of_the_pace_refuses_nobody():
    encoder = FakeEncoder()

    async def scenario(batcher: Batcher) -> None:
        encoder.gate.clear()
        running = asyncio.create_task(batcher.submit([ids(3)]))
        await engine_is_busy(batcher)
        waiting = [asyncio.create_task(batcher.submit([ids(30, f)])) for f in range(5, 15)]
        await queue_is(batcher, 10)
        encoder.gate.set()
        await asyncio.gather(running, *waiting)

    run_with(encoder, scenario, max_wait_s=1e-6)


def test_what_ran_alone_says_nothing_of_the_pace():
    encoder, now = FakeEncoder(), 0.0

    def slow(sequences):
        nonlocal now
        now += 1.0
        return FakeEncoder.run(encoder, sequences)

    async def scenario(batcher: Batcher) -> None:
        batcher._streams.run = slow
        batcher._clock = lambda: now
        for fill in range(5, 15):
            await batcher.submit([ids(2, fill)])  # two tokens a second, alone
        assert batcher.pace.tokens_per_s is None
        await batcher.submit([ids(8, fill) for fill in range(20, 40)])
        assert batcher.pace.tokens_per_s == pytest.approx(64.0)  # eight at once, with others behind

    run_with(encoder, scenario)


@pytest.mark.parametrize("limits", [{"max_queue_tokens": 100}, {"max_wait_s": 0.9}])
def test_whoever_comes_back_when_told_is_taken_though_newcomers_fill_the_queue(limits):
    encoder, returns = FakeEncoder(), Returns()

    async def scenario(batcher: Batcher) -> None:
        busy = Busy(encoder, batcher)
        await busy.enqueue(3, client="a")
        await busy.enqueue(25, 25, 25, 25, client="a")
        told = await busy.refused_s(7, client="a", claim=1)
        assert told == pytest.approx(1.0)
        busy.now += told / 2
        assert await busy.refused_s(7, client="a", claim=1) == pytest.approx(told / 2), "too early"
        busy.now += told / 2
        await busy.refused_s(7, client="a", claim=2)  # a newcomer
        await busy.refused_s(7, client="a")  # one that cannot be recognised
        assert not returns.accepted
        await busy.enqueue(7, client="a", claim=1)
        assert returns.accepted == [True]
        await busy.refused_s(7, client="a", claim=1)  # once
        encoder.gate.set()
        await asyncio.gather(*(job.future for job in busy.jobs))

    run_with(encoder, scenario, observer=returns, **limits)
    assert 7 in encoder.batches[1], "it is run before what came later and waits"


def test_a_time_that_is_longer_than_the_wait_is_explained():
    encoder = FakeEncoder()

    async def scenario(batcher: Batcher) -> None:
        busy = Busy(encoder, batcher)
        await busy.enqueue(3)
        await busy.enqueue(*[50] * 4, client="a")
        told = []
        for claim in range(1, 7):
            with pytest.raises(Overloaded) as refusal:
                await busy.enqueue(50, client="a", claim=claim)
            told.append((refusal.value.retry_after_s, str(refusal.value)))
        (first_s, first), *_, (last_s, last) = told
        assert last_s > first_s + 1
        assert first.endswith("; retry later")
        kept = "those who were told to come before have the places until then"
        assert last.endswith(f"; retry in {last_s:.1f} s: {kept}")

    run_with(encoder, scenario, max_wait_s=0.9)


def test_a_promise_that_cannot_be_kept_is_counted_and_renewed():
    encoder, returns = FakeEncoder(), Returns()

    async def scenario(batcher: Batcher) -> None:
        busy = Busy(encoder, batcher)
        await busy.enqueue(3)
        await busy.enqueue(60, 60, 60)
        told = await busy.refused_s(30, claim=1)
        busy.now += told
        assert await busy.refused_s(30, claim=1) > 0
        assert returns.accepted == [False]

    run_with(encoder, scenario, max_queue_tokens=100, observer=returns)


def test_a_client_that_fills_the_queue_fills_it_for_itself():
    encoder = FakeEncoder()

    async def scenario(batcher: Batcher) -> None:
        encoder.gate.clear()
        running = asyncio.create_task(batcher.submit([ids(3)]))
        await engine_is_busy(batcher)
        flood = [ids(10, fill) for fill in range(100, 110)]
        greedy = asyncio.create_task(batcher.submit(flood, client="greedy"))
        await queue_is(batcher, 10)
        with pytest.raises(Overloaded):
            await batcher.submit([ids(6)], client="greedy")
        modest = asyncio.create_task(batcher.submit([ids(7)], client="modest"))
        await queue_is(batcher, 11)
        with pytest.raises(Overloaded):  # beyond its share it is refused as well
            await batcher.submit([ids(40)], client="modest")
        encoder.gate.set()
        await asyncio.gather(running, greedy, modest)

    run_with(encoder, scenario, max_queue_tokens=100)
    assert 7 in encoder.batches[1], "the modest client's turn comes first"


def test_interactive_work_overtakes_bulk_work_and_a_light_client_a_heavy_one():
    encoder = FakeEncoder()

    async def scenario(batcher: Batcher) -> None:
        encoder.gate.clear()
        tasks = [asyncio.create_task(batcher.submit([ids(3)]))]
        await engine_is_busy(batcher)
        for client, lane, length, fills in (
            ("job", "bulk", 20, range(10, 13)),
            ("heavy", "interactive", 50, range(20, 23)),
            ("light", "interactive", 49, range(30, 31)),
        ):
            many = [ids(length, fill) for fill in fills]
            tasks.append(asyncio.create_task(batcher.submit(many, client=client, lane=lane)))
        await queue_is(batcher, 7)
        encoder.gate.set()
        await asyncio.gather(*tasks)

    run_with(encoder, scenario)  # a batch holds 64 tokens: one of these, or three of bulk
    order = [length for batch in encoder.batches[1:] for length in batch]
    assert order == [50, 49, 50, 50, 20, 20, 20]


@pytest.mark.parametrize("wanted", [["Q", "fine"], ["fine", "Q"]])
def test_the_cache_answers_what_was_computed_and_only_that(wanted):
    encoder = FakeEncoder()
    encoder.not_finite = POISON
    sequences = {"Q": ids(5, POISON), "fine": ids(6)}

    async def main() -> None:
        batcher = Batcher(
            encoder.run,
            max_batch_tokens=64,
            max_batch_items=8,
            max_queue_tokens=1000,
            cache=VectorCache(10_000, fingerprint="f"),
        )
        batcher.start()
        for _ in range(3):
            job = await batcher.submit([sequences[w] for w in wanted])
            assert set(job.errors) == {wanted.index("Q")}, "an error is not cached"
            found = job.vectors[wanted.index("fine")]
            np.testing.assert_array_equal(found, vector_of(ids(6), 16))
        found = (await batcher.submit([ids(6)])).vectors
        np.testing.assert_array_equal(found, [vector_of(ids(6), 16)])
        await batcher.stop()

    asyncio.run(main())
    assert sorted(n for batch in encoder.batches for n in batch if n == 6) == [6]


@pytest.mark.parametrize(("least", "first"), [(0, 3), (200, 20)])
def test_where_a_batch_of_many_takes_no_longer_bulk_work_is_not_divided_further(
    least: int, first: int
):
    encoder = FakeEncoder()

    async def scenario(batcher: Batcher) -> None:
        for _ in range(40):  # all of one size: nothing is known of larger ones
            await batcher.submit([ids(24)], client="person")
        encoder.batches.clear()
        await batcher.submit([ids(10, fill) for fill in range(3, 43)], lane="bulk", client="job")
        assert encoder.batches[0] == [10] * first

    run_with(
        encoder, scenario, max_batch_tokens=1000, max_batch_items=100, least_quantum=least
    )  # fmt: skip
