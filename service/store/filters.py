"""Conditions on a document's metadata: the grammar, and its reading from JSON.

    {"field": "page", "gte": 3, "lt": 10}          one field; several operators must all hold
    {"field": "author.name", "eq": "Ada"}          a path; ["a.b", "c"] where a name holds a dot
    {"field": "source", "in": ["mail", "web"]}     any of these values
    {"field": "reviewed", "exists": false}         the field is not there; null is a value
    {"and": [...]}  {"or": [...]}  {"not": {...}}  of other conditions

A list is seen through: a condition holds where it holds for any element, and a path leads into
the objects of a list. Values are equal when they are the same JSON value: `true` is not 1, and
1 is 1.0; an object or a list equals nothing. A range compares numbers with numbers and text with
text (by code point), and holds for nothing else. `not` turns the answer for the whole document.

Refuses to know: where metadata is kept and how a condition is answered.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mexma.errors import InputError

MAX_DEPTH = 16
MAX_CONDITIONS = 256
MAX_VALUES = 10_000
MAX_BOUND_CHARACTERS = 256
"""Of the text a range compares with: stored texts are remembered whole up to here (columns.py)."""

Scalar = str | int | float | bool | None
FieldPath = tuple[str, ...]


@dataclass(frozen=True)
class OneOf:
    """The field has one of `values`: `eq` and `in`."""

    path: FieldPath
    values: tuple[Scalar, ...]


@dataclass(frozen=True)
class Range:
    """The field has a value of the bound's kind on the side `op` says: "gt", "gte", "lt", "lte"."""

    path: FieldPath
    op: str
    bound: str | int | float


@dataclass(frozen=True)
class Exists:
    """The field is there, with whatever value."""

    path: FieldPath


@dataclass(frozen=True)
class Every:
    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class AnyOf:
    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Not:
    part: Filter


Filter = OneOf | Range | Exists | Every | AnyOf | Not

OPERATORS = ("eq", "in", "gt", "gte", "lt", "lte", "exists")


def parse(value: Any, place: str = "filter") -> Filter:
    """The condition that a JSON value states.

    Raises InputError that says where in the value, what was expected, and what is there.
    """
    return _Reader().condition(value, place, 1)


class _Reader:
    def __init__(self) -> None:
        self.conditions = 0

    def condition(self, value: Any, place: str, depth: int) -> Filter:
        self.conditions += 1
        if self.conditions > MAX_CONDITIONS:
            raise InputError(
                f"{place}: a filter has at most {MAX_CONDITIONS} conditions", limit=MAX_CONDITIONS
            )
        if depth > MAX_DEPTH:
            raise InputError(
                f"{place}: conditions may lie {MAX_DEPTH} deep, not deeper", limit=MAX_DEPTH
            )
        keys = sorted(value) if isinstance(value, dict) else []
        if "field" in keys:
            return self._on_field(value, place)
        if len(keys) != 1 or keys[0] not in ("and", "or", "not"):
            raise _expected(
                place,
                'an object with "field" and an operator, or with one of "and", "or", "not"',
                f"an object with {', '.join(map(repr, keys))}" if keys else value,
            )
        key, content = keys[0], value[keys[0]]
        if key == "not":
            return Not(self.condition(content, f"{place}.not", depth + 1))
        if not isinstance(content, list) or not content:
            raise _expected(f"{place}.{key}", "a list of at least one condition", content)
        parts = tuple(
            self.condition(part, f"{place}.{key}[{n}]", depth + 1) for n, part in enumerate(content)
        )
        return Every(parts) if key == "and" else AnyOf(parts)

    def _on_field(self, value: dict[str, Any], place: str) -> Filter:
        path = _path(value["field"], f"{place}.field")
        operators = [key for key in value if key != "field"]
        if not operators:
            raise _expected(place, f"an operator beside field ({', '.join(OPERATORS)})", "none")
        for key in operators:
            if key not in OPERATORS:
                raise _expected(place, f"an operator of {', '.join(OPERATORS)}", repr(key))
        # Each operator is a condition of the whole document: with a list, two bounds may be
        # satisfied by two different elements, as if written as two conditions.
        parts = tuple(_operator(path, key, value[key], f"{place}.{key}") for key in operators)
        return parts[0] if len(parts) == 1 else Every(parts)


def _operator(path: FieldPath, key: str, content: Any, place: str) -> Filter:
    if key == "exists":
        if not isinstance(content, bool):
            raise _expected(place, "true or false", content)
        return Exists(path) if content else Not(Exists(path))
    if key == "eq":
        return OneOf(path, (_scalar(content, place),))
    if key == "in":
        if not isinstance(content, list) or len(content) > MAX_VALUES:
            found = f"{len(content)} values" if isinstance(content, list) else content
            raise _expected(place, f"a list of at most {MAX_VALUES} values", found)
        return OneOf(path, tuple(_scalar(v, f"{place}[{n}]") for n, v in enumerate(content)))
    bound = _scalar(content, place)
    if bound is None or isinstance(bound, bool):
        raise _expected(place, "a number or text", content)
    if isinstance(bound, str) and len(bound) > MAX_BOUND_CHARACTERS:
        raise _expected(
            place, f"text of at most {MAX_BOUND_CHARACTERS} characters", f"{len(bound)} characters"
        )
    return Range(path, key, bound)


def _path(value: Any, place: str) -> FieldPath:
    names = value.split(".") if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise _expected(place, "a name, a dotted path, or a list of names", value)
    return tuple(names)


def _scalar(value: Any, place: str) -> Scalar:
    finite = not isinstance(value, float) or math.isfinite(value)
    if value is None or (isinstance(value, str | int | float) and finite):
        return value
    raise _expected(place, "text, a finite number, true, false or null", value)


def _expected(place: str, what: str, found: Any) -> InputError:
    kinds: list[tuple[type, Callable[[Any], str]]] = [
        (bool, lambda v: str(v).lower()),
        (type(None), lambda v: "null"),
        (str, lambda v: v if len(v) <= 80 else v[:79] + "…"),
        (dict, lambda v: "an object" if v else "an empty object"),
        (list, lambda v: "a list" if v else "an empty list"),
    ]
    show = next((show for kind, show in kinds if isinstance(found, kind)), lambda v: str(v)[:80])
    return InputError(f"{place}: expected {what}, found {show(found)}")
