"""The engine in another process, both sides here on one event loop, with an engine that obeys."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mexma.errors import DeadlineExceeded, EngineAway, NonFiniteVector, Overloaded
from service.engine.embedder import Embedder
from service.metrics import Metrics
from service.settings import Settings
from service.workers import remote as remote_module
from service.workers.arena import Regions
from service.workers.engine_socket import offer_engine
from service.workers.remote import RelayedMetrics, RemoteBatcher
from service.workers.wire import Kind
from tests.fakes import FakeEncoder, vector_of

POISON = 77
Scenario = Callable[[RemoteBatcher, Embedder], Awaitable[None]]


def ids(length: int, fill: int = 5) -> np.ndarray:
    return np.full(length, fill, np.int64)


def run_with(encoder: FakeEncoder, folder: Path, scenario: Scenario, **settings: object) -> None:
    async def main() -> None:
        embedder = Embedder(encoder, Settings(demo=False, **settings), Metrics())
        embedder.batcher.start()
        mismatches: list[str] = []
        remote = RemoteBatcher(
            folder / "engine.sock",
            fingerprint=encoder.fingerprint,
            dim=encoder.manifest.dim,
            mismatch=mismatches.append,
        )
        remote.start()  # before there is anything to connect to
        async with offer_engine(embedder, embedder.metrics, folder / "engine.sock"):
            while not remote.connected:
                await asyncio.sleep(0.001)
            try:
                await asyncio.wait_for(scenario(remote, embedder), 30)
            finally:
                encoder.gate.set()
                await remote.stop()
                await embedder.stop()
        assert not mismatches

    asyncio.run(main())


async def engine_is_busy(embedder: Embedder) -> None:
    while embedder.batcher.running_s() == 0:
        await asyncio.sleep(0.001)


async def queue_is(embedder: Embedder, items: int) -> None:
    while embedder.batcher.queued_items != items:
        await asyncio.sleep(0.001)


async def all_is_free(remote: RemoteBatcher) -> None:
    while remote._regions.free != remote_module.ARENA_BYTES:
        await asyncio.sleep(0.001)


def test_every_caller_gets_its_own_vectors(tmp_path):
    rng = np.random.default_rng(0)
    requests = [
        [rng.integers(3, 250, rng.integers(1, 60)) for _ in range(rng.integers(1, 20))]
        for _ in range(50)
    ]

    async def scenario(remote, embedder):
        jobs = await asyncio.gather(*(remote.submit(r) for r in requests))
        for request, job in zip(requests, jobs, strict=True):
            np.testing.assert_array_equal(job.vectors, [vector_of(s, 16) for s in request])
            assert job.inference_s > 0
        await all_is_free(remote)

    run_with(FakeEncoder(), tmp_path, scenario)


def test_errors_come_across_as_what_they_are(tmp_path):
    encoder = FakeEncoder()
    encoder.poison, encoder.not_finite = POISON, POISON + 1

    async def scenario(remote, embedder):
        job = await remote.submit([ids(3), ids(4, POISON), ids(5, POISON + 1)])
        assert set(job.errors) == {1, 2}
        assert "item 1" in str(job.errors[1])
        assert job.errors[1].item == 1
        assert isinstance(job.errors[2], NonFiniteVector)
        np.testing.assert_array_equal(job.vectors[0], vector_of(ids(3), 16))

    run_with(encoder, tmp_path, scenario)


def test_lane_client_and_deadline_come_across(tmp_path):
    encoder = FakeEncoder()

    async def scenario(remote, embedder):
        encoder.gate.clear()
        first = asyncio.create_task(remote.submit([ids(1)]))
        await engine_is_busy(embedder)
        bulk = asyncio.create_task(remote.submit([ids(2)], lane="bulk", client=b"a"))
        await queue_is(embedder, 1)
        quick = asyncio.create_task(remote.submit([ids(3)], client=b"b"))
        late = asyncio.create_task(remote.submit([ids(4)], deadline=time.monotonic()))
        await queue_is(embedder, 3)
        assert embedder.batcher._lanes.tokens_of(b"a") == 2
        encoder.gate.set()
        await asyncio.gather(first, bulk, quick)
        with pytest.raises(DeadlineExceeded):
            await late

    run_with(encoder, tmp_path, scenario)
    assert encoder.batches == [[1], [3], [2]]


def test_a_full_queue_refuses_across_processes(tmp_path):
    encoder = FakeEncoder()

    async def scenario(remote, embedder):
        encoder.gate.clear()
        waiting = [asyncio.create_task(remote.submit([ids(1)]))]
        await engine_is_busy(embedder)
        waiting.append(asyncio.create_task(remote.submit([ids(9)])))
        await queue_is(embedder, 1)
        with pytest.raises(Overloaded, match="holds 9 tokens") as refusal:
            await remote.submit([ids(8)], claim=-7)
        told_s = refusal.value.retry_after_s
        assert told_s > 0
        embedder.batcher._clock = lambda: time.monotonic() + told_s
        with pytest.raises(Overloaded):
            await remote.submit([ids(8)], claim=7)
        waiting.append(asyncio.create_task(remote.submit([ids(8)], claim=-7)))
        await queue_is(embedder, 2)
        encoder.gate.set()
        await asyncio.gather(*waiting)
        await all_is_free(remote)

    run_with(encoder, tmp_path, scenario, max_queue_tokens=10)


def test_a_cancelled_caller_leaves_the_other_process_s_queue(tmp_path):
    encoder = FakeEncoder()

    async def scenario(remote, embedder):
        encoder.gate.clear()
        running = asyncio.create_task(remote.submit([ids(1)]))
        await engine_is_busy(embedder)
        doomed = asyncio.create_task(remote.submit([ids(2), ids(3)]))
        await queue_is(embedder, 2)
        for task in (doomed, running):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await queue_is(embedder, 0)
        encoder.gate.set()
        await all_is_free(remote)

    run_with(encoder, tmp_path, scenario)
    assert encoder.batches == [[1]]


def test_when_the_engine_goes_nobody_hangs_and_when_it_comes_all_goes_on(tmp_path):
    encoder = FakeEncoder()

    async def main() -> None:
        path = tmp_path / "engine.sock"
        remote = RemoteBatcher(path, fingerprint=encoder.fingerprint, dim=16, mismatch=pytest.fail)
        remote.start()
        with pytest.raises(EngineAway):
            await remote.submit([ids(1)])
        for _ in range(2):
            encoder.gate.clear()
            embedder = Embedder(encoder, Settings(demo=False), Metrics())
            embedder.batcher.start()
            async with offer_engine(embedder, embedder.metrics, path):
                while not remote.connected:
                    await asyncio.sleep(0.001)
                waiting = [asyncio.create_task(remote.submit([ids(1)]))]
                await engine_is_busy(embedder)
                waiting += [asyncio.create_task(remote.submit([ids(n)])) for n in (2, 3)]
                await queue_is(embedder, 2)
                # a killed process's socket closes; here the worker's end does the same
                remote._connection.transport.abort()
                for outcome in await asyncio.gather(*waiting, return_exceptions=True):
                    assert isinstance(outcome, EngineAway)
                await queue_is(embedder, 0)  # and the engine drops what a lost worker wanted
                encoder.gate.set()
                while not remote.connected:
                    await asyncio.sleep(0.001)
                assert not (await remote.submit([ids(7)])).errors
                await all_is_free(remote)
                remote._connection.transport.abort()
            await embedder.stop()
        await remote.stop()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_an_engine_with_another_encoder_is_not_used(tmp_path):
    async def main() -> None:
        embedder = Embedder(FakeEncoder(name="new"), Settings(demo=False), Metrics())
        found: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        remote = RemoteBatcher(
            tmp_path / "engine.sock",
            fingerprint=FakeEncoder(name="old").fingerprint,
            dim=16,
            mismatch=found.set_result,
        )
        async with offer_engine(embedder, embedder.metrics, tmp_path / "engine.sock"):
            remote.start()
            assert "has changed" in await asyncio.wait_for(found, 10)
            with pytest.raises(EngineAway):
                await remote.submit([ids(1)])
            await remote.stop()

    asyncio.run(main())


@pytest.mark.parametrize("garbage", [b"\xff" * 64, bytes([4, 0, 0, 0, Kind.SUBMIT]) + b"abcd"])
def test_a_worker_that_talks_nonsense_harms_nobody(tmp_path, garbage):
    async def scenario(remote, embedder):
        other = RemoteBatcher(
            tmp_path / "engine.sock",
            fingerprint=embedder.encoder.fingerprint,
            dim=16,
            mismatch=pytest.fail,
        )
        other.start()
        while not other.connected:
            await asyncio.sleep(0.001)
        lost = other._connection
        lost.transport.write(garbage)
        while other._connection is lost:
            await asyncio.sleep(0.001)
        assert not (await remote.submit([ids(3)])).errors
        await other.stop()

    run_with(FakeEncoder(), tmp_path, scenario)


def test_what_a_worker_sees_is_counted_where_metrics_are_asked_for(tmp_path):
    async def scenario(remote, embedder):
        seen = RelayedMetrics()
        seen.remote = remote
        seen.answered("/v1/embeddings", 200, 0.01)
        seen.embedded(items=3, tokens=9, truncated=1, tokenize_s=0.1, queue_s=0.1, inference_s=0.1)
        while "mexma_embedded_items_total 3.0" not in embedder.metrics.render().decode():
            await asyncio.sleep(0.001)
        counted = embedder.metrics.render().decode()
        assert 'mexma_http_requests_total{route="/v1/embeddings",status="200"} 1.0' in counted

    run_with(FakeEncoder(), tmp_path, scenario)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 400), st.integers(0, 99)), max_size=80))
def test_regions_never_overlap_and_all_come_back(steps):
    regions = Regions(1000)
    taken: list[tuple[int, int]] = []
    for take, size, which in steps:
        if take or not taken:
            offset = regions.take(size)
            if offset is None:
                continue
            assert 0 <= offset <= 1000 - size
            assert all(offset + size <= o or o + s <= offset for o, s in taken)
            taken.append((offset, size))
        else:
            regions.give_back(*taken.pop(which % len(taken)))
        assert regions.free == 1000 - sum(size for _, size in taken)
    for region in taken:
        regions.give_back(*region)
    assert regions.take(1000) == 0
