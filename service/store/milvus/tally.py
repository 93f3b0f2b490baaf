"""How many documents each collection has in each language, which Milvus does not count itself."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from service.store.milvus import connection
from service.store.milvus.connection import Connection
from service.store.milvus.expressions import ALL
from service.store.milvus.rows import Stamp

AGE_S = 5.0


class Counted(NamedTuple):
    """Documents per tag, as of a moment, a total and a number of own writes."""

    tags: dict[str, int]
    total: int
    writes: int
    at_s: float


class Tally:
    """Of all collections. What this process wrote is counted at once; what another one wrote, as
    soon as the total differs, and after some seconds at the latest."""

    def __init__(self, milvus: Connection):
        self._milvus = milvus
        self._writes: Counter[str] = Counter()
        self._known: dict[str, Counted] = {}

    def written(self, stamp: Stamp) -> None:
        """This process has written, or may have."""
        self._writes[stamp.incarnation] += 1

    def forget(self, stamp: Stamp) -> None:
        self._writes.pop(stamp.incarnation, None)
        self._known.pop(stamp.incarnation, None)

    def of(self, stamp: Stamp) -> dict[str, int]:
        """Tag -> documents, by tag."""
        total = self._milvus.count(stamp, ALL)
        known, writes = self._known.get(stamp.incarnation), self._writes[stamp.incarnation]
        now = time.monotonic()
        fresh = known and (known.total, known.writes) == (total, writes)
        if known and fresh and now - known.at_s < AGE_S:
            return dict(known.tags)
        if total < connection.MAX_ROWS:
            rows = self._milvus.query(stamp, ALL, ["lang"], connection.MAX_ROWS)
            counts = Counter(str(row["lang"]) for row in rows)
        else:
            tags = self._discovered(stamp, known.tags if known else ())
            counts = Counter({t: self._milvus.count(stamp, f'lang == "{t}"') for t in tags})
        found = {tag: counts[tag] for tag in sorted(counts) if counts[tag]}
        self._known[stamp.incarnation] = Counted(found, total, writes, now)
        return dict(found)

    def _discovered(self, stamp: Stamp, known: Iterable[str]) -> set[str]:
        """All tags: those known, and what is found by asking for others until there are none."""
        tags = set(known)
        while True:
            where = f"lang not in {json.dumps(sorted(tags))}" if tags else ALL
            rows = self._milvus.query(stamp, where, ["lang"], connection.MAX_ROWS)
            if not rows:
                return tags
            tags |= {str(row["lang"]) for row in rows}
