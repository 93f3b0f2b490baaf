"""Models, batches and calls as they may be or come from careless callers, one of each kernel a case.

A case is a function of a seeded generator and a kernel's name, and ends with the right vectors or a
clear exception. A sanitizer's report ends the process; a wrong vector or another exception is an
AssertionError.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np

from mexma.native import NativeEncoder
from mexma.weights import EncoderWeights, Table
from tests.mexma.test_native import (
    ARITHMETIC,
    BOUND,
    VOCABULARY,
    cosine,
    random_weights,
    reference,
    run,
)

Rng = np.random.Generator
THREADS = (1, 2, 3, 4, 8, 16)
PLACES = (1, 2, 17, 33, 64, 512)
MOST_TOKENS = 400  # of a batch; built so, the engine takes some hundred times as long


def pick(rng: Rng, among: Any) -> Any:
    return among[int(rng.integers(len(among)))]


def any_weights(rng: Rng) -> EncoderWeights:
    hidden = 32 * int(rng.integers(1, 6))
    weights = random_weights(
        hidden=hidden,
        heads=pick(rng, [n for n in range(1, hidden + 1) if hidden % n == 0 and hidden // n >= 8]),
        intermediate=int(rng.integers(1, 200)),
        layers=int(rng.integers(1, 3)),
        head=pick(rng, [None, 1, int(rng.integers(2, 100))]),
        seed=int(rng.integers(1000)),
    )
    table = weights.table
    bits = pick(rng, [32, 4, 8])
    if bits != 32:
        codes = rng.integers(0, 256, VOCABULARY * hidden * bits // 8).astype(np.uint8)
        scales = rng.normal(0, 0.2, VOCABULARY * hidden // 32).astype(np.float16)
        table = Table(codes, scales, bits, VOCABULARY)
    elif rng.random() < 0.2:
        codes = table.codes.copy()
        codes[rng.integers(codes.size)] = pick(rng, [np.nan, np.inf, -3e38, 1e-42])
        table = replace(table, codes=codes)
    return replace(weights, table=table, positions=weights.positions[: pick(rng, PLACES)])


def any_engine(weights: EncoderWeights, rng: Rng, kernel: str) -> NativeEncoder:
    return NativeEncoder(
        weights,
        kernel=kernel,
        threads=pick(rng, THREADS),
        mean_pooling=bool(rng.integers(2)),
        normalise=bool(rng.integers(2)),
        piece_tokens=pick(rng, (1, 7, 64, 512)),
    )


def any_batch(rng: Rng, places: int, most: int = MOST_TOKENS) -> list[np.ndarray]:
    """1 to 40 sequences: short ones, those of the most tokens, and between."""
    sequences: list[np.ndarray] = []
    total = 0
    for _ in range(int(pick(rng, [rng.integers(1, 5), rng.integers(1, 41)]))):
        short = min(40, places)
        length = int(
            pick(rng, [1, places, rng.integers(1, short + 1), rng.integers(1, places + 1)])
        )
        if sequences and total + length > most:
            continue
        total += length
        ids = rng.integers(0, VOCABULARY, length)
        ids[rng.integers(length)] = pick(rng, [0, VOCABULARY - 1])
        sequences.append(ids)
    return sequences


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=True)


def sound(rng: Rng, kernel: str) -> None:
    """A model and a batch as they may be: the same bits as each sequence alone, near to numpy's."""
    weights = any_weights(rng)
    state = rng.bit_generator.state
    engine = any_engine(weights, rng, kernel)
    for _ in range(2):  # in memory that the first has left, too
        sequences = any_batch(rng, len(weights.positions))
        together = run(engine, sequences)
        assert same(together, np.concatenate([run(engine, [s]) for s in sequences]))
        lengths = np.array([len(s) for s in sequences], np.int32)
        states = engine.token_states(np.concatenate(sequences), lengths)
        assert states.shape == (lengths.sum(), weights.positions.shape[1])
    rng.bit_generator.state = state
    plain = NativeEncoder(
        weights, kernel=kernel, threads=1, mean_pooling=True, normalise=True, piece_tokens=512
    )
    ids = min(sequences, key=len)[:64]
    (vector,) = run(plain, [ids])
    if weights.table.bits == 32 and np.abs(vector).sum() > 0 and weights.head is None:
        with np.errstate(all="ignore"):
            expected = reference(weights, ids)
        if np.isfinite(expected).all() and np.abs(weights.table.codes).max() < 100:
            assert cosine(vector, expected) > BOUND[ARITHMETIC[kernel]], cosine(vector, expected)


def bad_call(rng: Rng, kernel: str) -> None:
    """Lengths and ids that the model does not have are refused, and the next call is right."""
    weights = any_weights(rng)
    engine, places = any_engine(weights, rng, kernel), len(weights.positions)
    sequences = any_batch(rng, places, 300)
    expected = run(engine, sequences)
    ids, lengths = np.concatenate(sequences), np.array([len(s) for s in sequences], np.int32)
    at, which = int(rng.integers(len(ids))), int(rng.integers(len(lengths)))
    way = int(rng.integers(6))
    if way == 0:
        ids[at] = pick(rng, [-1, VOCABULARY, -(2**63), 2**63 - 1, 2**31, VOCABULARY + 2**32])
    elif way == 1:  # the most tokens and one beyond, with ids enough for it
        lengths[which] += places + 1 - lengths[which]
        ids = np.resize(ids, lengths.sum())
    elif way == 2:
        lengths[which] = pick(rng, [0, -1, places + 1, 2**31 - 1, -(2**31)])
    elif way == 3:  # adds up all the same
        lengths = np.append(lengths, [-3, 3]).astype(np.int32)
    elif way == 4:
        ids = ids[: rng.integers(len(ids))]
    else:
        lengths = lengths.astype(np.int64)
    try:
        engine.run(ids, lengths)
    except (IndexError, ValueError):
        pass
    else:
        raise AssertionError(f"taken: {way}, {ids}, {lengths}")
    assert same(run(engine, sequences), expected)
    assert engine.run(ids[:0], lengths[:0].astype(np.int32)).shape == (0, expected.shape[1])
    odd = np.frombuffer(b"x" + np.concatenate(sequences).tobytes(), np.uint8)[1:].view(np.int64)
    own = np.array([len(s) for s in sequences], np.int32)
    assert same(engine.run(odd, own), expected)  # at an odd address


def several_callers(rng: Rng, kernel: str) -> None:
    """Three callers of one engine and of one each, engines going while others compute."""
    weights = any_weights(rng)
    shared = any_engine(weights, rng, kernel)
    batches = [any_batch(rng, len(weights.positions), 300) for _ in range(3)]
    expected = [run(shared, batch) for batch in batches]
    seeds = [int(rng.integers(2**31)) for _ in batches]
    wrong: list[object] = []

    def call(which: int) -> None:
        try:
            own_rng = np.random.default_rng(seeds[which])
            for _ in range(3):
                if not same(run(shared, batches[which]), expected[which]):
                    wrong.append(which)
                own = any_engine(weights, own_rng, kernel)
                own.run(
                    np.concatenate(batches[which]),
                    np.array([len(s) for s in batches[which]], np.int32),
                )
        except Exception as error:  # noqa: BLE001 - for the thread that waits
            wrong.append(error)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong
