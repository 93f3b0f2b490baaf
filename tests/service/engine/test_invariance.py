"""What watches that a vector does not depend on its neighbours: it sees when one does, and harms nothing."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from service.engine.embedder import Embedder
from service.engine.invariance import BOUND, KEPT, InvarianceCheck
from service.metrics import Metrics
from service.settings import Settings
from tests.fakes import FakeEncoder

SEQUENCES = [np.arange(3, 3 + n) for n in (2, 7, 4, 9)]


def gauge(metrics: Metrics, encoder: FakeEncoder) -> float | None:
    return metrics.registry.get_sample_value(
        "mexma_batch_invariance", {"fingerprint": encoder.fingerprint}
    )


class Leaking(FakeEncoder):
    """In a batch, a bit of each vector is its first neighbour's."""

    def run(self, sequences):
        vectors = super().run(sequences)
        return vectors + 0.1 * vectors[0] if len(vectors) > 1 else vectors


@pytest.mark.parametrize("kind", [FakeEncoder, Leaking])
def test_the_gauge_tells_an_engine_that_mixes_neighbours_from_one_that_does_not(kind):
    encoder, metrics = kind(), Metrics()

    async def scenario() -> None:
        embedder = Embedder(encoder, Settings(invariance_check_every=1), metrics)
        embedder.batcher.start()
        await embedder.batcher.submit(SEQUENCES)
        await embedder.batcher.submit(SEQUENCES[::-1])
        found = gauge(metrics, encoder)
        assert found is not None and (found < BOUND) == (kind is Leaking)
        await embedder.stop()

    asyncio.run(scenario())
    assert gauge(metrics, encoder) is None, "the encoder is gone"


def test_one_batch_in_so_many_is_checked_and_each_of_its_places_comes_round():
    encoder, alone = FakeEncoder(), []

    def run(sequences):
        if len(sequences) == 1:
            alone.append(len(sequences[0]))
        return encoder.run(sequences)

    found: list[float] = []
    check = InvarianceCheck(run, every=3, report=found.append)
    for _ in range(12):
        np.testing.assert_array_equal(check.run(SEQUENCES), encoder.run(SEQUENCES))
    assert alone == [7, 4, 9, 2]
    assert found == pytest.approx([1.0] * 4)
    check.run(SEQUENCES[:1])
    assert len(found) == 4, "one text alone has nothing to be compared with"


def test_zero_checks_nothing():
    def never(_: float) -> None:
        raise AssertionError

    encoder = FakeEncoder()
    check = InvarianceCheck(encoder.run, every=0, report=never)
    for _ in range(5):
        check.run(SEQUENCES)
    assert len(encoder.batches) == 5


def test_a_text_that_fails_alone_does_not_take_its_batch_with_it(caplog):
    encoder = FakeEncoder()

    def run(sequences):
        if len(sequences) == 1:
            raise MemoryError
        return encoder.run(sequences)

    found: list[float] = []
    check = InvarianceCheck(run, every=1, report=found.append)
    assert len(check.run(SEQUENCES)) == 4
    assert not found and "MemoryError" in caplog.text


def test_what_was_found_long_ago_is_forgotten():
    engines: list[FakeEncoder] = [Leaking()]
    found: list[float] = []

    def run(sequences):
        return engines[-1].run(sequences)

    check = InvarianceCheck(run, every=1, report=found.append)
    check.run(SEQUENCES)
    engines.append(FakeEncoder())
    for _ in range(KEPT):
        check.run(SEQUENCES)
    assert found[-2] < BOUND < found[-1]
