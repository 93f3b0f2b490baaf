"""A little of what `python -m tests.fuzz` does for long."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.parsers import PARSERS


@pytest.mark.parametrize("name", PARSERS)
def test_bytes_from_outside_get_an_answer_or_a_documented_error(name):
    chosen = PARSERS[name]
    with chosen.ready() as check:

        @settings(
            max_examples=300 // chosen.price,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(chosen.inputs)
        def examples(drawn):
            check(drawn)

        examples()
