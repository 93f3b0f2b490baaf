"""The store contract once more, as plainly as it can be said: lists, loops, no index, no disk.

What the real stores are compared with. It shares `protocol` and `admission` with them (types,
tag rules, refusals) and nothing that searches: every cosine is a sum over two rows in float64,
every neighbourhood is found by sorting all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mexma.errors import CollectionExists, CollectionNotFound, DocumentNotFound, FingerprintMismatch
from service.store import admission
from service.store.protocol import CollectionInfo, Document, Hit, Query, matches, primary


@dataclass
class Kept:
    dim: int
    fingerprint: str
    documents: dict[str, Document] = field(default_factory=dict)
    units: dict[str, Any] = field(default_factory=dict)


def cosine(a, b) -> float:
    total = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    return float(np.float32(min(1.0, max(-1.0, total))))


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


class ReferenceStore:
    def __init__(self):
        self._kept: dict[str, Kept] = {}

    def _of(self, name: str, fingerprint: str | None = None) -> Kept:
        admission.check_name(name)
        if name not in self._kept:
            raise CollectionNotFound(f"there is no collection {name!r}")
        if fingerprint is not None:
            admission.check_fingerprint(name, self._kept[name].fingerprint, fingerprint)
        return self._kept[name]

    def create(self, name, dim, fingerprint):
        admission.check_name(name)
        admission.check_dim(dim)
        kept = self._kept.setdefault(name, Kept(dim, fingerprint))
        if kept.fingerprint != fingerprint:
            raise FingerprintMismatch("another", expected=kept.fingerprint, found=fingerprint)
        if kept.dim != dim:
            raise CollectionExists(f"{name} has dim {kept.dim}, not {dim}")
        return self.describe(name)

    def describe(self, name):
        kept = self._of(name)
        tags = [d.lang for d in kept.documents.values()]
        counts = {tag: tags.count(tag) for tag in sorted(set(tags))}
        stamp = "2026-01-01T00:00:00+00:00"
        return CollectionInfo(name, kept.dim, kept.fingerprint, len(tags), counts, "exact", stamp)

    def list(self):
        return [self.describe(name) for name in sorted(self._kept)]

    def drop(self, name):
        self._of(name)
        del self._kept[name]

    def upsert(self, name, documents, vectors, fingerprint):
        kept = self._of(name, fingerprint)
        for item, document in enumerate(documents):
            admission.check_document(document, item)
        units = admission.unit_vectors(vectors, len(documents), kept.dim)
        outcomes = []
        for document, unit in zip(documents, units, strict=True):
            known = kept.documents.pop(document.id, None)
            outcomes.append("updated" if known else "created")
            kept.documents[document.id] = copy.deepcopy(document)
            kept.units[document.id] = unit
        return outcomes

    def delete(self, name, ids):
        kept = self._of(name)
        return [id for id in ids if kept.documents.pop(id, None) is not None]

    def get(self, name, id):
        kept = self._of(name)
        if id not in kept.documents:
            raise DocumentNotFound(f"{name} holds no {id!r}")
        return kept.documents[id]

    def search(self, name, vectors, query, fingerprint, query_languages=None):
        kept = self._of(name, fingerprint)
        units = admission.unit_vectors(vectors, None, kept.dim)
        languages = query_languages or [None] * len(units)
        return [self._row(kept, u, query, tag) for u, tag in zip(units, languages, strict=True)]

    def _row(self, kept: Kept, unit, query: Query, language: str | None) -> list[Hit]:
        def passes(d: Document) -> bool:
            if query.languages is not None and not any(matches(d.lang, w) for w in query.languages):
                return False
            known = query.exclude_query_language and language not in (None, "und")
            return not (known and primary(d.lang) == primary(language))

        allowed = {
            d.id: cosine(unit, kept.units[d.id]) for d in kept.documents.values() if passes(d)
        }
        around_query = mean(sorted(allowed.values(), reverse=True)[:4])
        groups: dict[str, list[str]] = {}
        for id in allowed:
            group = primary(kept.documents[id].lang) if query.per_language else ""
            groups.setdefault(group, []).append(id)
        written = list(kept.documents)
        results = []
        for members in groups.values():
            ids = sorted(members, key=lambda id: (-allowed[id], written.index(id)))
            if query.score == "margin" and not query.exact:
                ids = ids[: max(10 * query.k, 100)]
            score = {id: allowed[id] for id in ids}
            if query.score == "margin":
                score = {id: self._margin(kept, allowed[id], around_query, id) for id in ids}
            ids = sorted(ids, key=lambda id: (-score[id], written.index(id)))
            if query.score_threshold is not None:
                ids = [id for id in ids if score[id] >= query.score_threshold]
            if ids:
                results.append([(score[id], allowed[id], id) for id in ids[: query.k]])
        results.sort(key=lambda hits: (-hits[0][0], written.index(hits[0][2])))
        return [
            Hit(id, d.text, d.lang, s, c, d.metadata)
            for hits in results
            for s, c, id in hits
            for d in [kept.documents[id]]
        ]

    def _margin(self, kept: Kept, value: float, around_query: float, id: str) -> float:
        others = [cosine(kept.units[id], kept.units[o]) for o in kept.documents if o != id]
        around = mean(sorted(others, reverse=True)[:4])
        below = (around_query + (around_query if around is None else around)) / 2
        return value / max(below, 0.05)

    def close(self):
        self._kept = {}
