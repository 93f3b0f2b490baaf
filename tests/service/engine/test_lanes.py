"""Whose turn it is: the order of batches, with times as arguments and no engine at all."""

from __future__ import annotations

import itertools
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.lanes import ABOUT_S, BULK_SHARE, LOOKAHEAD, Entry, Lane, Lanes

LONG_AGO = -100 * ABOUT_S
QUANTUM = 40


class Waiting:
    """Lanes with what a test needs around them: every sequence is another one."""

    def __init__(self, *, max_batch_tokens: int = 200, max_batch_items: int = 8, pads: bool = True):
        self.lanes = Lanes(
            max_batch_tokens=max_batch_tokens, max_batch_items=max_batch_items, pads=pads
        )
        self.number = itertools.count()

    def add(
        self,
        client: str,
        *lengths: int,
        lane: Lane = "interactive",
        now: float = 0.0,
        first: bool = False,
    ) -> list[Entry]:
        return [
            self.lanes.add(
                np.full(n, next(self.number)),
                (client, i),
                lane=lane,
                client=client,
                now=now,
                first=first,
            )
            for i, n in enumerate(lengths)
        ]

    def take(self, now: float = 0.0, quantum: float = QUANTUM) -> list[Entry]:
        batch = self.lanes.take(now, quantum=quantum)
        self.lanes.finish(batch)
        return batch


def clients(batch: list[Entry]) -> set[str]:
    return {str(entry.client) for entry in batch}


def tokens(batch: list[Entry]) -> int:
    return sum(map(len, batch))


def test_an_interactive_sequence_goes_before_all_bulk_work():
    waiting = Waiting()
    waiting.add("job", *[10] * 100, lane="bulk", now=LONG_AGO)
    waiting.take(LONG_AGO)
    waiting.add("person", 10)
    assert clients(waiting.take()) == {"person"}
    assert clients(waiting.take()) == {"job"}


def test_a_long_text_of_a_light_client_is_not_computed_among_all_of_a_heavy_one_s():
    waiting = Waiting(max_batch_tokens=2000, max_batch_items=100, pads=False)
    waiting.add("heavy", *[10] * 64)
    waiting.take()
    waiting.add("heavy", *[10] * 64)
    waiting.add("light", 3 * QUANTUM)
    batch = waiting.take()
    assert "light" in clients(batch)
    assert tokens(batch) <= 4 * QUANTUM
    assert tokens(waiting.take()) <= QUANTUM, "it may come again"


def test_bulk_batches_are_larger_while_nobody_else_is_about_and_only_then():
    waiting = Waiting(max_batch_tokens=200, max_batch_items=20)
    waiting.lanes.bulk_batch_tokens = 800
    waiting.add("job", *[10] * 1000, lane="bulk")
    assert tokens(waiting.take()) == 800
    waiting.add("person", 10, now=1.0)
    assert clients(waiting.take(1.0)) == {"person"}
    assert tokens(waiting.take(1.0)) == QUANTUM  # a light client is about
    later = 1.0 + 2 * ABOUT_S
    waiting.add("many", *[10] * 60, now=later)
    batches = [waiting.take(later) for _ in range(3)]
    assert [clients(batch) for batch in batches] == [{"many"}, {"many"}, {"job"}]
    assert tokens(batches[2]) == 200  # one that is not light
    waiting.take(later)
    assert tokens(waiting.take(later + 2 * ABOUT_S)) == 800


def test_bulk_work_fills_batches_until_an_interactive_client_is_about():
    waiting = Waiting()
    waiting.add("job", *[10] * 100, lane="bulk", now=LONG_AGO)
    assert tokens(waiting.take(LONG_AGO)) == 80  # eight items
    waiting.add("person", 10, now=0.0)
    waiting.take(0.0)
    assert tokens(waiting.take(0.1)) == QUANTUM
    assert tokens(waiting.take(ABOUT_S)) == QUANTUM
    assert tokens(waiting.take(ABOUT_S + 0.1)) == 80


def test_bulk_work_gets_its_share_while_interactive_work_never_ends():
    waiting = Waiting()
    waiting.add("job", *[10] * 2000, lane="bulk")
    taken = {"interactive": 0, "bulk": 0}
    for step in range(1000):
        waiting.add("person", *[10] * 10, now=step)
        batch = waiting.take(step)
        taken[batch[0].lane] += tokens(batch)
    assert taken["bulk"] == pytest.approx(taken["interactive"] / BULK_SHARE, rel=0.05)


def test_a_sequence_longer_than_any_budget_is_run_alone_in_either_lane():
    for lane in ("interactive", "bulk"):
        waiting = Waiting()
        waiting.add("a", 500, 10, lane=lane)
        waiting.add("person", 10)
        batches = [waiting.take() for _ in range(3)]
        assert [500] in [[len(e) for e in batch] for batch in batches]


@pytest.mark.parametrize("lane", ["interactive", "bulk"])
def test_clients_share_a_lane_evenly_whoever_sends_how_much(lane):
    waiting = Waiting()
    taken = dict.fromkeys(["greedy", "steady"], 0)
    waiting.add("greedy", *[10] * 5000, lane=lane)
    for step in range(300):
        now = LONG_AGO  # nobody is about: it is shares that count here, not quanta
        if waiting.lanes.tokens_of("steady") < 100:
            waiting.add("steady", *[10] * 10, lane=lane, now=now)
        for entry in waiting.take(now + step):
            taken[entry.client] += len(entry)
    assert taken["greedy"] == pytest.approx(taken["steady"], rel=0.1)


def test_a_light_client_waits_for_one_quantum_of_a_heavy_one_at_most():
    """One client sends a hundred times more; the other one's sequence is in the next batch, and no
    batch, its own included, holds more than a quantum of the heavy client's."""
    waiting = Waiting()
    waiting.add("heavy", *[10] * 500)
    waiting.add("light", 10)
    for step in range(40):
        batch = waiting.take(step * 0.1)
        assert sum(len(e) for e in batch if e.client == "heavy") <= QUANTUM
        if step % 4 == 0:
            waiting.add("light", 10, now=step * 0.1)
            assert "light" in clients(waiting.take(step * 0.1))


def test_a_long_sequence_of_a_heavy_client_waits_for_its_own_turn():
    """Longer than a quantum by itself, it would make the light client's batch as long as it is."""
    waiting = Waiting(pads=False)
    waiting.add("heavy", *[2 * QUANTUM] * 50)
    waiting.take(0)  # the heavy client has been served
    waiting.add("light", 10)
    assert clients(waiting.take(0.1)) == {"light"}
    assert clients(waiting.take(0.2)) == {"heavy"}, "and it is not forgotten"


def test_a_heavy_client_alone_fills_batches():
    waiting = Waiting()
    waiting.add("heavy", *[10] * 500)
    assert tokens(waiting.take()) == 80


def test_many_light_clients_fill_batches():
    waiting = Waiting()
    for i in range(20):
        waiting.add(f"client {i}", 10)
    assert tokens(waiting.take()) == 80


def test_being_away_earns_nothing():
    """A client that comes after a long time shares from then on; it does not catch up."""
    waiting = Waiting()
    waiting.add("first", *[10] * 1000)
    for _ in range(50):
        waiting.take()
    waiting.add("late", *[10] * 1000)
    taken = dict.fromkeys(["first", "late"], 0)
    for _ in range(40):
        for entry in waiting.take():
            taken[entry.client] += len(entry)
    assert taken["first"] == pytest.approx(taken["late"], rel=0.2)


def test_a_flood_does_not_hide_others_from_length_grouping():
    waiting = Waiting()
    waiting.add("flood", *[50] * (3 * LOOKAHEAD), now=LONG_AGO)
    waiting.add("other", 7, now=LONG_AGO)
    assert [len(e) for e in waiting.take(0)] == [50] * 4
    assert clients(waiting.take(0)) == {"other"}


def test_batches_of_a_gpu_are_grouped_by_length_among_enough():
    lanes = Lanes(max_batch_tokens=16_384, max_batch_items=512)
    for number in range(2048):
        ids = np.full(8 + number * 13 % 56, number)
        lanes.add(ids, (number, 0), lane="bulk", client=number % 4, now=LONG_AGO)
    batch = [len(e) for e in lanes.take(0, quantum=inf)]
    assert len(batch) == 512 or len(batch) * max(batch) > 0.95 * 16_384


def test_equal_sequences_are_computed_once():
    lanes = Lanes(max_batch_tokens=100, max_batch_items=8)
    ids = np.arange(10)
    first = lanes.add(ids, ("a", 0), lane="bulk", client="a", now=0)
    assert lanes.add(ids.copy(), ("b", 3), lane="bulk", client="b", now=0) is first
    assert (lanes.items, lanes.tokens) == (1, 10)
    (taken,) = lanes.take(0, quantum=10)
    late = lanes.add(ids, ("c", 0), lane="bulk", client="c", now=0)
    assert late is taken, "what runs can be joined"
    assert lanes.take(0, quantum=10) == []
    assert [r[0] for r in taken.receivers] == ["a", "b", "c"]
    lanes.finish([taken])
    assert lanes.add(ids, ("d", 0), lane="bulk", client="d", now=0) is not first


def test_bulk_work_that_an_interactive_request_waits_for_is_no_longer_bulk():
    waiting = Waiting()
    waiting.add("job", *[10] * 50, lane="bulk")
    wanted = waiting.add("job", 11, lane="bulk")[0]
    joined = waiting.lanes.add(
        wanted.ids, ("person", 0), lane="interactive", client="person", now=0
    )
    assert joined is wanted
    assert waiting.take() == [wanted]


def test_what_nobody_wants_any_more_leaves():
    lanes = Lanes(max_batch_tokens=100, max_batch_items=8)
    ids = np.arange(10)
    entry = lanes.add(ids, ("a", 0), lane="bulk", client="a", now=0)
    lanes.add(ids, ("b", 0), lane="bulk", client="b", now=0)
    lanes.leave(entry, "a")
    assert lanes.items == 1, "somebody still waits for it"
    lanes.leave(entry, "b")
    assert (lanes.items, lanes.tokens, lanes.clients()) == (0, 0, 0)
    lanes.leave(entry, "b")  # twice harms nothing
    assert lanes.items == 0


def test_clients_that_are_gone_are_forgotten():
    waiting = Waiting()
    for i in range(1000):
        waiting.add(f"client {i}", 5, now=i)
        waiting.take(i)
    flows = sum(len(queue.flows) for queue in waiting.lanes._queues.values())
    assert flows < 50


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["interactive", "bulk"]),
            st.sampled_from("abc"),
            st.integers(1, 60),
            st.integers(0, 3),
        ),
        max_size=60,
    ),
    st.integers(1, 100),
)
def test_everything_that_comes_is_taken_once(arrivals, quantum):
    """Whatever comes in whatever order: each sequence runs exactly once, and the books balance."""
    waiting = Waiting(max_batch_tokens=100, max_batch_items=4)
    come, gone = [], []
    for step, (lane, client, length, takes) in enumerate(arrivals):
        come += waiting.add(client, length, lane=lane, now=step)
        for _ in range(takes):
            gone += waiting.take(step, quantum)
    while batch := waiting.take(len(arrivals), quantum):
        gone += batch
    assert len(gone) == len(come)
    assert {id(e) for e in gone} == {id(e) for e in come}
    assert (waiting.lanes.items, waiting.lanes.tokens) == (0, 0)


@pytest.mark.parametrize(("pads", "together"), [(True, [60, 60]), (False, [60, 20, 3])])
def test_an_engine_that_does_not_pad_gets_any_lengths_together(pads, together):
    """What a batch costs it is its tokens: 60 + 20 + 3 of 100, and not a rectangle of 3 by 60."""
    lanes = Lanes(max_batch_tokens=120 if pads else 100, max_batch_items=8, pads=pads)
    for n, length in enumerate([60, 20, 3, 60]):
        lanes.add(np.full(length, n), (n, 0), lane="bulk", client="a", now=0)
    assert sorted((len(e.ids) for e in lanes.take(0, quantum=100)), reverse=True) == together


def test_an_engine_that_does_not_pad_finishes_one_request_before_it_begins_the_next():
    """Lengths as they come, whatever they are: grouped by length, both would be in every batch."""
    waiting = Waiting(max_batch_tokens=100, max_batch_items=100, pads=False)
    first = waiting.add("a", 5, 60, 10, 25)
    second = waiting.add("a", 5, 60, 10, 25)
    assert waiting.take() == first
    assert waiting.take() == second


def test_clients_share_each_batch_of_an_engine_that_does_not_pad_and_the_rest_fills_it():
    waiting = Waiting(max_batch_tokens=200, max_batch_items=100, pads=False)
    for client in ("a", "b"):
        waiting.add(client, *[10] * 50)
    waiting.add("c", 10)
    by_client = dict.fromkeys("abc", 0)
    for entry in waiting.take(quantum=inf):
        by_client[entry.client] += len(entry)
    assert by_client == {"a": 100, "b": 90, "c": 10}
    waiting.add("d", *[10] * 3)
    batch = waiting.take(quantum=inf)
    assert tokens(batch) == 200 and clients(batch) == {"a", "b", "d"}


def test_so_they_do_where_texts_are_counted():
    waiting = Waiting(max_batch_tokens=10_000, max_batch_items=8, pads=False)
    for client in ("a", "b", "c"):
        waiting.add(client, *[10] * 50)
    batch = waiting.take(quantum=inf)
    assert len(batch) == 8
    assert sorted(sum(e.client == c for e in batch) for c in "abc") == [2, 3, 3]


def test_a_long_text_that_does_not_fit_waits_for_its_turn_and_nothing_of_its_client_overtakes_it():
    waiting = Waiting(max_batch_tokens=100, max_batch_items=100, pads=False)
    waiting.add("a", *[10] * 5)
    long, *_ = waiting.add("b", 90, 10)
    assert clients(waiting.take(quantum=inf)) == {"a"}
    waiting.add("a", 10)
    batch = waiting.take(quantum=inf)
    assert batch[0] is long and tokens(batch) == 100


def wait_s(waiting: Waiting, client: str, lane: Lane = "interactive", now: float = 0.0) -> float:
    return waiting.lanes.wait_s(client, lane, 10, tokens_per_s=100.0, now=now)


def test_a_wait_is_predicted_from_what_goes_before():
    waiting = Waiting()
    waiting.add("heavy", *[20] * 50, now=LONG_AGO)  # 1,000 tokens
    waiting.add("other", 30, now=LONG_AGO)
    assert wait_s(waiting, "heavy") == pytest.approx(10.3)
    assert wait_s(waiting, "light") == pytest.approx(0.2)  # ten tokens of each go before its own
    assert wait_s(waiting, "job", "bulk") == pytest.approx(10.3)
    waiting.add("job", *[20] * 50, lane="bulk", now=LONG_AGO)
    slower = 1 + 1 / BULK_SHARE
    assert wait_s(waiting, "heavy") == pytest.approx(10.3 * slower)


def test_what_will_come_of_others_meanwhile_goes_before_what_waits_of_one():
    """Fifteen who send what the engine can do, and have nothing waiting, and one who has: its work
    runs in what they leave."""
    waiting = Waiting(max_batch_items=1)
    for second in range(40):
        for client in range(15):
            waiting.add(str(client), 6, now=float(second))  # 90 of 100 tokens a second
        while waiting.lanes.items:
            waiting.take(float(second))
    waiting.add("unlucky", *[10] * 20, now=39.0)
    left = 100 / 16  # of 90 that come a second not more than its share is taken
    assert 200 / 15 < wait_s(waiting, "unlucky", now=39.0) <= 200 / left
    assert wait_s(waiting, "0", now=39.0) < 0.5
    assert wait_s(waiting, "unlucky", now=39.0 + 10 * ABOUT_S) == pytest.approx(2.0)


def test_what_comes_first_of_a_client_goes_before_what_waits_of_it_and_not_of_others():
    waiting = Waiting(max_batch_items=1)
    waiting.add("a", 10, 11)
    waiting.add("b", 12)
    (entry,) = waiting.add("a", 13, first=True)
    assert waiting.take() == [entry]
    assert clients(waiting.take()) == {"b"}
