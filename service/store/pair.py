"""Two collections of one name and two encoders: the one that serves, and the one beside it.

The one beside holds the same rows under the same numbers (rids), with the other encoder's vectors.
A row is never changed and its number never given again, so what is missing beside is the rows
above its last number, and what it holds too much is those of its numbers that are gone. Nothing
else has to be remembered, and a kill between any two writes leaves only more to do.

That holds in both directions: after a cut-over the one beside is the old one, and takes over what
is written to the new one, so that there is a way back which loses nothing.

Refuses to know: encoders (texts go out, vectors come in), folders, which pairs there are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from mexma.errors import MigrationConflict
from service.store.collection import Collection
from service.store.database import Row
from service.store.index import Index
from service.store.moving import Embed, Embedded, MigrationInfo, Overlap, Phase
from service.store.overlap import compare
from service.store.protocol import Vectors
from service.store.steps import reached

HELD_ROWS = 256
"""Writers wait while at most so many rows are embedded: one or two seconds on two cores."""
READY_SHARE = 0.1
"""And of few rows this share is left at most when the other side is called ready: what is said of how the
two differ is said of what both have."""


class Pair:
    """newer: whichever of the two the migration made. One thread works at a time, any may ask."""

    def __init__(self, serving: Collection, other: Collection, newer: Collection):
        self.serving, self.other, self.newer = serving, other, newer
        serving.beside, other.beside = False, True
        self.lock = threading.RLock()
        self._failed: dict[int, tuple[str, str]] = {}
        self._tidied: object = None
        self._compared: tuple[object, Overlap | None] = (None, None)
        for row in serving.rows(self._left_out().tolist()):
            self._failed[row.rid] = row.id, "it could not be embedded; write it again or delete it"

    def info(self) -> MigrationInfo:
        serving, other = self.serving.info(), self.other.info()
        documents = serving.count
        failed = self.failed()
        left = len(self._missing()) + len(failed)
        ready = not failed and left <= min(HELD_ROWS, READY_SHARE * documents)
        phase: Phase = "ready" if ready else "embedding"
        return MigrationInfo(
            collection=serving.name,
            phase="cut_over" if self.serving is self.newer else phase,
            serving=serving.fingerprint,
            other=other.fingerprint,
            documents=documents,
            embedded=max(documents - left, 0),
            failed=failed,
            index_state=other.index_state,
        )

    def failed(self) -> dict[str, str]:
        """Id -> reason, of documents that still are as they were when they failed."""
        if not (known := [*self._failed.items()]):
            return {}
        alive = set(_alive(self.serving)[1].tolist())
        return {id: why for rid, (id, why) in known if rid in alive}

    def _missing(self) -> Index:
        """Rids that `other` lacks and that have not been tried, int64 `[n]`, ascending."""
        _, ours = _alive(self.serving)
        above = ours[np.searchsorted(ours, self.other.last_rid(), side="right") :]
        failed = np.array([*self._failed], np.int64)
        return np.setdiff1d(above, failed, assume_unique=True) if len(failed) else above

    def _left_out(self) -> Index:
        """Rids that `other` has passed over."""
        _, ours = _alive(self.serving)
        passed = ours[: np.searchsorted(ours, self.other.last_rid(), side="right")]
        return np.setdiff1d(passed, _alive(self.other)[1], assume_unique=True)

    def _gone(self) -> Index:
        """Rids that only `other` has still, int64 `[n]`, ascending."""
        return np.setdiff1d(_alive(self.other)[1], _alive(self.serving)[1], assume_unique=True)

    def missing(self, limit: int) -> list[Row]:
        """The next rows to embed for `other`, by rid; none where there is nothing to do.

        With nothing to embed, rows that are gone are removed from `other` as well.
        """
        rows = self.serving.rows(self._missing()[:limit].tolist())
        if rows:
            return rows
        with self.lock:
            state = self.serving.snapshot()
            if state is not self._tidied and len(gone := self._gone()):
                self._take([], np.empty((0, self.other.info().dim), np.float32), gone)
            self._tidied = state
        return []

    def take(self, rows: Sequence[Row], embedded: Embedded) -> None:
        """Store what `missing` gave, embedded by the encoder of `other`; durable on return."""
        with self.lock:
            last = self.other.last_rid()
            good = []
            for item, row in enumerate(rows):
                if item in embedded.failed:
                    self._failed[row.rid] = row.id, embedded.failed[item]
                elif row.rid > last:
                    good.append(item)
            if good:
                vectors = np.ascontiguousarray(embedded.vectors[good])
                self._take([rows[item] for item in good], vectors, np.empty(0, np.int64))
                reached("migration: rows taken")

    def _take(self, rows: Sequence[Row], vectors: Vectors, gone: Index) -> None:
        self.other.take(rows, vectors, gone)

    def change_over(
        self, embed: Embed, write_roles: Callable[[Collection, Collection], None]
    ) -> None:
        """Make `other` the one that serves, with everything that was ever written.

        embed: by the encoder of `other`; of at most 256 texts, while writers wait. write_roles: makes
        the change durable, given who serves from then on and who is beside.
        Raises MigrationConflict where more is missing, or a document cannot be embedded.
        """
        with self.lock, self.serving.held():
            missing = self._missing()
            if len(missing) > HELD_ROWS:
                raise MigrationConflict(
                    f"{len(missing)} documents are still to be embedded, changing over waits for "
                    f"{HELD_ROWS} at most; try again when the phase is ready"
                )
            if rows := self.serving.rows(missing.tolist()):
                self.take(rows, embed([row.text for row in rows]))
                reached("migration: last rows taken")
            if failed := self.failed():
                id, reason = next(iter(failed.items()))
                raise MigrationConflict(
                    f"{len(failed)} documents cannot be embedded by {self.other.info().fingerprint}; "
                    f"write them again or delete them first: {id!r}, {reason}"
                )
            if len(gone := self._gone()):
                self._take([], np.empty((0, self.other.info().dim), np.float32), gone)
            self.other.raise_numbers(self.serving.last_rid())
            reached("migration: numbers raised")
            write_roles(self.other, self.serving)
            self.serving.beside, self.other.beside = True, False
            self.serving, self.other = self.other, self.serving
            self._failed.clear()
            reached("migration: changed over")

    def overlap(self, k: int, sample: int) -> Overlap | None:
        """How the two answer; None before two documents have both vectors."""
        serving, other = self.serving.snapshot(), self.other.snapshot()
        asked = serving, other, k, sample
        if self._compared[0] != asked:
            self._compared = asked, compare(serving, other, k, sample)
        return self._compared[1]


def _alive(collection: Collection) -> tuple[object, Index]:
    """The newest state and its rids, int64 `[n]`, ascending."""
    snapshot = collection.snapshot()
    return snapshot, snapshot.rids[snapshot.alive]
