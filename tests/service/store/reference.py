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

from mexma.errors import (
    BackupNotFound,
    CollectionExists,
    CollectionNotFound,
    DocumentNotFound,
    FingerprintMismatch,
    InputError,
)
from service.store import admission
from service.store.filters import AnyOf, Every, Exists, Filter, Not, OneOf, Range
from service.store.protocol import (
    Backup,
    CollectionInfo,
    Document,
    Explained,
    Hit,
    Page,
    Query,
    Selection,
    Terms,
    matches,
    primary,
)


@dataclass
class Kept:
    dim: int
    fingerprint: str
    number: int
    written: int = 0
    documents: dict[str, Document] = field(default_factory=dict)
    units: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)


def cosine(a, b) -> float:
    total = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    return float(np.float32(min(1.0, max(-1.0, total))))


def values_at(value: Any, path: Sequence[str]) -> list[Any]:
    """What is found at a path, lists seen through; an empty list is found as itself."""
    if isinstance(value, list) and value:
        return [found for element in value for found in values_at(element, path)]
    if not path:
        return [value]
    return (
        values_at(value[path[0]], path[1:]) if isinstance(value, dict) and path[0] in value else []
    )


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same JSON scalar."""
    if isinstance(a, bool) or isinstance(b, bool) or a is None or b is None:
        return a is b
    numbers = isinstance(a, int | float) and isinstance(b, int | float)
    return (numbers or (isinstance(a, str) and isinstance(b, str))) and a == b


def on_its_side(value: Any, op: str, bound: Any) -> bool:
    numbers = isinstance(value, int | float) and not isinstance(value, bool)
    if not (numbers if isinstance(bound, int | float) else isinstance(value, str)):
        return False
    return {"gt": value > bound, "gte": value >= bound, "lt": value < bound, "lte": value <= bound}[
        op
    ]


def satisfies(metadata: dict[str, Any], condition: Filter) -> bool:
    match condition:
        case Every(parts):
            return all(satisfies(metadata, part) for part in parts)
        case AnyOf(parts):
            return any(satisfies(metadata, part) for part in parts)
        case Not(part):
            return not satisfies(metadata, part)
        case Exists(path):
            return bool(values_at(metadata, path))
        case OneOf(path, values):
            return any(same(v, w) for v in values_at(metadata, path) for w in values)
        case Range(path, op, bound):
            return any(on_its_side(v, op, bound) for v in values_at(metadata, path))


def chosen(document: Document, selection: Selection | Query) -> bool:
    wanted = selection.languages
    if wanted is not None and not any(matches(document.lang, w) for w in wanted):
        return False
    return selection.filter is None or satisfies(document.metadata, selection.filter)


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


class ReferenceStore:
    def __init__(self):
        self._kept: dict[str, Kept] = {}
        self._made = 0
        self._backups: dict[tuple[str, str], tuple[Backup, Kept]] = {}

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
        self._made += 1
        kept = self._kept.setdefault(name, Kept(dim, fingerprint, self._made))
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
        for document, unit, given in zip(documents, units, vectors, strict=True):
            known = kept.documents.pop(document.id, None)
            outcomes.append("updated" if known else "created")
            kept.documents[document.id] = copy.deepcopy(document)
            kept.units[document.id] = unit
            kept.given[document.id] = given
            kept.written += 1
            kept.places[document.id] = kept.written
        return outcomes

    def delete(self, name, ids):
        kept = self._of(name)
        return [id for id in ids if kept.documents.pop(id, None) is not None]

    def delete_where(self, name, selection):
        kept = self._of(name)
        gone = [d.id for d in kept.documents.values() if chosen(d, selection)]
        return len(self.delete(name, gone))

    def count(self, name, selection):
        return sum(chosen(d, selection) for d in self._of(name).documents.values())

    def scroll(self, name, selection, limit, cursor=None, *, vectors=False):
        kept = self._of(name)
        if limit < 1:
            raise InputError(f"limit must be at least 1, got {limit}")
        number, after = kept.number, 0
        if cursor is not None:
            number, _, place = cursor.partition("/")
            if number != str(kept.number) or not place.isdigit():
                raise InputError(f"cursor is not of {name}: {cursor}")
            after = int(place)
        rest = [
            d for d in kept.documents.values() if kept.places[d.id] > after and chosen(d, selection)
        ]
        page = copy.deepcopy(rest[:limit])
        stacked = np.array([kept.given[d.id] for d in page], np.float32).reshape(-1, kept.dim)
        on = f"{kept.number}/{kept.places[page[-1].id]}" if len(rest) > limit else None
        return Page(page, stacked if vectors else None, on)

    def get(self, name, id):
        kept = self._of(name)
        if id not in kept.documents:
            raise DocumentNotFound(f"{name} holds no {id!r}")
        return kept.documents[id]

    def search(self, name, vectors, query, fingerprint, query_languages=None):
        return [
            found.hits for found in self.explain(name, vectors, query, fingerprint, query_languages)
        ]

    def explain(self, name, vectors, query, fingerprint, query_languages=None):
        kept = self._of(name, fingerprint)
        units = admission.unit_vectors(vectors, None, kept.dim)
        languages = query_languages or [None] * len(units)
        return [self._row(kept, u, query, tag) for u, tag in zip(units, languages, strict=True)]

    def _row(self, kept: Kept, unit, query: Query, language: str | None) -> Explained:
        def passes(d: Document) -> bool:
            if not chosen(d, query):
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
        hits, terms = [], []
        for ranked in results:
            for s, c, id in ranked:
                d = copy.deepcopy(kept.documents[id])
                mutual = self._mutual(kept, c, id, language) if query.mutual else None
                hits.append(Hit(id, d.text, d.lang, s, c, d.metadata, mutual))
                if query.score == "margin":
                    around = self._around(kept, id)
                    terms.append(Terms(c, around_query, around_query if around is None else around))
                else:
                    terms.append(Terms(c, None, None))
        total, matching = len(kept.documents), len(allowed)
        path = "exact" if matching == total else "filtered_exact"
        share = matching / total if total else 1.0
        return Explained(hits, path, total, matching, share, matching, terms)

    def _mutual(self, kept: Kept, value: float, id: str, language: str | None) -> bool:
        known = language not in (None, "und")
        others = [
            cosine(kept.units[id], kept.units[d.id])
            for d in kept.documents.values()
            if d.id != id and not (known and primary(d.lang) != primary(language))
        ]
        return value >= max(others, default=-2)

    def _around(self, kept: Kept, id: str) -> float | None:
        others = [cosine(kept.units[id], kept.units[o]) for o in kept.documents if o != id]
        return mean(sorted(others, reverse=True)[:4])

    def _margin(self, kept: Kept, value: float, around_query: float, id: str) -> float:
        around = self._around(kept, id)
        below = (around_query + (around_query if around is None else around)) / 2
        return value / max(below, 0.05)

    def back_up(self, name):
        kept = copy.deepcopy(self._of(name))
        self._made += 1
        kept.number = self._made
        backup = Backup(
            str(self._made), name, "2026-01-01T00:00:00+00:00", len(kept.documents), kept.dim,
            kept.fingerprint, 1,
        )  # fmt: skip
        self._backups[name, backup.id] = (backup, kept)
        return backup

    def backups(self, name):
        admission.check_name(name)
        return [backup for (of, _), (backup, _) in self._backups.items() if of == name]

    def restore(self, name, id):
        if (name, id) not in self._backups:
            raise BackupNotFound(f"{name} has no {id}")
        self._kept[name] = copy.deepcopy(self._backups[name, id][1])
        return self.describe(name)

    def remove_backup(self, name, id):
        if self._backups.pop((name, id), None) is None:
            raise BackupNotFound(f"{name} has no {id}")

    def close(self):
        self._kept = {}
