"""What the process says: lines for people or JSON for machines, each with its request's id.

A line holds what an operator needs and nothing of what a caller sent: no text, no query, no
key. Embeddings can be inverted, so vectors are as private as texts and are not logged either.
"""

from __future__ import annotations

import logging
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

# Set around each request by `service.middleware.RequestBorder`; tasks and threads that are
# started on its behalf inherit it.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

LogFormat = Literal["text", "json"]
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, request_id, and
    whatever the caller gave as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (current := request_id.get()) is not None:
            line["request_id"] = current
        line |= {k: v for k, v in vars(record).items() if k not in _OWN}
        if record.exc_info:
            line["exception"] = "".join(traceback.format_exception(*record.exc_info))
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


class TextLines(logging.Formatter):
    """For people; the request's id in brackets."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        given = {k: v for k, v in vars(record).items() if k not in _OWN}
        line += "".join(f" {k}={_on_one_line(v)}" for k, v in given.items())
        current = request_id.get()
        return f"{line} [{current}]" if current is not None else line


def _on_one_line(value: object) -> str:
    """What a caller wrote, a path say, must not look like a line or a colour of the log's own."""
    text = str(value)
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def configure(level: str, form: LogFormat) -> None:
    """Send everything of this process to standard error, in `form`, from `level` up."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
