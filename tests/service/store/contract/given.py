"""What the tests of the contract begin with."""

from __future__ import annotations

import numpy as np

from service.store.protocol import Document

PRINT = "encoder-a"


def vectors(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


def fill(store, rows: dict[str, tuple[str, list[float]]], name: str = "c") -> list[str]:
    """Write documents given as id -> (lang, vector); the text of "a" is "text of a"."""
    dim = len(next(iter(rows.values()))[1])
    store.create(name, dim, PRINT)
    documents = [Document(id, f"text of {id}", lang, {"n": id}) for id, (lang, _) in rows.items()]
    return store.upsert(name, documents, vectors(*[v for _, v in rows.values()]), PRINT)


def ids(hits) -> list[str]:
    return [hit.id for hit in hits]
