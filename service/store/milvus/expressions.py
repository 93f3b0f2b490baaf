"""A Selection as a Milvus filter, made of names of ours, hashes, digits, and checked tags only."""

from __future__ import annotations

import json
from collections.abc import Iterable

from service.store.admission import LANGUAGE
from service.store.filters import AnyOf, Every, Exists, Filter, Not, OneOf, Range
from service.store.milvus.terms import bound_name, equals, exists, has, key_of, kind_of
from service.store.protocol import Query, Selection, primary

ALL = "seq >= 0"
NONE = "seq < 0"
OPERATORS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
OPPOSITES = {"gt": "<=", "gte": "<", "lt": ">=", "lte": ">"}


def expression(selection: Selection | Query, excluded: str | None = None) -> str:
    """The documents of a selection, without those of primary subtag `excluded`."""
    parts = []
    if selection.languages is not None:
        parts.append(in_languages(selection.languages))
    if excluded is not None and LANGUAGE.fullmatch(excluded):
        parts.append(f'subtag != "{primary(excluded)}"')
    if selection.filter is not None:
        parts.append(_condition(selection.filter, True))
    return both(*parts)


def in_languages(wanted: Iterable[str]) -> str:
    """Documents whose tag matches one of `wanted`; what is no tag matches none."""
    tags = _list(sorted(tag for tag in wanted if LANGUAGE.fullmatch(tag)))
    return NONE if tags == "[]" else f"(lang in {tags} or subtag in {tags})"


def both(*parts: str) -> str:
    """All of these at once."""
    parts = tuple(part for part in parts if part != ALL)
    return " and ".join(f"({part})" for part in parts) if parts else ALL


def _condition(condition: Filter, wanted: bool) -> str:
    """Where the condition has this answer.

    `not` is carried down to single questions: with absent values Milvus's own knows a third
    answer.
    """
    match condition:
        case Not(part):
            return _condition(part, not wanted)
        case Every(parts) | AnyOf(parts):
            joined = " and " if isinstance(condition, Every) == wanted else " or "
            return "(" + joined.join(_condition(part, wanted) for part in parts) + ")"
        case Exists(path):
            return _has_term([exists(path)], wanted)
        case OneOf(path, values):
            return _has_term([equals(path, value) for value in values], wanted)
        case Range(path, op, bound):
            kind, side = kind_of(bound), "high" if op in ("gt", "gte") else "low"
            compare = OPERATORS[op] if wanted else OPPOSITES[op]
            there = _has_term([has(path, kind)], wanted)
            beyond = f'bounds["{bound_name(path, kind, side)}"] {compare} "{key_of(bound)}"'
            return f"({there} and {beyond})" if wanted else f"({there} or {beyond})"


def _has_term(terms: list[str], wanted: bool) -> str:
    if not terms:
        return NONE if wanted else ALL
    asked = f"array_contains_any(terms, {_list(sorted(set(terms)))})"
    return f"({asked})" if wanted else f"(not {asked})"


def _list(words: list[str]) -> str:
    return json.dumps(words)
