"""An engine that hangs, errs or changes its mind is noticed without a client, and started anew."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from service.engine.embedder import Embedder
from service.engine.watchdog import Watchdog
from service.metrics import Metrics
from service.settings import Settings
from tests.fakes import FakeEncoder


@pytest.fixture
def make():
    """Run `test(embedder, encoder, watchdog)` on an event loop, with a batcher that is started."""

    def run(test, **settings):
        encoder = FakeEncoder()

        async def main() -> None:
            metrics = Metrics()
            embedder = Embedder(encoder, Settings(**settings), metrics)
            embedder.batcher.start()
            watchdog = Watchdog(embedder, metrics, every_s=0.01, deadline_s=0.2, stuck_s=0.05)
            try:
                await watchdog.look()
                assert watchdog.problem is None
                await test(embedder, encoder, watchdog)
            finally:
                encoder.gate.set()
                await embedder.stop()

        asyncio.run(main())

    return run


def reason(watchdog: Watchdog) -> str | None:
    return watchdog.problem.reason if watchdog.problem else None


def test_a_failing_engine_is_found_though_the_cache_knows_the_answer(make):
    async def test(embedder, encoder, watchdog):
        encoder.broken = True
        await watchdog.look()
        assert reason(watchdog) == "engine_failed"
        encoder.broken = False
        await watchdog.look()
        assert reason(watchdog) is None
        assert encoder.renewed == 0

    make(test, cache_mb=16)


def test_an_engine_that_computes_something_else_is_loaded_again(make):
    async def test(embedder, encoder, watchdog):
        encoder.wrong = True
        await watchdog.look()
        assert reason(watchdog) == "engine_wrong"
        assert encoder.renewed == 1
        await watchdog.look()
        assert reason(watchdog) is None
        found = (await embedder.embed(["after"])).vectors[0]
        np.testing.assert_array_equal(found, encoder.vector("after"))

    make(test)


def test_a_hanging_batch_is_given_up_and_what_waited_is_answered(make):
    async def test(embedder, encoder, watchdog):
        encoder.gate.clear()
        before = len(encoder.batches)
        hung = asyncio.create_task(embedder.embed(["hung"], partial=True))
        while len(encoder.batches) == before:
            await asyncio.sleep(0.001)
        waiting = asyncio.create_task(embedder.embed(["waiting"]))
        await asyncio.sleep(0)
        while embedder.batcher.running_s() <= 0.05:
            await asyncio.sleep(0.01)
        held, encoder.gate = encoder.gate, threading.Event()
        encoder.gate.set()  # for the new thread; the old one hangs on
        await watchdog.look()
        assert reason(watchdog) == "engine_stuck"
        assert encoder.renewed == 1
        errors = (await hung).errors
        assert "hung" in str(errors[0])
        np.testing.assert_array_equal((await waiting).vectors[0], encoder.vector("waiting"))
        await watchdog.look()
        assert reason(watchdog) is None
        old = [t for t in threading.enumerate() if t.name == "engine"]
        assert len(old) == 2
        held.set()
        while len([t for t in threading.enumerate() if t.name == "engine"]) > 1:
            await asyncio.sleep(0.001)  # what the old thread brings is dropped, and it ends
        assert (await embedder.embed(["after"])).errors == {}

    make(test)


def test_all_of_a_batch_that_is_run_one_by_one_get_an_answer_when_one_of_them_hangs(make):
    async def test(embedder, encoder, watchdog):
        encoder.poison = encoder.token("Q")
        hold = threading.Event()
        run = encoder.run

        def hang_alone(sequences):
            if len(sequences) == 1 and encoder.poison in sequences[0]:
                hold.wait(30)
            return run(sequences)

        embedder.batcher._streams.run = hang_alone
        asked = asyncio.create_task(embedder.embed(["aa", "Qa", "bb", "cc"], partial=True))
        while embedder.batcher.running_s() <= 0.05:
            await asyncio.sleep(0.01)
        await watchdog.look()
        found = await asked
        hold.set()
        assert set(found.errors) >= {1}
        for i, text in enumerate(["aa", "Qa", "bb", "cc"]):
            if i not in found.errors:
                np.testing.assert_array_equal(found.vectors[i], encoder.vector(text))

    make(test)


def test_a_slow_engine_is_not_given_up(make):
    async def test(embedder, encoder, watchdog):
        watchdog._stuck_s = 1000.0
        encoder.gate.clear()
        await watchdog.look()
        assert reason(watchdog) == "engine_slow"
        assert encoder.renewed == 0
        encoder.gate.set()
        await watchdog.look()
        assert reason(watchdog) is None

    make(test)


def test_ready_says_what_the_watchdog_found_and_comes_back(make_client):
    encoder = FakeEncoder()
    client = make_client(encoder, canary_every_s=0.02)
    assert client.get("/health/ready").status_code == 200
    encoder.broken = True
    while (answer := client.get("/health/ready")).status_code == 200:
        pass
    assert answer.json()["reason"] == "engine_failed"
    encoder.broken = False
    while client.get("/health/ready").status_code != 200:
        pass


def test_after_a_second_failure_ready_asks_the_engine_and_not_the_cache(make_client):
    encoder = FakeEncoder()
    client = make_client(encoder, cache_mb=16)
    for _ in range(2):
        encoder.broken = True
        assert client.post("/v1/embeddings", json={"input": "x"}).status_code == 500
        assert client.get("/health/ready").json()["reason"] == "engine_failed"
        encoder.broken = False
        assert client.get("/health/ready").status_code == 200
