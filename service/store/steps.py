"""The places between which a kill must lose nothing, by name.

The code says which step it has reached; `tests/service/store/test_crash.py` ends the process at
each of these. A step that is not in the list cannot be reached, so the list is complete.
"""

from __future__ import annotations

from collections.abc import Callable

STEPS = frozenset(
    {
        "write: begun",
        "write: rows deleted",
        "write: rows inserted",
        "write: prepared",
        "write: committed",
        "write: published",
        "compaction: begun",
        "compaction: rows moved",
        "generation: folder made",
        "generation: index written",
        "generation: rows written",
        "generation: manifest written",
        "generation: renamed",
        "generation: durable",
        "generation: older removed",
        "backup: folder made",
        "backup: database copied",
        "backup: index linked",
        "backup: manifest written",
        "backup: renamed",
        "restore: folder made",
        "restore: files copied",
        "restore: succession written",
        "restore: renamed",
        "restore: durable",
        "restore: predecessor renamed",
        "migration: folder made",
        "migration: database made",
        "migration: roles written",
        "migration: roles renamed",
        "migration: roles durable",
        "migration: folder renamed",
        "migration: rows taken",
        "migration: last rows taken",
        "migration: numbers raised",
        "migration: changed over",
        "migration: other renamed",
        "migration: roles removed",
    }
)

MILVUS_STEPS = frozenset(
    {
        "milvus: collection made",
        "milvus: beside made",
        "milvus: rows taken",
        "milvus: rows removed",
        "milvus: serving renamed",
        "milvus: other renamed",
        "milvus: aside renamed",
        "milvus: mended",
        "milvus: beside dropped",
    }
)
"""Those of collections on a Milvus server; `milvus/test_migrations.py` ends a command at each."""


def _nothing(step: str) -> None:
    pass


observer: Callable[[str], None] = _nothing
"""Told of each step; tests put a killer here."""


def reached(step: str) -> None:
    """Say that `step` has been done."""
    if step not in STEPS and step not in MILVUS_STEPS:
        raise KeyError(f"{step!r} is not among the steps in service/store/steps.py")
    observer(step)
