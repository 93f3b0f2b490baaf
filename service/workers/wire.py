"""What workers and the engine's process say to each other, over a Unix socket.

Frames: length (uint32), kind (uint8), payload. Texts never travel here, and vectors and ids lie in shared
memory (`arena.py`): a message is some dozens of bytes.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, cast

import orjson

from service.engine.lanes import Lane

log = logging.getLogger(__name__)

FRAME = struct.Struct("<IB")
SUBMIT = struct.Struct("<QQIIBdq")
JOB = struct.Struct("<Q")
DONE = struct.Struct("<Qdd")
REFUSED = struct.Struct("<Qd")
LANES: tuple[Lane, Lane] = ("interactive", "bulk")

# No message is anywhere near as large; a length beyond it means that the stream is out of step.
MAX_FRAME_BYTES = 16 * 2**20


# What reading one that makes no sense ends in.
NONSENSE = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, struct.error)


class Kind(IntEnum):
    """From a worker: submit, cancel, observed. To a worker: hello, done, refused."""

    HELLO = 1
    SUBMIT = 2
    CANCEL = 3
    OBSERVED = 4
    DONE = 5
    REFUSED = 6


@dataclass(frozen=True, slots=True)
class Submission:
    """A job whose ids lie at `offset`. deadline: of the monotonic clock, which processes share.
    claim: 0 for none."""

    job: int
    offset: int
    count: int
    tokens: int
    lane: Lane
    deadline: float
    claim: int
    client: bytes

    def pack(self) -> bytes:
        head = SUBMIT.pack(
            self.job, self.offset, self.count, self.tokens, LANES.index(self.lane), self.deadline,
            self.claim,
        )  # fmt: skip
        return head + self.client

    @classmethod
    def unpack(cls, payload: bytes) -> Submission:
        job, offset, count, tokens, lane, deadline, claim = SUBMIT.unpack_from(payload)
        client = payload[SUBMIT.size :]
        return cls(job, offset, count, tokens, LANES[lane], deadline, claim, client)


def errors_to_json(errors: dict[int, Exception]) -> bytes:
    """index -> (class, sentence), as `Job.errors` has them."""
    return orjson.dumps([[i, type(e).__name__, str(e)] for i, e in errors.items()])


class Frames(asyncio.Protocol):
    """A stream of frames. Subclasses say what one means, and what the end means."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    @property
    def open(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def send(self, kind: Kind, payload: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(FRAME.pack(len(payload), kind) + payload)

    def send_json(self, kind: Kind, content: Any) -> None:
        self.send(kind, orjson.dumps(content))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= FRAME.size:
            size, kind = FRAME.unpack_from(self._buffer, at)
            if size > MAX_FRAME_BYTES:
                self.close()
                return
            end = at + FRAME.size + size
            if len(self._buffer) < end:
                break
            try:
                self.received(Kind(kind), bytes(self._buffer[at + FRAME.size : end]))
            except NONSENSE as error:
                log.error(
                    "a message of kind %d makes no sense, so the connection is closed: %s",
                    kind,
                    error,
                )
                self.close()
                return
            at = end
        del self._buffer[:at]

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def received(self, kind: Kind, payload: bytes) -> None:
        """One frame has come."""
        raise NotImplementedError
