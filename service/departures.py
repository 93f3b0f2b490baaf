"""Work that ends when the client it is for has left.

Our own connections say when that is (received.py); another server has to be asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

from fastapi import Request
from starlette.types import Receive, Scope

from service.received import received_of

T = TypeVar("T")

# A client that left is noticed so much later at most; most requests are done before.
WATCH_AFTER_S = 0.05


class ClientGone(Exception):
    """The client closed the connection; nobody will read an answer."""


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Await `work`, and cancel it when the client disconnects. Raises ClientGone then."""
    return await watched(request.scope, request.receive, work)


async def watched(scope: Scope, receive: Receive, work: Awaitable[T]) -> T:
    """As `unless_gone`, for whoever has no request."""
    received = received_of(scope)
    if received is None:
        return await _asked_for(receive, work)
    owner, cancelled = asyncio.current_task(), False

    def cancel() -> None:
        nonlocal cancelled
        if owner is not None:
            cancelled = owner.cancel()

    received.on_left = cancel
    if received.left:
        cancel()
    try:
        return await work
    except asyncio.CancelledError:
        if cancelled and owner is not None and owner.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        received.on_left = None


async def _asked_for(receive: Receive, work: Awaitable[T]) -> T:
    """Where the server does not tell that a client left, but has to be asked.

    That is done only once the work has lasted WATCH_AFTER_S: a task for it costs more than a small
    request's whole way through the service.
    """
    loop = asyncio.get_running_loop()
    owner = asyncio.current_task()
    gone = False
    watcher: asyncio.Task[None] | None = None

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        if owner is not None:
            owner.cancel()

    def begin() -> None:
        nonlocal watcher
        watcher = loop.create_task(watch())

    timer = loop.call_later(WATCH_AFTER_S, begin)
    try:
        return await work
    except asyncio.CancelledError:
        if gone and owner is not None and owner.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        timer.cancel()
        if watcher is not None and not watcher.done():
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher
