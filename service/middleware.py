"""Around every request: an id, a bound on its body, a count, and word of a client that left.

Plain ASGI, because a response wrapped by the framework's own middleware class costs more
than the whole of a small request.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http_errors import error_response
from service.logs import request_id as request_id_var
from service.metrics import Metrics
from service.tracing import Tracing
from service.tracing import current as current_trace

log = logging.getLogger(__name__)
T = TypeVar("T")
REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,128}")


class ClientGone(Exception):
    """The client closed the connection; nobody will read an answer."""


class RequestBorder:
    """The outermost layer.

    Gives the request its id (`x-request-id`, taken over from the client when it is made of
    letters, digits and `_.:-`), reads the body whole within `max_body_bytes` and
    `body_timeout_s` (413 and 408), counts the outcome, and logs it with `access_log`; a
    failure of ours (500 and above, other than 503) is logged in any case.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        body_timeout_s: float,
        metrics: Metrics,
        access_log: bool = False,
        tracing: Tracing | None = None,
    ):
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.body_timeout_s = body_timeout_s
        self.metrics = metrics
        self.access_log = access_log
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex.encode()
        token = request_id_var.set(request_id.decode())
        trace = self.tracing.begin(scope["headers"], request_id.decode()) if self.tracing else None
        trace_token = current_trace.set(trace)
        status = 499  # the client left before an answer began

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        try:
            if b"content-length" in headers or b"transfer-encoding" in headers:
                body = await self._receive_body(scope, headers, receive, send_with_id)
                if body is None:
                    return
                receive = _replay(body, receive)
            await self.app(scope, receive, send_with_id)
        except ClientGone:
            pass
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "unmatched")
            self.metrics.requests.labels(path, status).inc()
            seconds = time.monotonic() - started
            self.metrics.request_seconds.labels(path).observe(seconds)
            failed = status >= 500 and status != 503  # "come back later" is no failure of ours
            if self.access_log or failed:
                log.log(
                    logging.WARNING if failed else logging.INFO,
                    "request",
                    extra={
                        "method": scope["method"],
                        "route": path,  # as declared: what it was filled with is the caller's
                        "status": status,
                        "seconds": round(seconds, 6),
                    },
                )
            if trace is not None:
                trace.end(scope["method"], path, status)
            current_trace.reset(trace_token)
            request_id_var.reset(token)

    async def _receive_body(
        self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> bytes | None:
        """The body, or None when an error has been sent instead."""
        limit = self.max_body_bytes
        header = headers.get(b"content-length", b"")
        declared = int(header) if header.isdigit() else 0
        too_large = declared > limit
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.body_timeout_s):
                while not too_large:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    too_large = size > limit
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            message_text = (
                f"the body did not arrive within {self.body_timeout_s:g} s; {size} bytes came"
            )
            await self._refuse(
                scope, receive, send, status=408, message=message_text, code="body_timeout"
            )
            return None
        if too_large:
            found = f"{declared} bytes" if declared > limit else f"over {limit} bytes"
            message_text = f"the body has {found}; the limit is {limit} bytes"
            await self._refuse(
                scope,
                receive,
                send,
                status=413,
                message=message_text,
                code="body_too_large",
                limit=limit,
            )
            return None
        return b"".join(chunks)

    async def _refuse(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        status: int,
        message: str,
        code: str,
        limit: int | None = None,
    ) -> None:
        response = error_response(
            scope["path"],
            status,
            message,
            kind="invalid_request_error",
            code=code,
            limit=limit,
            headers={"connection": "close"},
        )
        await response(scope, receive, send)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that hands out `body` once and then what the client does next."""
    handed_out = False

    async def replay() -> Message:
        nonlocal handed_out
        if not handed_out:
            handed_out = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Await `work`, and cancel it when the client disconnects. Raises ClientGone then."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for pending in (task, watcher):
            if not pending.done():
                pending.cancel()
                with suppress(asyncio.CancelledError):
                    await pending


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
