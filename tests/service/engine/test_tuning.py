"""How large bulk batches are: what is chosen of a curve, what is measured, and what is remembered."""

from __future__ import annotations

import asyncio
import json

import httpx
import numpy as np
import pytest

from service.engine import tuning
from service.engine.encoders import Encoders
from service.engine.tuning import Point, Tuning, choose, measure
from service.metrics import Metrics
from service.settings import Settings
from tests.conftest import start_server, wait_until_ready
from tests.fakes import FakeEncoder


class Timed(FakeEncoder):
    """Its batches take what they are told to, by a clock of its own."""

    def __init__(self, seconds, **more):
        super().__init__(**more)
        self.seconds, self.now = seconds, 0.0

    def run(self, sequences):
        self.now += self.seconds(sum(map(len, sequences)))
        return super().run(sequences)


@pytest.fixture
def clock(monkeypatch):
    """Puts an encoder's clock in the place of the machine's."""

    def of(encoder: Timed) -> Timed:
        monkeypatch.setattr(tuning.time, "perf_counter", lambda: encoder.now)
        return encoder

    return of


def test_a_larger_batch_must_be_worth_it():
    assert choose([Point(1024, 100), Point(2048, 104), Point(4096, 104)]).tokens == 1024
    assert choose([Point(1024, 100), Point(2048, 106), Point(4096, 108)]).tokens == 2048
    assert choose([Point(1024, 100), Point(2048, 90), Point(4096, 120)]).tokens == 4096
    assert choose([Point(1024, 100)]).tokens == 1024


@pytest.mark.parametrize("cold", [True, False])
def test_the_first_batch_of_a_size_does_not_count_on_a_gpu(clock, cold: bool):
    seen = set[int]()

    def seconds(tokens: int) -> float:
        first = tokens not in seen
        seen.add(tokens)
        return 0.001 + 1e-7 * tokens + 0.5 * first  # beyond what a batch, and a small one, may take

    curve = measure(clock(Timed(seconds)), 256, cold=cold)
    assert [p.tokens for p in curve.points] == ([256, 512, 1024] if cold else [256])
    assert curve.steady == cold


def test_an_engine_that_works_better_on_more_gets_more(clock):
    encoder = clock(Timed(lambda n: 0.010 + 1e-6 * n))
    curve = measure(encoder, 256)
    assert [p.tokens for p in curve.points] == [256, 512, 1024]
    assert choose(curve.points).tokens == 1024
    for point in curve.points:
        assert point.tokens_per_s == pytest.approx(
            point.tokens / (0.010 + 1e-6 * point.tokens), rel=0.2
        )


def test_an_engine_that_gains_nothing_keeps_its_batches_short(clock):
    assert choose(measure(clock(Timed(lambda n: 1e-6 * n)), 256).points).tokens == 256


def test_batches_end_where_they_take_too_long(clock):
    """Or a client that comes first after a pause waits for seconds."""
    encoder = clock(Timed(lambda n: 0.06 + 1e-6 * n if n > 100 else 1e-6))
    assert [p.tokens for p in measure(encoder, 256).points] == [256, 512, 1024]
    encoder = clock(Timed(lambda n: 0.11 if n > 300 else 1e-6))
    assert [p.tokens for p in measure(encoder, 256).points] == [256]


def test_a_slow_engine_is_not_made_to_show_how_slow_it_is(clock):
    encoder = clock(Timed(lambda n: 0.05 * n))
    assert [p.tokens for p in measure(encoder, 256).points] == [256]
    assert encoder.now < 0.05 * 256 / 3, "one small batch was enough to know"


def test_a_gpu_that_runs_out_of_memory_takes_no_harm(clock):
    class Small(Timed):
        def run(self, sequences):
            if sum(map(len, sequences)) > 600:
                raise MemoryError
            return super().run(sequences)

    assert [p.tokens for p in measure(clock(Small(lambda n: 0.010)), 256).points] == [256, 512]


def test_what_was_found_is_looked_up_at_the_next_start(clock, tmp_path):
    file = tmp_path / "tuning.json"
    encoder = clock(Timed(lambda n: 0.010 + 1e-6 * n))
    found = Tuning(file).bulk_batches(encoder, 256, where="here")
    assert found == (1024, pytest.approx(1024 / 0.011024, rel=0.05))
    ran = len(encoder.batches)
    assert Tuning(file).bulk_batches(encoder, 256, where="here") == found
    assert len(encoder.batches) == ran
    # Elsewhere, or another artifact, is another question.
    Tuning(file).bulk_batches(encoder, 256, where="there")
    assert len(encoder.batches) > ran
    other = clock(Timed(lambda n: 1e-6 * n, name="other"))
    assert Tuning(file).bulk_batches(other, 256, where="here").tokens == 256
    assert len(json.loads(file.read_text())) == 3


def test_a_busy_machine_is_not_remembered_and_the_log_says_so(clock, tmp_path, caplog):
    caplog.set_level("INFO")
    times = iter([0.001, *[0.010, 0.011, 0.012] * 2, 0.020, 0.011, 0.012])
    encoder = clock(Timed(lambda _: next(times)))
    Tuning(tmp_path / "tuning.json").bulk_batches(encoder, 256, where="here")
    assert not (tmp_path / "tuning.json").exists()
    said = [r for r in caplog.records if "not kept" in r.message]
    assert [(r.levelname, "the machine was busy" in r.message) for r in said] == [("INFO", True)]


def test_a_machine_that_is_only_slow_is_not_called_busy(clock, tmp_path, caplog):
    caplog.set_level("INFO")
    for seconds in (lambda n: 0.05 * n, lambda n: 0.11 if n > 100 else 1e-6):
        Tuning(tmp_path / "t.json").bulk_batches(clock(Timed(seconds)), 256, where="here")
    assert "busy" not in caplog.text


@pytest.mark.parametrize("content", [b"", b"\xff{", b"[]", b'{"x": 1}', b"known"])
def test_a_file_that_is_nonsense_is_written_anew(clock, tmp_path, content):
    file = tmp_path / "tuning.json"
    encoder = clock(Timed(lambda n: 0.010 + 1e-6 * n))
    if content == b"known":  # a key, with what an earlier version kept
        Tuning(file).bulk_batches(encoder, 256, where="here")
        content = json.dumps(dict.fromkeys(json.loads(file.read_text()), 512)).encode()
    file.write_bytes(content)
    assert Tuning(file).bulk_batches(encoder, 256, where="here").tokens == 1024
    assert 1024 in [kept["tokens"] for kept in json.loads(file.read_text()).values() if kept != 1]


def test_a_folder_that_cannot_be_written_is_done_without(clock, tmp_path):
    encoder = clock(Timed(lambda n: 0.010 + 1e-6 * n))
    file = tmp_path / "none" / "tuning.json"
    assert Tuning(file).bulk_batches(encoder, 256, where="here").tokens == 1024


def test_the_settings_have_the_last_word():
    encoder = FakeEncoder()

    async def allowed(**settings: int) -> int:
        class Never(Tuning):
            def bulk_batches(self, *_, **__):
                raise AssertionError

        encoders = Encoders([encoder], Settings(**settings), Metrics(), tuning=Never(None))
        await encoders.tune(encoders.default)
        return encoders.default.batcher.bulk_batch_tokens

    assert asyncio.run(allowed(bulk_batch_tokens=3000)) == 3000
    assert asyncio.run(allowed(bulk_batch_tokens=10)) == 1024, "never fewer than others get"


def test_who_is_refused_early_is_told_a_wait_by_what_was_measured():
    class Known(Tuning):
        def bulk_batches(self, *_, **__):
            return Point(1024, 5_000.0)

    encoder = FakeEncoder()

    async def told() -> float:
        settings = Settings(bulk_batch_tokens=0)
        encoders = Encoders([encoder], settings, Metrics(), tuning=Known(None))
        await encoders.tune(encoders.default)
        batcher = encoders.default.batcher
        batcher.start()
        encoder.gate.clear()
        work = []
        for n, waiting in enumerate((0, 200_000)):  # one runs, and one waits
            texts = [np.full(200_000, n, np.int64)]
            work.append(asyncio.create_task(batcher.submit(texts, client=n)))
            while batcher.queued_tokens != waiting or not batcher.running_s():
                await asyncio.sleep(0.001)
        refusal = batcher.refusal(100_000, lane="interactive", client="other")
        encoder.gate.set()
        await asyncio.gather(*work)
        await encoders.stop()
        assert refusal is not None
        return refusal.retry_after_s

    assert asyncio.run(told()) == pytest.approx(200_000 / 5_000)


def test_the_service_measures_at_its_first_start_and_says_what(tmp_path):
    server = start_server(tmp_path, demo="false", bulk_batch_tokens=0)
    try:
        wait_until_ready(server)
        assert "run at" in server.log.read_text()
        texts = [f"Good morning, number {i}" for i in range(500)]
        answer = httpx.post(f"{server.url}/v1/embeddings", json={"input": texts}, timeout=60)
        assert answer.status_code == 200
    finally:
        server.process.terminate()
        assert server.process.wait(60) == 0
