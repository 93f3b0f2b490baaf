"""What a refusal tells, and whether it is true; with times as arguments."""

from __future__ import annotations

from itertools import pairwise

import pytest

from service.engine import claims
from service.engine.claims import GRACE_S, LONGEST_S, MAX_CLAIMS, SHARE, Claims

RATE = 100.0


def tell(made: Claims, key, tokens=10, wait_s=2.0, now=0.0):
    return made.tell(key, tokens, wait_s, tokens_per_s=RATE, now=now)


def test_the_time_told_is_a_place_in_line():
    made = Claims()
    told = [tell(made, key) for key in range(4)]
    each = 10 * made.returning / (SHARE * RATE)
    assert told == pytest.approx([2.0, 2.0 + each, 2.0 + 2 * each, 2.0 + 3 * each])


def test_a_claim_holds_from_its_time_on_and_for_a_while():
    made = Claims()
    told = tell(made, "a", now=100.0)
    assert not made.is_due("a", 100.0)
    assert not made.is_due("a", 100.0 + told - 0.1)
    assert made.is_due("a", 100.0 + told)
    assert made.is_due("a", 100.0 + told + 1.0), "Retry-After counts in whole seconds"
    assert not made.is_due("b", 100.0 + told)
    assert not made.is_due("a", 100.0 + told + GRACE_S + 0.1)
    assert not len(made)


def test_who_comes_too_early_keeps_its_time():
    made = Claims()
    told = tell(made, "a")
    assert tell(made, "a", now=0.5) == pytest.approx(told - 0.5)
    assert tell(made, "a", now=1.0) == pytest.approx(told - 1.0)
    assert len(made) == 1


def test_who_is_refused_in_its_time_gets_a_new_one():
    made = Claims()
    told = tell(made, "a")
    again = tell(made, "a", now=told)
    assert again > 0
    assert not made.is_due("a", told)
    assert made.is_due("a", told + again)


def test_a_claim_is_good_for_once():
    made = Claims()
    told = tell(made, "a")
    made.redeem("a")
    assert not made.is_due("a", told)


def test_claims_of_those_who_never_come_back_count_for_ever_less():
    made = Claims()
    for key in range(500):
        tell(made, key, now=float(key) * 10)
    assert made.returning < 0.01
    for key in range(500):
        told = tell(made, ("back", key), now=10_000.0 + key * 10)
        assert made.is_due(("back", key), 10_000.0 + key * 10 + told)
        made.redeem(("back", key))
    assert made.returning > 0.99


def test_who_came_back_and_is_refused_gets_a_place_though_hundreds_before_did_not():
    """As when a burst of clients that never return is followed by some who do."""
    made = Claims()
    for key in range(430):
        tell(made, key, now=0.0)
    made.is_due("nobody", 1000.0)  # all of them have expired
    assert made.returning < 0.001
    first = [tell(made, ("back", n), now=1000.0) for n in range(5)]
    assert len(set(first)) == 5, "a place each, however few are expected"
    now = 1000.0 + max(first)
    again = [tell(made, ("back", n), now=now) for n in range(5)]
    each = 10 / (SHARE * RATE)
    steps = [b - a for a, b in pairwise(again)]
    assert steps == pytest.approx([each] * 4, rel=0.2), "they will come, for certain"
    assert made.returning > 0.09, "and that some do is learnt though they were refused"


def test_nobody_is_sent_away_for_ever_and_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(claims, "MAX_CLAIMS", 100)
    made = Claims()
    told = [tell(made, key, tokens=1000) for key in range(1000)]
    assert max(told) == LONGEST_S
    assert len(made) == 100 < MAX_CLAIMS
    tell(made, "later", now=1000.0)
    assert len(made) == 1
    assert len(made._ends) == 1


def test_who_cannot_be_recognised_is_told_a_time_all_the_same():
    made = Claims()
    assert tell(made, None) == 2.0
    assert not len(made)
