"""uvicorn's protocol, with a response's head and body in one write.

uvicorn writes them one after the other, and each write is a system call that wakes the client: for a
single vector that was the largest part of what the service did (`LOG.md`, 2026-11-26).
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class OneWriteTransport:
    """A transport that holds what is written until the loop's next turn, and then writes it at once.

    Everything else is the transport's own; it is flushed before it is closed. handed_over_bytes: what
    was ever given to the transport.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop):
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self.handed_over_bytes = 0
        # Asked of each connection each second, and for each request.
        self.get_write_buffer_size = transport.get_write_buffer_size
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(data)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        """Write what is held."""
        held, self._held = self._held, []
        if held and not self._transport.is_closing():  # else nobody is there to read it
            data = held[0] if len(held) == 1 else b"".join(held)
            self.handed_over_bytes += len(data)
            self._transport.write(data)


class OneWriteProtocol(HttpToolsProtocol):
    """`HttpToolsProtocol` over such a transport."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, OneWriteTransport(transport, self.loop)))
