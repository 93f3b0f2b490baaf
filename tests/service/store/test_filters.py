"""Filters: what they mean, what is refused, and the columns against a reading of each document."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mexma.errors import InputError
from service.store.columns import Columns
from service.store.filters import MAX_DEPTH, AnyOf, Every, Exists, Not, OneOf, Range, parse

from .reference import satisfies

LONG = "a" * 256


@pytest.mark.parametrize(
    ("value", "meaning"),
    [
        ({"field": "a", "eq": 3}, OneOf(("a",), (3,))),
        ({"field": "a.b", "eq": None}, OneOf(("a", "b"), (None,))),
        ({"field": ["a.b", "c"], "in": []}, OneOf(("a.b", "c"), ())),
        ({"field": "", "exists": True}, Exists(("",))),
        ({"field": "a", "exists": False}, Not(Exists(("a",)))),
        ({"field": "a", "gt": 1, "lt": 2}, Every((Range(("a",), "gt", 1), Range(("a",), "lt", 2)))),
        ({"not": {"or": [{"field": "a", "gte": "x"}]}}, Not(AnyOf((Range(("a",), "gte", "x"),)))),
    ],
)
def test_what_is_written_is_meant(value, meaning):
    assert parse(value) == meaning


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "filter: expected an object .*, found 3"),
        ([], "filter: .*found an empty list"),
        ({}, "filter: .*found an empty object"),
        ({"and": [], "or": []}, "filter: .*found an object with 'and', 'or'"),
        ({"nor": []}, "filter: .*'nor'"),
        (
            {"and": []},
            r"filter\.and: expected a list of at least one condition, found an empty list",
        ),
        ({"and": [{"field": "a", "eq": 1}, 7]}, r"filter\.and\[1\]: .*found 7"),
        ({"not": {"or": [{"field": "a"}]}}, r"filter\.not\.or\[0\]: expected an operator"),
        ({"field": "a", "is": 1}, "filter: expected an operator of eq, in, .*found 'is'"),
        ({"field": 7, "eq": 1}, r"filter\.field: expected a name.*found 7"),
        ({"field": [], "eq": 1}, r"filter\.field: .*found an empty list"),
        ({"field": "a", "eq": []}, r"filter\.eq: expected text.*found an empty list"),
        (
            {"field": "a", "eq": float("nan")},
            r"filter\.eq: expected text, a finite number.*found nan",
        ),
        ({"field": "a", "in": "xyz"}, r"filter\.in: expected a list.*found xyz"),
        ({"field": "a", "in": [1, {}]}, r"filter\.in\[1\]: .*found an empty object"),
        ({"field": "a", "in": [0] * 10_001}, r"filter\.in: .*at most 10000 values.*found 10001"),
        ({"field": "a", "gt": True}, r"filter\.gt: expected a number or text, found true"),
        ({"field": "a", "lte": None}, r"filter\.lte: .*found null"),
        ({"field": "a", "lt": "x" * 257}, r"filter\.lt: .*256 characters, found 257 characters"),
        ({"field": "a", "exists": 1}, r"filter\.exists: expected true or false, found 1"),
        ({"or": [{"field": "a", "eq": 1}] * 256}, r"filter\.or\[255\]: .*at most 256 conditions"),
    ],
)
def test_what_is_refused_is_named_with_its_place(value, message):
    with pytest.raises(InputError, match=message):
        parse(value)


def test_depth_has_a_limit():
    value = {"field": "a", "eq": 1}
    for _ in range(MAX_DEPTH - 1):
        value = {"not": value}
    parse(value)
    with pytest.raises(InputError, match="16 deep"):
        parse({"not": value})


NAMES = st.sampled_from(["a", "b", "c.d"])
NUMBERS = st.sampled_from(
    [0, 1, 1.0, -1, 0.5, 2**53, 2**53 + 1, -(2**53) - 1, 2**63, 10**400, -(10**400), 1e308, -0.0]
)
TEXTS = st.sampled_from(["", "a", "b", "é", "語", "a\0b", LONG, LONG + "b", LONG + "c"])
SCALARS = st.one_of(NUMBERS, TEXTS, st.booleans(), st.none())
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(NAMES, v, max_size=3), max_leaves=6
)
DOCUMENTS = st.lists(st.dictionaries(NAMES, VALUES, max_size=3), max_size=8)
FIELD = {"field": st.lists(NAMES, min_size=1, max_size=2)}
BOUNDS = st.one_of(NUMBERS, TEXTS.filter(lambda t: len(t) <= 256))
LEAVES = st.one_of(
    st.fixed_dictionaries({**FIELD, "eq": SCALARS}),
    st.fixed_dictionaries({**FIELD, "in": st.lists(SCALARS, max_size=4)}),
    st.fixed_dictionaries({**FIELD, "exists": st.booleans()}),
    st.fixed_dictionaries(
        FIELD, optional={"gt": BOUNDS, "gte": BOUNDS, "lt": BOUNDS, "lte": BOUNDS}
    ).filter(lambda leaf: len(leaf) > 1),
)
CONDITIONS = st.recursive(
    LEAVES,
    lambda c: st.one_of(
        st.fixed_dictionaries({"and": st.lists(c, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"or": st.lists(c, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"not": c}),
    ),
    max_leaves=5,
)


# A busy machine is no failure.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(DOCUMENTS, max_size=4), DOCUMENTS, st.lists(CONDITIONS, min_size=1, max_size=5))
def test_columns_answer_what_reading_each_document_answers(writes, failed, conditions):
    """Also after a write that failed, for a state from before later writes, and compacted."""
    columns, documents, states = Columns(), [], []
    for write in writes:
        columns.append(len(documents), failed)
        columns.append(len(documents), write)
        documents = documents + write
        states.append(documents)
    columns.append(len(documents), failed)
    for condition in map(parse, conditions):
        for state in states:
            expected = [satisfies(d, condition) for d in state]
            assert columns.where(condition, len(state)).tolist() == expected
    alive = np.arange(len(documents)) % 3 != 1
    compacted = columns.compacted(alive)
    kept = [d for d, stays in zip(documents, alive, strict=True) if stays] + failed
    compacted.append(int(alive.sum()), failed)
    for condition in map(parse, conditions):
        expected = [satisfies(d, condition) for d in kept]
        assert compacted.where(condition, len(kept)).tolist() == expected


def test_a_list_is_seen_through():
    metadata = {"tags": ["red", "blue"], "authors": [{"name": "Ada"}, {"name": "Alan"}], "none": []}
    columns = Columns()
    columns.append(0, [metadata])

    def holds(**condition) -> bool:
        return bool(columns.where(parse(condition), 1)[0])

    assert holds(field="tags", eq="blue")
    assert holds(field="authors.name", eq="Alan")
    assert not holds(field="authors.name", eq="Alan Ada")
    assert holds(field="authors", exists=True)
    assert holds(field="none", exists=True)
    assert not holds(field="none", eq=None)
    assert holds(field="tags", gt="c", lt="c"), "each bound by an element of its own"
