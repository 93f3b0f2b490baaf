"""Metadata of all documents as columns in memory, so that a filter is answered by array scans.

    Columns          grows with the rows; `where` answers a Filter for the first `count` of them

The alternative, `json_extract` over the database, was not taken: a row's text and vector lie
between one row's metadata and the next's, so a filter would read the whole file.

One object is shared by all states of a collection, like the blocks of vectors: postings are in
the order of rows, so a state that has `count` rows sees those below `count` and is not disturbed
by what is added after it. What a failed write left behind is cut off by the next.

Refuses to know: SQLite, vectors, which rows are deleted.
"""

from __future__ import annotations

import hashlib
import math
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.store.filters import (
    MAX_BOUND_CHARACTERS,
    AnyOf,
    Every,
    Exists,
    FieldPath,
    Filter,
    Not,
    OneOf,
    Range,
    Scalar,
)

Mask = NDArray[np.bool_]
Array = NDArray[Any]

COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le,
}  # fmt: skip

DTYPES: dict[str, Any] = {"numbers": np.float64, "texts": np.int32, "large": np.int32}


class Postings:
    """Pairs of (row, value) in the order of rows, appended by one thread, read by any.

    Rows are int32, values of `dtype`.
    """

    def __init__(self, dtype: Any):
        # One tuple, replaced whole: a reader gets arrays and a length that belong together.
        self._state: tuple[Array, Array, int] = (np.empty(0, np.int32), np.empty(0, dtype), 0)

    def upto(self, count: int) -> tuple[Array, Array]:
        """Rows below `count` and their values."""
        rows, values, n = self._state
        n = int(np.searchsorted(rows[:n], count))
        return rows[:n], values[:n]

    def append(self, count: int, rows: Array, values: Array) -> None:
        """Add rows, all at least `count`, in place of any at `count` or above."""
        n = len(self.upto(count)[0])
        all_rows, all_values, _ = self._state
        total = n + len(rows)
        if total > len(all_rows):
            all_rows = np.concatenate([all_rows[:n], np.empty(total + 8, np.int32)])
            all_values = np.concatenate([all_values[:n], np.empty(total + 8, all_values.dtype)])
        all_rows[n:total], all_values[n:total] = rows, values
        self._state = (all_rows, all_values, total)

    def compacted(self, alive: Mask, places: Array) -> Postings:
        """Those of the rows that are `alive` (bool `[count]`), at their new `places`."""
        rows, values = self.upto(len(alive))
        chosen, made = alive[rows], Postings(values.dtype)
        made.append(0, places[rows[chosen]], values[chosen])
        return made

    def renumber(self) -> list[int]:
        """Replace values, which are places in a list, by 0, 1, ...; the places that are in use."""
        rows, values, n = self._state
        used, numbers = np.unique(values[:n], return_inverse=True)
        self._state = (rows[:n], numbers.astype(values.dtype), n)
        return [int(place) for place in used]


class Column:
    """All values at one path.

    texts: codes, places in `words`. numbers: float64. large: integers that float64 cannot hold,
    as places in `integers`. true, false, null, other: rows only; other is an object or a list
    without elements, which exists and equals nothing.
    """

    KINDS = ("texts", "numbers", "large", "true", "false", "null", "other")

    def __init__(self) -> None:
        self.postings = {kind: Postings(DTYPES.get(kind, np.bool_)) for kind in self.KINDS}
        self.codes: dict[str, int] = {}
        self.words: list[str] = []
        self.integers: list[int] = []

    def encode(self, value: Any) -> tuple[str, Any]:
        """The kind of a value and what its posting holds."""
        if isinstance(value, bool) or value is None:
            return {True: "true", False: "false", None: "null"}[value], 0
        if isinstance(value, str):
            key = _key(value)
            code = self.codes.setdefault(key, len(self.words))
            if code == len(self.words):
                self.words.append(key)
            return "texts", code
        if isinstance(value, int | float):
            if (exact := _exact(value)) is not None:
                return "numbers", exact
            self.integers.append(int(value))
            return "large", len(self.integers) - 1
        return "other", 0

    def equal(self, value: Scalar, count: int) -> Iterator[Array]:
        """Rows below `count` with this value, in parts."""
        if isinstance(value, str):
            code = self.codes.get(_key(value))
            if code is not None:
                rows, codes = self.postings["texts"].upto(count)
                yield rows[codes == code]
        elif isinstance(value, bool) or value is None:
            yield self.postings[self.encode(value)[0]].upto(count)[0]
        elif (exact := _exact(value)) is not None:
            rows, numbers = self.postings["numbers"].upto(count)
            yield rows[numbers == exact]
        else:
            yield from self._large(lambda n: n == value, count)

    def compare(self, op: str, bound: str | int | float, count: int) -> Iterator[Array]:
        """Rows below `count` with a value of the bound's kind on its side, in parts."""
        test = COMPARE[op]
        if isinstance(bound, str):
            rows, codes = self.postings["texts"].upto(count)
            words = self.words[:]
            wanted = np.fromiter((test(w, bound) for w in words), np.bool_, len(words))
            yield rows[wanted[codes]]
            return
        rows, numbers = self.postings["numbers"].upto(count)
        if (exact := _exact(bound)) is not None:
            yield rows[test(numbers, exact)]
        else:
            # Between two doubles, or beyond all: no number equals it, so its neighbour will do.
            low = _below(int(bound))
            yield rows[numbers > low] if op in ("gt", "gte") else rows[numbers <= low]
        yield from self._large(lambda n: test(n, bound), count)

    def _large(self, wanted: Callable[[int], bool], count: int) -> Iterator[Array]:
        rows, places = self.postings["large"].upto(count)
        chosen = [wanted(self.integers[place]) for place in places.tolist()]
        yield rows[np.array(chosen, np.bool_)]

    def present(self, count: int) -> Iterator[Array]:
        """Rows below `count` that have the path at all, in parts."""
        for postings in self.postings.values():
            yield postings.upto(count)[0]

    def compacted(self, alive: Mask, places: Array) -> Column:
        made = Column()
        made.postings = {k: p.compacted(alive, places) for k, p in self.postings.items()}
        made.words = [self.words[place] for place in made.postings["texts"].renumber()]
        made.codes = {word: code for code, word in enumerate(made.words)}
        made.integers = [self.integers[place] for place in made.postings["large"].renumber()]
        return made


class Columns:
    """The columns of a collection, by path."""

    def __init__(self) -> None:
        self._columns: dict[FieldPath, Column] = {}
        self._rows = 0  # added so far, those of failed writes included

    def append(self, count: int, metadata: Sequence[dict[str, Any]]) -> None:
        """Add rows `count`, `count` + 1, ..., in place of any that were there before.

        By one thread at a time, while others read rows below `count`.
        """
        if self._rows > count:
            # A write that failed left rows behind, which would be taken for the new ones.
            for column in self._columns.values():
                for postings in column.postings.values():
                    postings.append(count, np.empty(0, np.int32), np.empty(0, np.bool_))
        added: dict[tuple[FieldPath, str], tuple[list[int], list[Any]]] = {}
        for row, document in enumerate(metadata, count):
            for path, value in leaves(document):
                if path not in self._columns:
                    self._columns[path] = Column()
                kind, held = self._columns[path].encode(value)
                rows, values = added.setdefault((path, kind), ([], []))
                rows.append(row)
                values.append(held)
        for (path, kind), (rows, values) in added.items():
            postings = self._columns[path].postings[kind]
            postings.append(count, np.array(rows, np.int32), np.array(values))
        self._rows = count + len(metadata)

    def where(self, condition: Filter, count: int) -> Mask:
        """Bool `[count]`: the rows for which the condition holds."""
        if isinstance(condition, Not):
            return ~self.where(condition.part, count)
        if isinstance(condition, Every | AnyOf):
            masks = (self.where(part, count) for part in condition.parts)
            mask = next(masks)
            for other in masks:
                mask = mask & other if isinstance(condition, Every) else mask | other
            return mask
        mask = np.zeros(count, np.bool_)
        if found := self._columns.get(condition.path):
            for rows in _answers(found, condition, count):
                mask[rows] = True
        return mask

    def compacted(self, alive: Mask) -> Columns:
        """The columns of the rows that are `alive` (bool `[count]`), numbered anew."""
        made, places = Columns(), np.cumsum(alive, dtype=np.int32) - 1
        made._rows = int(np.count_nonzero(alive))
        for path, column in list(self._columns.items()):
            made._columns[path] = column.compacted(alive, places)
        return made


def _answers(column: Column, condition: OneOf | Range | Exists, count: int) -> Iterator[Array]:
    if isinstance(condition, Exists):
        yield from column.present(count)
    elif isinstance(condition, Range):
        yield from column.compare(condition.op, condition.bound, count)
    else:
        for value in condition.values:
            yield from column.equal(value, count)


def leaves(document: dict[str, Any]) -> Iterator[tuple[FieldPath, Any]]:
    """Every path of a document and a value there; without recursion, since JSON may nest deeply."""
    pending: list[tuple[FieldPath, Any]] = [((), document)]
    while pending:
        path, value = pending.pop()
        if isinstance(value, dict):
            if path:
                yield path, value
            pending.extend(((*path, name), inner) for name, inner in value.items())
        elif isinstance(value, list) and value:
            pending.extend((path, inner) for inner in value)
        else:
            yield path, value


def _key(text: str) -> str:
    """What is remembered of a text: all, or its beginning and a digest of all.

    A bound is no longer than the beginning, so the order of texts relative to it is kept.
    """
    if len(text) <= MAX_BOUND_CHARACTERS:
        return sys.intern(text)
    return text[:MAX_BOUND_CHARACTERS] + hashlib.sha256(text.encode()).hexdigest()


def _exact(number: int | float) -> float | None:
    """The double that is this number, None where there is none."""
    try:
        double = float(number)
    except OverflowError:
        return None
    return double if double == number else None


def _below(number: int) -> float:
    """The largest double below an integer that no double equals."""
    try:
        double = float(number)
    except OverflowError:
        return sys.float_info.max if number > 0 else -math.inf
    return double if double < number else math.nextafter(double, -math.inf)
