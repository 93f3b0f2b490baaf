"""The record of what administrators did: a line before the act, and a line after it.

A line is on disk before the act begins; where it cannot be written, the act is refused. Without a
file the lines go to the log. The second line also says what only the act itself knows (`note`).
"""

from __future__ import annotations

import logging
import os
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

import orjson

from mexma.errors import AuditError

log = logging.getLogger("mexma.audit")


Act = dict[str, str | int | None]

# What will be recorded of the request under way in the end; None where it is no administrator's.
current: ContextVar[Act | None] = ContextVar("act", default=None)


def note(**what: str | int | None) -> None:
    """Have the line after the act under way say this, too."""
    if (act := current.get()) is not None:
        act.update(what)


class Audit:
    """path: a file of JSON lines that only grows; None for the log."""

    def __init__(self, path: Path | None):
        """Raises AuditError when the file cannot be appended to."""
        self._path = path
        self._file: int | None = None
        if path is not None:
            try:
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            except OSError as error:
                raise AuditError(f"{path} cannot be appended to: {error.strerror}") from error

    def write(self, phase: str, **what: str | int | None) -> None:
        """One line, on disk when this returns. Raises AuditError."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": time, "phase": phase, **what}
        if self._file is None:
            log.info("audit", extra={"phase": phase, **what})
            return
        data = orjson.dumps(line) + b"\n"
        try:
            written = os.write(self._file, data)
            os.fsync(self._file)
        except OSError as error:
            raise AuditError(f"{self._path} cannot be written: {error.strerror}") from error
        if written != len(data):
            raise AuditError(f"{self._path} took {written} of {len(data)} bytes")

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
