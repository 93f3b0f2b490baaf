"""Collections on Milvus that have vectors of two encoders; see moving.py for what is asked of them.

The one beside holds the same rows under the same numbers (`seq`), with the other encoder's vectors. A
row that is written again gets another number, so two rows of one key and one number are the same,
and what is left to do is what a comparison of the two finds: rows that are missing beside are
embedded, in the order of writing, and rows that only are there are removed. Nothing else has to be
remembered, so this may be killed anywhere.

Unlike in the embedded store nothing can keep services from writing meanwhile. What they have written is
found by the comparison; a change-over begins with one, and is undone where the collection has changed
between that and the moment from which nobody can write to it.

Refuses to know: encoders, under which names the two are kept (sides.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

from mexma.errors import CollectionNotFound, MigrationConflict, MigrationNotFound
from service.store.admission import check_dim, unit_vectors
from service.store.milvus import pages
from service.store.milvus.connection import Connection
from service.store.milvus.expressions import ALL
from service.store.milvus.overlap import compare
from service.store.milvus.rows import DOCUMENT_FIELDS, Stamp, document_of, parts, row_of
from service.store.milvus.sides import NEWER, OLDER, SERVING, Sides
from service.store.moving import Embed, Embedded, MigrationInfo, Overlap
from service.store.protocol import Vectors
from service.store.steps import reached

REMOVED_AT_ONCE = 1_000
AGAIN = "stop what writes to it, and run this again"


class Row(NamedTuple):
    """A stored document as its columns; metadata is JSON text."""

    seq: int
    key: str
    id: str
    lang: str
    text: str
    metadata: str


class Two(NamedTuple):
    serving: Stamp
    other: Stamp

    @property
    def cut_over(self) -> bool:
        return self.other.side == OLDER


class State(NamedTuple):
    """What a collection held: so many documents, and the number of the last write."""

    documents: int
    last: int


class MilvusMigrations:
    """For one command: what it could not embed is tried again by the next one."""

    def __init__(self, milvus: Connection, sides: Sides):
        self._milvus = milvus
        self._sides = sides
        # By the incarnation of what is beside: of another encoder other documents may fail.
        self._failed: dict[str, dict[tuple[int, str], tuple[str, str]]] = {}
        self._missing: dict[str, Iterator[tuple[int, str]]] = {}

    def mend(self, name: str) -> bool:
        return self._sides.mend(name)

    def settle(self, timeout_s: float | None = None) -> bool:
        """At once: Milvus indexes by itself, and searches what is not indexed yet."""
        return True

    def beside(self, name: str) -> list[str]:
        return [stamp.collection for stamp in self._sides.beside(name)]

    def _two(self, name: str) -> Two:
        found = self._sides.all(name)
        if SERVING not in found:
            raise CollectionNotFound(f"there is no collection {name!r}")
        for side in (NEWER, OLDER):
            if side in found:
                return Two(found[SERVING], found[side])
        raise MigrationNotFound(f"collection {name!r} is not being moved to another encoder")

    def begin(
        self,
        name: str,
        dim: int,
        fingerprint: str,
        canaries: Vectors | None = None,
        *,
        anew: bool = False,
    ) -> MigrationInfo:
        check_dim(dim)
        found = self._sides.all(name)
        if SERVING not in found:
            raise CollectionNotFound(f"there is no collection {name!r}")
        serving = found[SERVING]
        if len(found) > 1:
            two = self._two(name)
            if two.other.fingerprint == fingerprint and not two.cut_over:
                return self.describe(name)
            raise MigrationConflict(
                f"collection {name!r} has vectors of {serving.fingerprint} and, beside them, of "
                f"{two.other.fingerprint}; end that migration before another: mexma-index migrate "
                f"--retire with the model of {serving.fingerprint} drops those beside"
            )
        if serving.fingerprint == fingerprint and not anew:
            raise MigrationConflict(f"collection {name!r} has this encoder's vectors already")
        with suppress(CollectionNotFound):
            self._sides.stamp(name, NEWER)  # raises where somebody else's has that name
        self._milvus.create(serving.of_another(dim, fingerprint, NEWER))
        reached("milvus: beside made")
        return self.describe(name)

    def describe(self, name: str) -> MigrationInfo:
        """Rows that are beside and in the collection no more count as embedded until `work` has
        found them."""
        two = self._two(name)
        documents = self._milvus.count(two.serving, ALL)
        embedded = min(self._milvus.count(two.other, ALL), documents)
        failed = dict(self._failed.get(two.other.incarnation, {}).values())
        left = documents - embedded
        return MigrationInfo(
            collection=name,
            phase="cut_over" if two.cut_over else "embedding" if left else "ready",
            serving=two.serving.fingerprint,
            other=two.other.fingerprint,
            documents=documents,
            embedded=embedded,
            failed=failed,
            index_state="exact" if two.other.index == "FLAT" else "approximate",
        )

    def work(self, name: str, limit: int) -> list[Row]:
        """By one comparison of the two, from the first document to the last. What is written
        behind the place where it is then is left to the next one."""
        two = self._two(name)
        missing = self._missing.setdefault(two.other.incarnation, self._rows_missing(two))
        while placed := [*islice(missing, limit)]:
            found = self._milvus.rows(two.serving, [key for _, key in placed], DOCUMENT_FIELDS)
            rows = [
                Row(seq, key, *(found[key][field] for field in ("id", "lang", "text", "metadata")))
                for seq, key in placed
                if key in found and found[key]["seq"] == seq
            ]
            if rows:
                return rows
        del self._missing[two.other.incarnation]
        return []

    def _rows_missing(self, two: Two) -> Iterator[tuple[int, str]]:
        """Of each row that is to be embedded its number and key; removes what is too much."""
        surplus: dict[str, int] = {}
        failed = self._failed.setdefault(two.other.incarnation, {})
        for seq, key, which in pages.compared(self._milvus, *two):
            if which == "missing" and (seq, key) not in failed:
                yield seq, key
            elif which == "surplus":
                surplus[key] = seq
                if len(surplus) >= REMOVED_AT_ONCE:
                    self._remove(two.other, surplus)
                    surplus = {}
        self._remove(two.other, surplus)

    def _remove(self, other: Stamp, surplus: dict[str, int]) -> None:
        """Rows of these keys that still have these numbers; others were embedded anew meanwhile."""
        found = self._milvus.rows(other, list(surplus), ["seq"])
        gone = [key for key, row in found.items() if row["seq"] == surplus[key]]
        if gone:
            self._milvus.call("delete", other, ids=gone)
            reached("milvus: rows removed")

    def take(self, name: str, other: str, rows: list[Row], embedded: Embedded) -> None:
        stamp = self._two(name).other
        if stamp.fingerprint != other:
            return  # changed over or begun anew meanwhile
        failed = self._failed.setdefault(stamp.incarnation, {})
        good = [item for item in range(len(rows)) if item not in embedded.failed]
        unit_vectors(embedded.vectors[good], len(good), stamp.dim)
        taken = []
        for item, row in enumerate(rows):
            if item in embedded.failed:
                failed[row.seq, row.key] = row.id, embedded.failed[item]
                continue
            document = document_of(row._asdict())
            made = row_of(document, item, row.metadata, embedded.vectors[item])
            made["seq"], made[stamp.vector] = row.seq, made.pop("vector").tolist()
            taken.append(made)
        for part in parts(taken, stamp.dim) if taken else ():
            self._milvus.call("upsert", stamp, data=part)
            reached("milvus: rows taken")

    def cut_over(self, name: str, _embed: Embed) -> MigrationInfo:
        """Nothing is embedded here: what was written since `work` is refused."""
        return self._changed_over(name, self._sides.cut_over, to_newer=True)

    def roll_back(self, name: str, _embed: Embed) -> MigrationInfo:
        return self._changed_over(name, self._sides.roll_back, to_newer=False)

    def _changed_over(
        self,
        name: str,
        change: Callable[[str, Callable[[Stamp], None]], None],
        *,
        to_newer: bool,
    ) -> MigrationInfo:
        two = self._two(name)
        if two.cut_over == to_newer:
            now = "cut over already" if to_newer else "not cut over"
            raise MigrationConflict(f"collection {name!r} is {now}")
        state = self._state_of_both(name, two)

        def unchanged(aside: Stamp) -> None:
            later = self._milvus.query(aside, f"seq > {state.last}", ["seq"], 1)
            count = self._milvus.count(aside, ALL)
            if later or count != state.documents or aside.incarnation != two.serving.incarnation:
                raise MigrationConflict(
                    f"collection {name!r} was written to while it was being changed over, so it was "
                    f"left as it is; {AGAIN}"
                )

        change(name, unchanged)
        return self.describe(name)

    def _state_of_both(self, name: str, two: Two) -> State:
        """Raises MigrationConflict where they do not hold the same documents."""
        documents, last, differing = 0, -1, 0
        known, failed = self._failed.get(two.other.incarnation, {}), []
        for seq, key, which in pages.compared(self._milvus, *two):
            if which != "surplus":
                documents, last = documents + 1, seq
            if which == "missing" and (seq, key) in known:
                failed.append(known[seq, key])
            else:
                differing += which != "same"
        if failed:
            id, reason = failed[0]
            raise MigrationConflict(
                f"{len(failed)} documents cannot be embedded by {two.other.fingerprint}; "
                f"write them again or delete them first: {id!r}, {reason}"
            )
        if differing:
            raise MigrationConflict(
                f"{differing} documents of {name!r} were written or deleted since they were embedded; "
                f"{AGAIN}"
            )
        return State(documents, last)

    def overlap(self, name: str, k: int, sample: int) -> Overlap | None:
        """How differently the two answer, see `overlap.compare`."""
        serving, other = self._two(name)
        return compare(self._milvus, serving, other, k, sample)

    def abandon(self, name: str) -> None:
        self._end(name, cut_over=False)

    def retire(self, name: str) -> None:
        self._end(name, cut_over=True)

    def _end(self, name: str, *, cut_over: bool) -> None:
        two = self._two(name)
        if two.cut_over != cut_over:
            now = "cut over: roll back, or retire" if two.cut_over else "not cut over"
            raise MigrationConflict(f"collection {name!r} is {now}")
        self._sides.drop(two.other)
        reached("milvus: beside dropped")
