"""What a small client notices of a large one, in simulated time: an engine whose batches take what a line
says, two cores' worth of the default model, and clients with a realistic mix of lengths. Nothing here
depends on the machine that runs it; `benchmarks/lanes.py` measures the same on a real server."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest

from service.engine.batcher import PATIENCE
from service.engine.cost import BatchCost
from service.engine.lanes import Entry, Lanes, entries_by_receiver

BASE_S, TOKEN_S = 1.5e-3, 22e-6  # of a batch, and of each of its tokens
SECONDS = 10
SMALL_PER_S = 20


class Outcome(NamedTuple):
    """waits: of the small client's requests, in seconds. large_per_s: the large one's requests."""

    waits: list[float]
    large_per_s: float


def lengths(draw: random.Random) -> Iterator[int]:
    """Tokens of one request after another: a sentence, every eighth time about four in one text."""
    while True:
        sentences = 4 if draw.random() < 1 / 8 else 1
        yield sum(max(4, int(draw.lognormvariate(2.9, 0.4))) for _ in range(sentences))


def simulate(*, connections: int, small: bool = True, seed: int = 0) -> Outcome:
    """connections: of the large client, each of which sends when its last answer has come."""
    draw = random.Random(seed)
    length, number = lengths(draw), itertools.count()
    lanes = Lanes(max_batch_tokens=1024, max_batch_items=64, pads=False)
    cost, alone_tokens = BatchCost(), 32.0
    coming: list[tuple[float, int, str]] = []
    running: list[Entry] = []
    waits: list[float] = []
    large = 0

    def come(at: float, what: str) -> None:
        heapq.heappush(coming, (at, next(number), what))

    for _ in range(connections):
        come(draw.random() * 0.05, "large")
    if small:
        come(0.5, "small")
    took = 0.0
    while coming[0][0] < SECONDS:
        now, n, what = heapq.heappop(coming)
        if what == "done":
            lanes.finish(running)
            cost.observe(sum(map(len, running)), took)
            for (who, since), _, _ in entries_by_receiver(running):
                if who == "small":
                    waits.append(now - since)
                else:
                    large += 1
                    come(now + draw.random() * 0.01, "large")
            running = []
        else:
            tokens = next(length)
            alone_tokens += 0.05 * (tokens - alone_tokens)
            lanes.add(
                np.full(tokens, n), ((what, now), 0), lane="interactive", client=what, now=now
            )
            if what == "small":
                come(now + draw.expovariate(SMALL_PER_S), "small")
        if lanes.items and not running:
            quantum = cost.tokens_within(PATIENCE * cost.seconds(alone_tokens))
            running = lanes.take(now, quantum=quantum)
            took = BASE_S + TOKEN_S * sum(map(len, running))
            come(now + took, "done")
    return Outcome(waits, large / SECONDS)


def p99_s(connections: int) -> float:
    """Of the small client's waits, over twelve seeds: of three at a time it varies by a tenth."""
    runs = [simulate(connections=connections, seed=seed) for seed in range(12)]
    assert all(len(run.waits) > 0.7 * SMALL_PER_S * SECONDS for run in runs)
    return float(np.percentile([wait for run in runs for wait in run.waits], 99))


@pytest.mark.parametrize("connections", [8, 16, 64, 256])
def test_a_small_client_waits_at_most_twice_as_long_beside_a_large_one(connections):
    assert p99_s(connections) <= 2 * p99_s(0)


def test_and_the_large_one_keeps_two_fifths_of_what_it_had_alone():
    alone = simulate(connections=64, small=False)
    assert simulate(connections=64).large_per_s >= 0.4 * alone.large_per_s
