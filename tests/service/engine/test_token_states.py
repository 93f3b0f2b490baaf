"""The states of tokens come through the queue that vectors come through, and room for them is bounded."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest

from mexma.errors import DeadlineExceeded, EngineError, NoTokenStates, Overloaded, TooManyTokens
from service.caller import Caller
from service.engine.batcher import Batcher
from service.engine.cache import VectorCache
from service.engine.embedder import Embedder
from service.engine.lanes import Lanes
from service.engine.state_room import AT_ONCE, StateRoom
from service.engine.watchdog import Watchdog
from service.metrics import Metrics
from service.settings import Settings
from tests.fakes import FakeEncoder, vector_of


def states_of(ids: np.ndarray) -> np.ndarray:
    return np.stack([vector_of(ids[i : i + 1], 16) for i in range(len(ids))])


@pytest.fixture
def run():
    """Run `test(batcher, encoder)` with a batcher that is started."""

    def run(test, **more):
        encoder = FakeEncoder()

        async def main() -> None:
            batcher = Batcher(
                encoder.run,
                **{"states": encoder.token_states} | more,
                max_batch_tokens=64,
                max_batch_items=8,
                max_queue_tokens=1000,
            )
            batcher.start()
            try:
                await asyncio.wait_for(test(batcher, encoder), 30)
            finally:
                encoder.gate.set()
                await batcher.stop()

        asyncio.run(main())

    return run


def sequence(*ids: int) -> np.ndarray:
    return np.array(ids, np.int64)


def test_one_text_s_vector_and_its_tokens_states_are_not_mixed_up(run):
    """Though they wait together, whoever asks first, and asks twice."""
    texts = [sequence(0, *range(5, 5 + n), 2) for n in (1, 2, 3, 3, 9)]

    async def test(batcher: Batcher, encoder: FakeEncoder) -> None:
        encoder.gate.clear()
        running = asyncio.create_task(batcher.submit([sequence(9)]))
        while not batcher.running_s():
            await asyncio.sleep(0)
        asked = [
            asyncio.create_task(batcher.submit(texts, states=wants, client=client))
            for client, wants in enumerate([True, False, True, False])
        ]
        while batcher.queued_items < 8:  # four distinct texts, of two kinds
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        encoder.gate.set()
        await running
        for job, wants in zip(
            await asyncio.gather(*asked), [True, False, True, False], strict=True
        ):
            assert not job.errors
            if wants:
                assert job.vectors is None
                for ids, found in zip(texts, job.states, strict=True):
                    np.testing.assert_array_equal(found, states_of(ids))
            else:
                assert job.states is None
                np.testing.assert_array_equal(job.vectors, [vector_of(t, 16) for t in texts])

    run(test)


def test_a_batch_is_of_one_kind_and_neither_waits_for_ever():
    lanes = Lanes(max_batch_tokens=100, max_batch_items=8)
    numbers = itertools.count()
    for i in range(40):
        lanes.add(
            np.full(5, next(numbers)), ("x", i), lane="bulk" if i % 4 else "interactive",
            client=i % 3, now=0.0, states=i % 2 == 0,
        )  # fmt: skip
    kinds = []
    while batch := lanes.take(0.0, quantum=40):
        assert len({entry.states for entry in batch}) == 1
        assert sum(map(len, batch)) <= 100
        kinds += [entry.states for entry in batch]
        lanes.finish(batch)
    assert sorted(kinds) == [False] * 20 + [True] * 20
    assert lanes.items == lanes.tokens == 0


def test_states_fill_no_more_than_the_usual_batch_though_bulk_work_may():
    lanes = Lanes(max_batch_tokens=20, max_batch_items=8, pads=False)
    lanes.bulk_batch_tokens = 200
    for wants in (True, False):
        for i in range(20):
            lanes.add(np.full(5, i), ("x", i), lane="bulk", client=0, now=0.0, states=wants)
    sizes = {}
    while batch := lanes.take(1e6, quantum=40):
        sizes.setdefault(batch[0].states, []).append(sum(map(len, batch)))
        lanes.finish(batch)
    assert max(sizes[True]) == 20
    assert max(sizes[False]) == 100, "all that waited, at once"


def test_a_guilty_text_fails_alone_and_what_is_not_finite_never_leaves(run):
    async def test(batcher: Batcher, encoder: FakeEncoder) -> None:
        encoder.poison, encoder.not_finite = 77, 66
        texts = [sequence(5, 6), sequence(77, 6), sequence(66, 6), sequence(7, 8)]
        job = await batcher.submit(texts, states=True)
        assert set(job.errors) == {1, 2}
        assert "item 2" in str(job.errors[2]) and "not finite" in str(job.errors[2])
        for i in (0, 3):
            np.testing.assert_array_equal(job.states[i], states_of(texts[i]))
        assert job.states[1] is job.states[2] is None

    run(test)


@pytest.mark.parametrize(
    ("states", "says"),
    [
        (None, "gives no token states"),
        (lambda s: [np.zeros((len(ids) + 1, 16), np.float32) for ids in s], "expected states of"),
        (lambda s: [], "expected states of"),
    ],
)
def test_states_of_the_wrong_shape_are_an_error_and_the_next_batch_runs(run, states, says):
    async def test(batcher: Batcher, encoder: FakeEncoder) -> None:
        job = await batcher.submit([sequence(5, 6)], states=True)
        assert says in str(job.errors[0])
        assert (await batcher.submit([sequence(5, 6)])).vectors is not None

    run(test, states=states)


def test_the_cache_has_vectors_only(run):
    cache = VectorCache(1 << 20, fingerprint="f")

    async def test(batcher: Batcher, encoder: FakeEncoder) -> None:
        text = sequence(5, 6)
        await batcher.submit([text])
        for _ in range(2):
            job = await batcher.submit([text], states=True)
            np.testing.assert_array_equal(job.states[0], states_of(text))
        assert len(cache) == 1
        np.testing.assert_array_equal(
            (await batcher.submit([text])).vectors[0], vector_of(text, 16)
        )

    run(test, cache=cache)


# The embedder


@pytest.fixture
def embed():
    """Run `test(embedder, encoder)` with an embedder that is started."""

    def run(test, **settings):
        encoder = FakeEncoder()

        async def main() -> None:
            embedder = Embedder(encoder, Settings(**settings), Metrics())
            embedder.batcher.start()
            try:
                await asyncio.wait_for(test(embedder, encoder), 30)
                assert embedder.state_room.held == 0, "whatever happened"
                assert embedder.holders.count == 0
            finally:
                encoder.gate.set()
                await embedder.stop()

        asyncio.run(main())

    return run


def test_a_request_holds_room_until_its_answer_is_made_whatever_becomes_of_it(embed):
    async def test(embedder: Embedder, encoder: FakeEncoder) -> None:
        async with embedder.token_states(["abc", "d"]) as found:
            assert embedder.state_room.held == 5 + 3
            np.testing.assert_array_equal(
                found.states[1], states_of(encoder.tokenizer.encode(["d"])[0].ids)
            )
            assert found.token_count == 8
        with pytest.raises(ZeroDivisionError):
            async with embedder.token_states(["abc"]):
                raise ZeroDivisionError
        encoder.poison = encoder.token("Q")
        with pytest.raises(EngineError):
            async with embedder.token_states(["Q"]):
                pass
        encoder.gate.clear()
        with pytest.raises(DeadlineExceeded):
            async with embedder.token_states(["slow"], caller=Caller(timeout_s=0.05)):
                pass
        left = asyncio.create_task(embedder.token_states(["left"]).__aenter__())
        while embedder.state_room.held == 0:
            await asyncio.sleep(0)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left

    embed(test)


def test_requests_beyond_the_room_are_refused_with_when_to_come_back(embed):
    async def test(embedder: Embedder, encoder: FakeEncoder) -> None:
        with pytest.raises(
            TooManyTokens, match=r"has 12 tokens; the limit is 10 .*MEXMA_MAX_STATE_"
        ) as e:
            async with embedder.token_states(["x" * 10]):
                pass
        assert e.value.limit == 10
        encoder.gate.clear()

        async def ask(client: bytes) -> None:
            async with embedder.token_states(["x" * 8], caller=Caller(client)):
                pass

        asked = [asyncio.create_task(ask(b"one")) for _ in range(2)]
        while embedder.state_room.held < 20:
            await asyncio.sleep(0)
        with pytest.raises(
            Overloaded, match=r"this client's requests .* hold 20 tokens"
        ) as refused:
            await ask(b"one")
        assert refused.value.retry_after_s > 0
        asked += [asyncio.create_task(ask(b"two")) for _ in range(2)]
        while embedder.state_room.held < 40:
            await asyncio.sleep(0)
        with pytest.raises(Overloaded, match=r"all requests .* hold 40 tokens"):
            await ask(b"three")
        encoder.gate.set()
        await asyncio.gather(*asked)
        await ask(b"one")

    embed(test, max_state_tokens=10)


def test_room_is_counted_by_client_and_in_all():
    room = StateRoom(10, tokens_per_s=lambda: 100.0)
    with room.of("a", 10), room.of("a", 10), room.of("b", 10):
        with pytest.raises(Overloaded) as refused, room.of("a", 1):
            pass
        assert refused.value.retry_after_s == pytest.approx(0.2)
        with room.of("b", 10):
            assert room.held == AT_ONCE * 10
            with pytest.raises(Overloaded), room.of("c", 1):
                pass
    assert room.held == 0


def test_a_model_without_them_says_how_to_have_them(embed):
    async def test(embedder: Embedder, encoder: FakeEncoder) -> None:
        encoder.manifest = replace(encoder.manifest, token_output_name=None)
        with pytest.raises(NoTokenStates, match=r"fake was exported without .*--token-states"):
            async with embedder.token_states(["x"]):
                pass
        assert encoder.batches == []

    embed(test)


def test_a_batch_of_states_that_hangs_is_given_up_like_any_other(embed):
    async def test(embedder: Embedder, encoder: FakeEncoder) -> None:
        watchdog = Watchdog(embedder, embedder.metrics, every_s=0.01, deadline_s=5, stuck_s=0.05)
        await watchdog.look()
        encoder.gate.clear()
        hung = asyncio.create_task(embedder.token_states(["hung"]).__aenter__())
        while embedder.batcher.running_s() <= 0.05:
            await asyncio.sleep(0.01)
        held, encoder.gate = encoder.gate, threading.Event()
        encoder.gate.set()
        await watchdog.look()
        assert watchdog.problem is not None and watchdog.problem.reason == "engine_stuck"
        with pytest.raises(EngineError, match="hung"):
            await hung
        held.set()
        async with embedder.token_states(["after"]) as found:
            assert len(found.states[0]) == 7

    embed(test)


def test_what_was_answered_is_forgotten_at_once(run):
    """Megabytes a request: they must not stay until somebody looks for garbage."""

    async def test(batcher: Batcher, encoder: FakeEncoder) -> None:
        gc.collect()
        gc.disable()
        try:
            for wants in (True, False):
                job = await batcher.submit([sequence(5, 6), sequence(7)], states=wants)
                forgotten = weakref.ref(job)
                del job
                await batcher.submit([sequence(8)])  # the thread has let go of it, too
                assert forgotten() is None
        finally:
            gc.enable()

    run(test)
