"""Metadata as Milvus can be asked for it exactly: terms for what is equal, bounds for ranges.

Milvus's own JSON filters do not see through lists, take null for absence and compare large
integers as floats. So each document carries what service/store/filters.py says about it:

    terms    one for every path that exists, for every path with a number or a text, and for
             every (path, value)
    bounds   per path the lowest and highest number and text. A range asks whether any value is
             beyond a bound, so the highest or the lowest answers it

Terms are hashes and bounds are hexadecimal or decimal digits, in the order of what they stand
for. A filter made of them holds no character that came from a caller.

Refuses to know: Milvus.
"""

from __future__ import annotations

import hashlib
import json
from decimal import Decimal
from typing import Any, NamedTuple

from service.store.columns import leaves
from service.store.filters import MAX_BOUND_CHARACTERS, FieldPath, Scalar

EXPONENT_OFFSET = 50_000
"""Added to a number's decimal exponent, which JSON as Python reads it keeps within ±5,000."""
NINES = str.maketrans("0123456789", "9876543210")


class Terms(NamedTuple):
    """terms: each once. bounds: key of a path, side and kind -> the value's key."""

    terms: list[str]
    bounds: dict[str, str]


def terms_of(metadata: dict[str, Any]) -> Terms:
    """What a filter may ask of a document with this metadata."""
    terms: dict[str, None] = {}
    found: dict[tuple[FieldPath, str], list[Any]] = {}
    for path, value in leaves(metadata):
        terms[exists(path)] = None
        if value is None or isinstance(value, bool | int | float | str):
            terms[equals(path, value)] = None
            if value is not None and not isinstance(value, bool):
                found.setdefault((path, kind_of(value)), []).append(value)
    bounds = {}
    for (path, kind), values in found.items():
        terms[has(path, kind)] = None
        bounds[bound_name(path, kind, "low")] = key_of(min(values))
        bounds[bound_name(path, kind, "high")] = key_of(max(values))
    return Terms(list(terms), bounds)


def exists(path: FieldPath) -> str:
    """The term of documents that have this path at all."""
    return _hash("exists", path)


def has(path: FieldPath, kind: str) -> str:
    """The term of documents with a value of this kind, "number" or "text", at the path."""
    return _hash("has", path, kind)


def equals(path: FieldPath, value: Scalar) -> str:
    """The term of documents with this JSON value at the path: `true` is not 1, and 1 is 1.0."""
    if value is None or isinstance(value, bool):
        return _hash("is", path, json.dumps(value))
    return _hash(kind_of(value), path, number_key(value) if kind_of(value) == "number" else value)


def bound_name(path: FieldPath, kind: str, side: str) -> str:
    """Where the lowest or highest value of a kind at a path is kept."""
    return _hash(f"{kind} {side}", path)


def kind_of(value: object) -> str:
    return "text" if isinstance(value, str) else "number"


def key_of(value: str | int | float) -> str:
    """A text in the same order as these values, among those of one kind."""
    return text_key(value) if isinstance(value, str) else number_key(value)


def text_key(text: str) -> str:
    """UTF-8 in hexadecimal: its order is that of code points.

    A bound of a filter is at most 256 characters, so of a longer text its beginning decides, and
    that there is more of it.
    """
    beginning = text[:MAX_BOUND_CHARACTERS].encode("utf-8", "surrogatepass").hex()
    return beginning + ("0" if len(text) > MAX_BOUND_CHARACTERS else "")


def number_key(number: Any) -> str:
    """A finite number, int or float, exactly: sign, exponent, digits; one text for equal numbers."""
    exact = Decimal(number)
    if not exact:
        return "1"
    exponent = min(max(exact.adjusted() + EXPONENT_OFFSET, 0), 2 * EXPONENT_OFFSET - 1)
    digits = "".join(map(str, exact.as_tuple().digits)).rstrip("0")
    size = f"{exponent:05d}{digits}"
    # Of negative ones the larger size is the lower number, and "~" lies behind every digit.
    return f"2{size}" if exact > 0 else f"0{size.translate(NINES)}~"


def _hash(what: str, path: FieldPath, value: object = None) -> str:
    content = json.dumps([what, path, value], ensure_ascii=True)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
