"""Filters for Milvus: in the order of what they stand for, exact, and free of callers' characters."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.store.filters import parse
from service.store.milvus.expressions import ALL, NONE, expression
from service.store.milvus.rows import milvus_name, our_name
from service.store.milvus.terms import number_key, text_key
from service.store.protocol import Document, Selection

from ..reference import satisfies
from ..test_filters import CONDITIONS, DOCUMENTS, NUMBERS, TEXTS

any_number = st.one_of(
    NUMBERS, st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.just(5e-324)
)


# A busy machine is no failure.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@patient
@given(any_number, any_number)
def test_numbers_keep_their_order(a, b):
    assert (number_key(a) < number_key(b), number_key(a) == number_key(b)) == (a < b, a == b)


@patient
@given(st.one_of(TEXTS, st.text()), st.text(max_size=256))
def test_texts_keep_their_order_to_a_bound(text, bound):
    key, of_bound = text_key(text), text_key(bound)
    assert (key < of_bound, key == of_bound) == (text < bound, text == bound)


SAFE = re.compile(
    r"""(?: [()] | \s | and | or | not | in | array_contains_any | terms, | seq | lang | subtag | bounds
        | [<>=!]=? | \[ | \] | , | 0 | "[0-9a-f~]*" | "[A-Za-z0-9-]+" )*""",
    re.VERBOSE,
)
hostile = st.one_of(
    st.text(),
    st.sampled_from(['en"] or seq >= 0 or lang in ["', "en' or 1 == 1", "{x}", '"', "\\"]),
)


@patient
@given(
    hostile,
    st.none() | st.frozensets(hostile),
    st.fixed_dictionaries({"field": st.lists(hostile, min_size=1), "eq": hostile, "gt": hostile}),
)
def test_an_expression_holds_nothing_of_a_caller_s(excluded, languages, condition):
    condition["gt"] = condition["gt"][:256]
    made = expression(Selection(languages, parse({"not": condition})), excluded)
    assert SAFE.fullmatch(made), made


def test_everything_and_nothing():
    assert expression(Selection()) == ALL
    assert expression(Selection(frozenset())) == f"({NONE})"
    assert expression(Selection(frozenset({"e n"}))) == f"({NONE})"


@patient
@given(st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True), st.text())
def test_names_lead_there_and_back(name, foreign):
    assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", milvus_name(name))
    assert our_name(milvus_name(name)) == name
    back = our_name(foreign)
    assert back is None or milvus_name(back) == foreign


@pytest.fixture
def asked(milvus_store):
    """A collection whose documents are replaced at each use."""
    milvus_store.create("asked", 2, "encoder")

    def where(documents, conditions) -> list[list[bool]]:
        milvus_store.delete_where("asked", Selection())
        rows = [Document(str(i), "t", "en", metadata) for i, metadata in enumerate(documents)]
        milvus_store.upsert("asked", rows, np.ones((len(rows), 2), np.float32), "encoder")
        answers = []
        for condition in conditions:
            page = milvus_store.scroll("asked", Selection(filter=condition), 99)
            found = {d.id for d in page.documents}
            answers.append([d.id in found for d in rows])
        return answers

    return where


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(documents=DOCUMENTS, conditions=st.lists(CONDITIONS, min_size=4, max_size=12))
def test_milvus_answers_what_reading_each_document_answers(asked, documents, conditions):
    parsed = [*map(parse, conditions)]
    expected = [[satisfies(d, condition) for d in documents] for condition in parsed]
    assert asked(documents, parsed) == expected
