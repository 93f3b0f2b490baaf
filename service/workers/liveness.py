"""Does the engine's process answer? Asked by the supervisor, and by workers before they wait for more.

The question is a request at the Unix socket where workers hand theirs on, so that the event loop that
answers it is the one whose answer they need. Workers never hand `/health/live` on: what comes there
comes from here, and is no client's request to be counted or logged.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from fastapi.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

PATH = "/health/live"
QUESTION = f"GET {PATH} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode()
YES = b"HTTP/1.1 200"


def lives(path: Path, *, timeout_s: float) -> bool:
    """Whether who listens at the Unix socket `path` answers, each step within `timeout_s`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(timeout_s)
        try:
            probe.connect(str(path))
            probe.sendall(QUESTION)
            return probe.recv(len(YES)) == YES
        except OSError:
            return False


async def lives_soon(path: Path, *, timeout_s: float) -> bool:
    """As `lives`, on an event loop and within `timeout_s` in all."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(str(path))
            try:
                writer.write(QUESTION)
                return await reader.readexactly(len(YES)) == YES
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return False


def is_asked(scope: Scope) -> bool:
    """Whether a request is the question."""
    return scope["type"] == "http" and (scope["method"], scope["path"]) == ("GET", PATH)


def answering(app: ASGIApp) -> ASGIApp:
    """`app`, and the answer to the question, which does not pass through it."""

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        if is_asked(scope):
            await alive(scope, receive, send)
        else:
            await app(scope, receive, send)

    return outer


async def alive(scope: Scope, receive: Receive, send: Send) -> None:
    """The answer, as `service.schemas.Live`."""
    response = Response(b'{"status":"alive"}', media_type="application/json")
    await response(scope, receive, send)
