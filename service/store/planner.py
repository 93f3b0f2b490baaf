"""Whether a search compares all rows that pass its filters, or asks an approximate index.

Few matching rows are compared exactly: that costs what they are few of, and a filtered graph finds
too little just then (the graph is walked through rows that may not be returned). A clear majority
of searches over many rows goes to the index.
"""

from __future__ import annotations

from typing import NamedTuple

EXACT_ROWS = 50_000
"""Up to here a scan takes milliseconds, and no index is built for a collection of this size."""
EXACT_SHARE = 0.05
EXACT_FETCH = 0.02
"""Wanting more than this share of the matching rows is nearer to a scan than to a search."""


class Plan(NamedTuple):
    """approximate: ask the index. fetch: candidates to ask it for."""

    approximate: bool
    fetch: int


def plan(*, matching: int, documents: int, k: int, exact: bool, indexed: bool) -> Plan:
    """How to find the k nearest of `matching` rows among `documents`."""
    fetch = 2 * k + 32  # codes misplace some, whose stored vectors put them right
    scan = (
        exact
        or not indexed
        or matching <= EXACT_ROWS
        or matching < EXACT_SHARE * documents
        or fetch > max(EXACT_FETCH * matching, 1)
    )
    return Plan(not scan, fetch)
