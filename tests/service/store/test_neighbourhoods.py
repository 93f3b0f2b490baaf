"""What is remembered of each row's nearest equals what a comparison with all rows finds, always."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import faiss
import numpy as np
import pytest

from service.store import caretaker, index, nearest, neighbourhoods, planner, scan
from service.store.approximate import Approximate, Shape
from service.store.index import Snapshot
from service.store.neighbourhoods import Neighbourhoods
from service.store.threads import ThreadBudget

DIM = 8
THREADS = ThreadBudget(2)


def anew(snapshot: Snapshot, positions: np.ndarray) -> np.ndarray:
    """Without anything remembered."""
    return nearest.neighbourhood(replace(snapshot, neighbourhoods=Neighbourhoods()), positions)


def plainly(snapshot: Snapshot, position: int) -> float:
    """Mean cosine to the 4 nearest others, as it is said."""
    alive = np.flatnonzero(snapshot.alive)
    rows = snapshot.vectors(alive).astype(np.float64)
    cosines = rows @ snapshot.vectors(np.array([position]))[0].astype(np.float64)
    return float(np.sort(cosines[alive != position])[::-1][:4].mean())


class Rows:
    """A snapshot that is changed at random. Vectors repeat, so that there are ties and duplicates."""

    def __init__(self, seed: int):
        self.random = np.random.default_rng(seed)
        self.kinds = self.random.standard_normal((40, DIM)).astype(np.float32)
        self.snapshot = Snapshot(DIM, THREADS)
        self.rid = 0

    def change(self, add: int, drop: int) -> None:
        alive = self.snapshot.rids[self.snapshot.alive]
        dead = np.sort(self.random.choice(alive, min(drop, len(alive)), replace=False))
        kinds = self.kinds[self.random.integers(0, len(self.kinds), add)]
        noise = self.random.standard_normal((add, DIM)) * self.random.choice([0, 0.3], (add, 1))
        vectors = (kinds + noise).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        rids = np.arange(self.rid + 1, self.rid + 1 + add)
        self.rid += add
        self.snapshot = self.snapshot.changed(dead, rids, ["en"] * add, vectors, [{}] * add)

    def some(self, n: int) -> np.ndarray:
        alive = np.flatnonzero(self.snapshot.alive)
        return self.random.choice(alive, min(n, len(alive)))  # with repetitions


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(index, "BLOCK_ROWS", 32)
    monkeypatch.setattr(index, "COMPACT_ABOVE_DEAD", 60)


@pytest.mark.parametrize("behind", [0, 15, 10_000])
def test_remembered_equals_recomputed_to_the_bit(monkeypatch, behind):
    """Through adds, deletes and compactions, asked about some rows now and others later."""
    monkeypatch.setattr(nearest, "BEHIND_ROWS", behind)
    rows, compactions = Rows(behind), 0
    for step in range(100):
        before = rows.snapshot.neighbourhoods
        # It grows, then shrinks to nothing, then grows again.
        grows = step % 50 < 30
        rows.change(*((int(rows.random.integers(0, 9)), 2) if grows else (1, 9)))
        compactions += rows.snapshot.neighbourhoods is not before
        asked = rows.some(12)
        found = nearest.neighbourhood(rows.snapshot, asked)
        np.testing.assert_array_equal(found, anew(rows.snapshot, asked))
        if len(asked) and len(rows.snapshot) > 1:
            assert found[0] == pytest.approx(plainly(rows.snapshot, asked[0]), abs=1e-6)
    assert compactions > 1


def test_a_row_alone_has_no_neighbourhood_and_later_has():
    rows = Rows(1)
    for n in range(7):
        rows.change(1, 0)
        found = nearest.neighbourhood(rows.snapshot, np.array([0]))
        assert np.isnan(found[0]) if n == 0 else found[0] == anew(rows.snapshot, np.array([0]))[0]


def test_a_write_costs_one_comparison_with_what_it_wrote(monkeypatch):
    rows = Rows(2)
    rows.change(300, 0)
    asked = np.arange(200)
    nearest.neighbourhood(rows.snapshot, asked)
    compared = []
    before = scan.best

    def counting(snapshot, queries, fetch, mask):
        compared.append(len(queries) * int(np.count_nonzero(mask)))
        return before(snapshot, queries, fetch, mask)

    monkeypatch.setattr(scan, "best", counting)
    nearest.neighbourhood(rows.snapshot, asked)
    assert compared == [], "nothing was written"
    rows.change(9, 0)
    monkeypatch.setattr(nearest, "_exactly", _counted(nearest._exactly, compared))
    nearest.neighbourhood(rows.snapshot, asked)
    assert 0 < sum(compared) <= 200 * 9, "200 rows and 9 new ones; anew it would be 200 times 309"


def _counted(exactly, compared):
    def counting(snapshot, queries, positions):
        compared.append(positions.size)
        return exactly(snapshot, queries, positions)

    return counting


def test_a_reader_of_an_older_state_is_told_nothing_newer():
    rows = Rows(3)
    rows.change(120, 0)
    older, asked = rows.snapshot, np.arange(50)
    expected = anew(older, asked)
    rows.change(40, 30)
    live = asked[rows.snapshot.alive[asked]]
    newer = nearest.neighbourhood(rows.snapshot, live)
    np.testing.assert_array_equal(nearest.neighbourhood(older, asked), expected)
    np.testing.assert_array_equal(nearest.neighbourhood(rows.snapshot, live), newer)
    np.testing.assert_array_equal(newer, anew(rows.snapshot, live))


def test_readers_and_a_writer_at_once():
    rows, wrong = Rows(4), []
    rows.change(150, 0)

    def read(seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(25):
            snapshot = rows.snapshot
            alive = np.flatnonzero(snapshot.alive)
            asked = np.array(choose.sample(alive.tolist(), 10))
            found, expected = nearest.neighbourhood(snapshot, asked), anew(snapshot, asked)
            if not np.array_equal(found, expected):
                wrong.append((asked, found, expected))

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read, seed) for seed in range(4)]
        while not all(reader.done() for reader in readers):
            rows.change(5, 5)
        for reader in readers:
            reader.result()
    assert not wrong


def test_an_index_proposes_and_what_is_exact_stays_exact(monkeypatch):
    """With an index the 4 are those it finds: never nearer than the nearest; written rows count."""
    monkeypatch.setattr(planner, "EXACT_ROWS", 10)
    monkeypatch.setattr(planner, "EXACT_FETCH", 1)
    assert caretaker.planner is planner
    faiss.omp_set_num_threads(1)
    rows = Rows(5)
    rows.change(600, 0)
    shape = Shape("IVF8,PQ8x4fs", 0)
    state = rows.snapshot
    built = Approximate.build(
        shape, state.rids, 600, lambda s: state.vectors(np.arange(600)[s]), bool
    )
    rows.snapshot = rows.snapshot.attaching(built)
    precise, rough = np.arange(0, 100), np.arange(100, 200)
    nearest.neighbourhood(rows.snapshot, precise, exact=True)
    for _ in range(10):
        for asked in (precise, rough):
            live = asked[rows.snapshot.alive[asked]]
            expected = anew(rows.snapshot, live)
            found = nearest.neighbourhood(rows.snapshot, live, exact=False)
            assert (found <= expected).all()
            assert np.mean(found == expected) > 0.95, "8 bits and a graph misplace few of so few"
            np.testing.assert_array_equal(
                nearest.neighbourhood(rows.snapshot, precise[rows.snapshot.alive[precise]]),
                anew(rows.snapshot, precise[rows.snapshot.alive[precise]]),
            )
        rows.change(8, 3)
    assert neighbourhoods.BEHIND_ROWS > 1_000
