"""Sees to one collection's approximate index: when to load, build, extend and save it.

Searches are exact until there is an index, so nothing here is waited for; a failure is logged
and leaves what was there. The rows a build takes are those of one state; what is written
meanwhile is the tail, which searches compare exactly.

Refuses to know: SQLite, how searches are answered.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from mexma.errors import MexmaError
from service.store import planner
from service.store.approximate import Approximate, Proposer, Read, Shape, Stopped
from service.store.gauges import hubness
from service.store.generations import Generations
from service.store.index import Index, Snapshot
from service.store.memory import MemoryBudget
from service.store.protocol import Vectors
from service.store.resident import Gpu, Resident

log = logging.getLogger(__name__)

TAIL_ROWS = 2_048
TAIL_SHARE = 0.002
"""A tail above both is put into the index. Each search compares all of it: 8,000 rows took twice as
long as the index (0.9 ms for 0.4), and putting 2,048 into an index of 60,000 takes 50 ms."""
DEAD_SHARE = 0.3
"""Above it the index is built anew, without them: a graph is walked through its dead rows too."""
OUTGROWN = 4
"""Times the rows it was measured on, an index is built anew: its lists should be twice as many."""
SAVE_SHARE = 0.1
"""Rows that may be missing in the newest file. A restart has to add so many again."""
GROWTH = 0.1
"""After a failed build, try again when there are so many more rows."""


class Caretaker:
    """gpu: where the index is to be, None for this process's own memory. current: the newest state.
    publish: make the newest state ask this index from now on.

    stopped: the collection is being closed. last_rid: the highest rid ever given.
    """

    def __init__(
        self,
        generations: Generations,
        budget: MemoryBudget,
        gpu: Gpu | None = None,
        *,
        current: Callable[[], Snapshot],
        publish: Callable[[Proposer], None],
        last_rid: Callable[[], int],
        stopped: Callable[[], bool],
    ):
        self._generations = generations
        self._budget = budget
        self._gpu = gpu
        self._current = current
        self._publish = publish
        self._last_rid = last_rid
        self._stopped = stopped
        self._looked = False  # for files
        self._saved_rows = 0
        self._gave_up_at = 0
        self._hub_rows = 0
        self.hubness: float | None = None
        self.rows_indexed = 0  # of the build that is going on

    def state(self) -> Literal["exact", "building", "approximate"]:
        """See CollectionInfo.index_state."""
        if self._current().attached is not None:
            return "approximate"
        return "building" if self._wants_first(self._current()) else "exact"

    def is_due(self) -> bool:
        """Whether there is anything to do; asked after each write, so it is cheap."""
        snapshot = self._current()
        return self._wants_index(snapshot) or self._wants_hubness(snapshot)

    def _wants_first(self, snapshot: Snapshot) -> bool:
        rows = len(snapshot)
        return rows > planner.EXACT_ROWS and rows >= self._gave_up_at

    def _wants_index(self, snapshot: Snapshot) -> bool:
        if snapshot.attached is None:
            return self._wants_first(snapshot)
        if len(snapshot) <= planner.EXACT_ROWS or len(snapshot) < self._gave_up_at:
            return False
        if self._outgrown(snapshot):
            return True
        covered = len(snapshot.attached.built.rids)
        tail = len(snapshot.rids) - snapshot.attached.tail
        return tail > max(TAIL_ROWS, TAIL_SHARE * covered) or self._dead(snapshot) > DEAD_SHARE

    @staticmethod
    def _outgrown(snapshot: Snapshot) -> bool:
        """Whether there are so many more rows than when the index was measured that lists and what a
        search reads of them no longer fit, however it has grown since."""
        attached = snapshot.attached
        return attached is not None and len(snapshot) >= OUTGROWN * attached.built.measured

    @staticmethod
    def _dead(snapshot: Snapshot) -> float:
        """Share of the index's rows that are dead."""
        if snapshot.attached is None:
            return 1.0
        return 1 - snapshot.attached.alive / max(len(snapshot.attached.built.rids), 1)

    def _wants_hubness(self, snapshot: Snapshot) -> bool:
        return abs(len(snapshot) - self._hub_rows) > max(GROWTH * self._hub_rows, 100)

    def tend(self) -> None:
        """Do all there is to do. By one thread at a time."""
        try:
            if not self._looked and self._gpu is None and self._wants_first(self._current()):
                self._load()
            self._looked = True
            while self._wants_index(self._current()) and not self._stopped():
                self._build()
            snapshot = self._current()
            if self._wants_hubness(snapshot):
                self.hubness, self._hub_rows = hubness(snapshot), len(snapshot)
        except Stopped:
            log.debug("left unfinished: %s is being closed", self._generations.collection)
        except MexmaError:
            if not self._stopped():
                raise

    def _load(self) -> None:
        snapshot, last = self._current(), self._last_rid()

        def fits(index: Approximate) -> str | None:
            if index.seq > last:
                return f"it covers rows up to {index.seq}, the collection has given up to {last}"
            return snapshot.misfit(index)

        found = self._generations.newest(fits)
        if found is not None and found.shape.bytes <= self._budget.free(self._owner):
            self._saved_rows = len(found.rids)
            self._take(found)

    @property
    def _owner(self) -> Path:
        return self._generations.collection

    def _take(self, index: Proposer) -> None:
        self._budget.claim(self._owner, index.shape.bytes)
        self._publish(index)

    def _build(self) -> None:
        snapshot = self._current()
        choose = Shape.choose if self._gpu is None else Resident.choose
        shape = choose(len(snapshot), snapshot.dim, self._budget.free(self._owner))
        if shape is None:
            log.warning(
                "%s stays exact: an index of %d rows takes more than the %d MB that are free; "
                "MEXMA_INDEX_MEMORY_MB says how much there may be",
                self._owner, len(snapshot), self._budget.free(self._owner) >> 20,
            )  # fmt: skip
            self._give_up(snapshot)
            return
        try:
            index = self._built(snapshot, shape)
        except Stopped:
            raise
        except (RuntimeError, MemoryError, MexmaError):
            log.exception("no index could be built for %s; its searches stay exact", self._owner)
            self._give_up(snapshot)
            return
        if (
            isinstance(index, Approximate)
            and abs(len(index.rids) - self._saved_rows) > SAVE_SHARE * self._saved_rows
        ):
            self._save(index)
        self._take(index)

    def _built(self, snapshot: Snapshot, shape: Shape) -> Proposer:
        """From the rows of this state: the index there is, extended, or a new one."""
        seq = int(snapshot.rids[-1]) if len(snapshot.rids) else 0
        attached = snapshot.attached
        if (
            attached is not None
            and attached.built.extends
            and self._dead(snapshot) <= DEAD_SHARE
            and not self._outgrown(snapshot)
        ):
            behind = np.flatnonzero(snapshot.alive[attached.tail :]) + attached.tail
            read = self._reader(snapshot, behind)
            return attached.built.extended(snapshot.rids[behind], seq, read, self._stopped)
        alive = np.flatnonzero(snapshot.alive)
        read = self._reader(snapshot, alive)
        if self._gpu is not None:
            return Resident.build(self._gpu, snapshot.rids[alive], seq, read, self._stopped)
        return Approximate.build(shape, snapshot.rids[alive], seq, read, self._stopped)

    def _reader(self, snapshot: Snapshot, positions: Index) -> Read:
        def read(part: slice | Index) -> Vectors:
            if isinstance(part, slice):
                self.rows_indexed = part.start or 0
            return snapshot.vectors(positions[part])

        return read

    def _save(self, index: Approximate) -> None:
        try:
            self._generations.save(index)
            self._saved_rows = len(index.rids)
        except OSError as error:
            # It serves all the same; only the next start has to build it again.
            if not self._stopped():
                log.error("the index of %s could not be saved: %s", self._owner, error)

    def _give_up(self, snapshot: Snapshot) -> None:
        self._gave_up_at = int(len(snapshot) * (1 + GROWTH)) + 1

    def forget(self) -> None:
        """Give the memory back; the collection is closed."""
        self._budget.claim(self._owner, 0)
