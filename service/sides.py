"""Requests with two lists of texts, source and target, that are embedded as one: which side an item is of."""

from __future__ import annotations

from mexma.errors import EngineError, InputError


def placed(item: int, sources: int) -> tuple[str, int]:
    """The side and the place there of an item; the first `sources` are the source's."""
    return ("source", item) if item < sources else ("target", item - sources)


def renamed(error: InputError | EngineError, side: str, place: int) -> InputError | EngineError:
    """The same of an item that is known by its side and its place there."""
    said = str(error).replace(f"item {error.item}", f"{side}: item {place}", 1)
    if isinstance(error, InputError):
        return type(error)(said, item=place, limit=error.limit)
    return type(error)(said, item=place)
