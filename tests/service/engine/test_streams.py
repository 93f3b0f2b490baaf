"""Two batches on one engine: neither waits for the other, and neither takes the other with it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from mexma.errors import EngineError
from service.engine.batcher import WORTH_TOKENS, Batcher
from tests.fakes import FakeEncoder, vector_of

LONG = WORTH_TOKENS // 2


class Gated(FakeEncoder):
    """Each batch waits for a gate of its own: `gates`, in the order in which batches begin."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: list[threading.Event] = []
        self.open = False
        self._lock = threading.Lock()

    def run(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
        with self._lock:
            gate = threading.Event()
            if self.open:
                gate.set()
            self.gates.append(gate)
        assert gate.wait(30), "the test forgot to open a gate"
        return super().run(sequences)

    def let_all(self) -> None:
        with self._lock:
            self.open = True
            for gate in self.gates:
                gate.set()

    async def begun(self, count: int) -> None:
        while len(self.gates) < count:
            await asyncio.sleep(0.001)


def run_with(
    scenario: Callable[[Batcher, Gated], Awaitable[None]], streams: int = 2, **more: Any
) -> Gated:
    encoder = Gated()

    async def main() -> None:
        batcher = Batcher(
            encoder.run,
            max_batch_tokens=1024,
            max_batch_items=64,
            max_queue_tokens=10**6,
            pads=False,
            streams=streams,
            **more,
        )
        batcher.start()
        try:
            await asyncio.wait_for(scenario(batcher, encoder), 30)
        finally:
            encoder.let_all()
            await batcher.stop()

    asyncio.run(main())
    return encoder


def some(count: int, length: int = LONG, first: int = 0) -> list[np.ndarray]:
    return [np.full(length, 3 + first + i, np.int64) for i in range(count)]


async def nothing_more_begins(encoder: Gated, count: int) -> None:
    await asyncio.sleep(0.05)
    assert len(encoder.gates) == count


def test_a_batch_is_begun_beside_another_and_whichever_ends_first_takes_the_next():
    async def scenario(batcher: Batcher, encoder: Gated) -> None:
        asked = some(24)  # a batch holds eight of these
        job = asyncio.create_task(batcher.submit(asked, client="a"))
        await encoder.begun(2)
        await nothing_more_begins(encoder, 2)
        encoder.gates[1].set()
        await encoder.begun(3)
        encoder.let_all()
        found = await job
        np.testing.assert_array_equal(found.vectors, [vector_of(ids, 16) for ids in asked])

    assert list(map(len, run_with(scenario).batches)) == [8, 8, 8]


def test_two_share_what_would_fit_into_one():
    async def scenario(batcher: Batcher, encoder: Gated) -> None:
        job = asyncio.create_task(batcher.submit(some(8), client="a"))
        await encoder.begun(2)
        encoder.let_all()
        await job

    assert list(map(len, run_with(scenario).batches)) == [4, 4]


def test_with_one_stream_there_is_one_at_a_time():
    async def scenario(batcher: Batcher, encoder: Gated) -> None:
        job = asyncio.create_task(batcher.submit(some(40), client="a"))
        await encoder.begun(1)
        await nothing_more_begins(encoder, 1)
        encoder.let_all()
        await job

    run_with(scenario, streams=1)


@pytest.mark.parametrize("bulk_beside", [True, False])
def test_bulk_work_is_begun_beside_another_batch_where_that_keeps_a_gpu_busy(bulk_beside: bool):
    async def scenario(batcher: Batcher, encoder: Gated) -> None:
        first = asyncio.create_task(batcher.submit(some(8), lane="bulk", client="a"))
        await encoder.begun(1)
        few = asyncio.create_task(batcher.submit(some(1, 3), lane="bulk", client="a"))
        await nothing_more_begins(encoder, 1)
        more = asyncio.create_task(batcher.submit(some(8, first=50), lane="bulk", client="b"))
        if bulk_beside:
            await encoder.begun(2)
        await nothing_more_begins(encoder, 1 + bulk_beside)
        encoder.let_all()
        await asyncio.gather(first, few, more)

    run_with(scenario, bulk_beside=bulk_beside)


def test_what_is_too_little_for_a_batch_waits_for_the_one_that_runs():
    async def scenario(batcher: Batcher, encoder: Gated) -> None:
        tasks = [asyncio.create_task(batcher.submit(some(1, 3), client="a"))]
        await encoder.begun(1)
        tasks.append(asyncio.create_task(batcher.submit(some(1, LONG, 10), client="a")))
        await nothing_more_begins(encoder, 1)
        tasks.append(asyncio.create_task(batcher.submit(some(1, LONG, 20), client="a")))
        await encoder.begun(2)
        encoder.let_all()
        await asyncio.gather(*tasks)

    assert sorted(map(sorted, run_with(scenario).batches)) == [[3], [LONG, LONG]]


@pytest.mark.parametrize("lane", ["bulk", "interactive"])
def test_while_a_light_client_is_about_others_run_one_batch_at_a_time(lane):
    async def scenario(batcher: Batcher, encoder: Gated) -> None:
        light = asyncio.create_task(batcher.submit(some(1, 3), client="light"))
        await encoder.begun(1)
        heavy = asyncio.create_task(batcher.submit(some(40, LONG, 9), client="heavy", lane=lane))
        await nothing_more_begins(encoder, 1)
        encoder.gates[0].set()
        await light
        await encoder.begun(2)
        await nothing_more_begins(encoder, 2)
        encoder.let_all()
        await heavy

    run_with(scenario)


@pytest.mark.parametrize("large", [True, False])
def test_who_comes_first_does_not_wait_for_a_large_batch_of_bulk_work(large):
    """Which was begun when no interactive client was about. Beside a small one it would gain nothing."""

    async def scenario(batcher: Batcher, encoder: Gated) -> None:
        batcher.cost.observe(10, 0.01)  # so a batch beside a light client has some 40 tokens
        bulk = some(8 if large else 1, LONG if large else 40, 9)
        heavy = asyncio.create_task(batcher.submit(bulk, client="heavy", lane="bulk"))
        await encoder.begun(1)
        more = asyncio.create_task(batcher.submit(some(20, LONG, 99), client="heavy", lane="bulk"))
        light = asyncio.create_task(batcher.submit(some(1, 3), client="light"))
        if large:
            await encoder.begun(2)
            encoder.gates[1].set()
            await light  # while the large one runs on
            assert not heavy.done()
        await nothing_more_begins(encoder, 1 + large)
        again = asyncio.create_task(batcher.submit(some(1, 3, 200), client="light"))
        if large:
            await encoder.begun(3)
            encoder.gates[2].set()
            await again
        encoder.let_all()
        await asyncio.gather(heavy, more, light, again)

    run_with(scenario)


def test_many_light_clients_have_both():
    async def scenario(batcher: Batcher, encoder: Gated) -> None:
        first = asyncio.create_task(batcher.submit(some(1, 3), client="first"))
        await encoder.begun(1)
        others = [
            asyncio.create_task(batcher.submit(some(1, 20, 10 * n), client=n)) for n in range(1, 20)
        ]
        await encoder.begun(2)
        encoder.let_all()
        await asyncio.gather(first, *others)

    run_with(scenario)


def test_a_batch_that_hangs_is_given_up_and_the_other_is_not():
    async def scenario(batcher: Batcher, encoder: Gated) -> None:
        now = 0.0
        batcher._clock = lambda: now
        hung = asyncio.create_task(batcher.submit(some(2), client="a"))
        await encoder.begun(1)
        now = 100.0
        well = asyncio.create_task(batcher.submit(some(2, LONG, 10), client="a"))
        await encoder.begun(2)
        assert batcher.running_s() == 100.0
        batcher.restart(50.0)
        assert set((await hung).errors) == {0, 1}
        assert "hung" in str((await hung).errors[0])
        assert batcher.alive
        encoder.gates[1].set()
        assert not (await well).errors
        assert batcher.running_s() == 0
        again = asyncio.create_task(batcher.submit(some(8, LONG, 20), client="a"))
        await encoder.begun(4)  # two at once, though one thread hangs on
        encoder.let_all()
        assert not (await again).errors

    run_with(scenario)
    while any(t.name == "engine" for t in threading.enumerate()):
        pass  # the one that hung ends as well


def test_the_pace_of_two_at_once_is_that_of_both():
    async def scenario(batcher: Batcher, encoder: Gated) -> None:
        now = 0.0
        batcher._clock = lambda: now
        job = asyncio.create_task(batcher.submit(some(48), client="a"))
        await encoder.begun(2)
        now = 1.0
        for gate in encoder.gates[:2]:
            gate.set()
        await encoder.begun(4)
        first, second = map(sum, encoder.batches[:2])
        assert first == second  # else the later one would count for more
        assert batcher.pace.tokens_per_s == pytest.approx(first + second)
        encoder.let_all()
        await job

    run_with(scenario)


def test_a_poisoned_batch_leaves_the_other_alone():
    async def scenario(batcher: Batcher, encoder: Gated) -> None:
        encoder.poison = 3
        bad = asyncio.create_task(batcher.submit(some(2), client="a"))
        good = asyncio.create_task(batcher.submit(some(6, LONG, 10), client="a"))
        await encoder.begun(2)
        encoder.let_all()
        assert set((await bad).errors) == {0}
        assert not (await good).errors

    run_with(scenario)


def test_what_runs_at_the_end_gets_an_answer():
    async def scenario(batcher: Batcher, encoder: Gated) -> None:
        job = asyncio.create_task(batcher.submit(some(40), client="a"))
        await encoder.begun(2)
        stopping = asyncio.create_task(batcher.stop())
        found = await job
        assert len(found.errors) == 40
        assert all(isinstance(error, EngineError) for error in found.errors.values())
        encoder.let_all()
        await stopping
        assert not batcher.alive

    run_with(scenario)


def test_many_callers_at_once_get_their_own_vectors():
    async def scenario(batcher: Batcher, encoder: Gated) -> None:
        encoder.let_all()
        rng = np.random.default_rng(0)
        asked = [
            [rng.integers(3, 250, rng.integers(1, 200)) for _ in range(rng.integers(1, 20))]
            for _ in range(80)
        ]
        lanes = ["bulk", "interactive"]
        jobs = await asyncio.gather(
            *(batcher.submit(a, client=n % 7, lane=lanes[n % 2]) for n, a in enumerate(asked))
        )
        for request, job in zip(asked, jobs, strict=True):
            expected = [vector_of(ids, 16) for ids in request]
            np.testing.assert_array_equal(job.vectors, expected)

    run_with(scenario)
