"""Writes of many callers that share one commit, since a commit waits for the disk.

    Group     callers hand in writes; whoever comes first leads, and those who come while it
              waits for the disk are the next group
    Write     one caller's change, and what became of it
    Draft     the state that a group prepares, write by write

Nothing waits for company: a write that comes alone is committed alone and at once. Each write is
whole or not there by a savepoint of its own, and is answered after the commit.

Refuses to know: SQLite, what a write changes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np

from service.store.database import Transaction
from service.store.index import Index, Snapshot
from service.store.protocol import Vectors

T = TypeVar("T")

GROUP_ROWS = 4_096
"""Rows above which a group takes no further write: small ones should not wait for a crowd of large ones."""


class Change(NamedTuple):
    """Rows to drop and rows to add; see `Snapshot.changed`."""

    dead: Index
    rids: Index
    tags: Sequence[str]
    vectors: Vectors
    metadata: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Draft:
    """What will be published: `base` with `changes` on top. Never changed: a write that fails
    leaves the draft that it was given."""

    base: Snapshot
    changes: tuple[Change, ...] = ()

    def with_change(self, change: Change) -> Draft:
        return Draft(self.base, (*self.changes, change))

    def settled(self) -> Draft:
        """The same with all changes made, so that `base` can be searched."""
        if not self.changes:
            return self
        dead = np.unique(np.concatenate([change.dead for change in self.changes]))
        rids = np.concatenate([change.rids for change in self.changes])
        # What one write of the group added and a later one replaced is never seen.
        kept = np.flatnonzero(~np.isin(rids, dead))
        tags = [tag for change in self.changes for tag in change.tags]
        metadata = [one for change in self.changes for one in change.metadata]
        vectors = np.concatenate([change.vectors for change in self.changes])
        return Draft(
            self.base.changed(
                dead[~np.isin(dead, rids)],
                rids[kept],
                [tags[i] for i in kept],
                vectors[kept],
                [metadata[i] for i in kept],
            )
        )


@dataclass(eq=False)
class Write:
    """rows: about how many it changes. change: makes it in the database, and says what the caller
    is told and what the draft is now. One of outcome and error is set when it is answered."""

    rows: int
    change: Callable[[Transaction, Draft], tuple[Any, Draft]]
    outcome: Any = None
    error: BaseException | None = None
    leads: bool = False
    woken: threading.Event = field(default_factory=threading.Event)


class Group:
    """writing: held while a group is committed. commit: makes these writes durable, and sets the
    outcome or the error of each."""

    def __init__(self, writing: threading.Lock, commit: Callable[[Sequence[Write]], None]):
        self._writing = writing
        self._commit = commit
        self._waiting: list[Write] = []
        self._led = False
        self._lock = threading.Lock()

    def write(self, rows: int, change: Callable[[Transaction, Draft], tuple[T, Draft]]) -> T:
        """Have one change made; returns when it is durable. Raises what the change raised."""
        write = Write(rows, change)
        with self._lock:
            self._waiting.append(write)
            write.leads, self._led = not self._led, True
        if not write.leads:
            self._wait(write)
        if write.leads:
            self._lead()
        if write.error is not None:
            raise write.error
        outcome: T = write.outcome
        return outcome

    def _wait(self, write: Write) -> None:
        try:
            write.woken.wait()
        except BaseException:  # an interrupt; whoever was made the leader meanwhile must lead
            with self._lock:
                if not write.leads and write in self._waiting:
                    self._waiting.remove(write)
            if write.leads:
                self._lead()
            raise

    def _lead(self) -> None:
        """Commit what waits, this thread's write first, and let the next one lead."""
        group: list[Write] = []
        try:
            with self._writing:
                group = self._taken()  # only now: while this one waited, others came
                self._commit(group)
        except BaseException as error:
            for write in group:
                write.error = write.error or error
            raise
        finally:
            with self._lock:
                self._led = bool(self._waiting)
                if self._led:
                    self._waiting[0].leads = True
                    self._waiting[0].woken.set()
            for write in group:
                write.woken.set()

    def _taken(self) -> list[Write]:
        with self._lock:
            n, rows = 0, 0
            while n < len(self._waiting) and (not n or rows + self._waiting[n].rows <= GROUP_ROWS):
                rows += self._waiting[n].rows
                n += 1
            taken, self._waiting = self._waiting[:n], self._waiting[n:]
            return taken
