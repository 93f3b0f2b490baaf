"""Around every request: an id, a bound on its body, and a count.

Plain ASGI, because a response wrapped by the framework's own middleware class costs more
than the whole of a small request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.caller import client_of
from service.departures import ClientGone
from service.engine.claims import current as current_claim
from service.http_errors import error_response, for_exception
from service.logs import request_id as request_id_var
from service.metrics import Metrics
from service.received import received_of
from service.request_ids import request_id_of
from service.routes.names import COLLECTION, UNMATCHED, name_of
from service.security.audit import Act
from service.security.audit import current as current_act
from service.security.gate import Gate
from service.security.quotas import Bucket
from service.security.quotas import current as current_quota
from service.shortcut import Shortcut
from service.tracing import Trace, Tracing
from service.tracing import current as current_trace
from service.turns import Turns

log = logging.getLogger(__name__)

# Of our answers, what a page of another origin may read; browsers hide all others from it.
EXPOSED = (
    "x-request-id", "x-encoder-fingerprint", "x-truncation", "x-truncated-items",
    "x-item-errors", "x-failed-items", "retry-after",
    "retry-after-ms", "x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "server-timing",
    "www-authenticate", "allow", "accept-encoding",
)  # fmt: skip
# Headers with which a request is not refused before it is looked at whole.
UNUSUAL = frozenset(
    {b"origin", b"content-encoding", b"x-forwarded-for", b"x-forwarded-proto", b"expect"}
)


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
        gate: Gate,
        client_header: str = "",
        shortcuts: Mapping[str, Shortcut[Any]] | None = None,
        access_log: bool = False,
        tracing: Tracing | None = None,
    ):
        """gate: who may come in; there is none without, so that no process that answers can be
        without. client_header: as `caller_of` takes it. shortcuts: by path, what may answer a
        POST before the framework is asked."""
        self.app = app
        self.shortcuts = shortcuts or {}
        self.max_body_bytes = max_body_bytes
        self.body_timeout_s = body_timeout_s
        self.metrics = metrics
        self.gate = gate
        self.access_log = access_log
        self.tracing = tracing
        self.client_header = client_header
        self.turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        received = received_of(scope)
        if received is not None and received.let_in:
            self.turns.let_in -= 1  # it begins now, or asks for its turn
        scope = _as_declared(scope)
        started = time.monotonic()
        headers = dict(scope["headers"])
        request_id = request_id_of(headers)
        status = 499  # the client left before an answer began

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(b"x-request-id", request_id), *_quota_headers(current_quota.get())]
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        name = request_id.decode()
        trace = self.tracing.begin(scope["headers"], name) if self.tracing else None
        tokens = (request_id_var.set(name), current_trace.set(trace), current_quota.set(None))
        claim, acting = current_claim.set(None), current_act.set(None)
        act: Act | Response | None = None
        try:
            act = await self.gate.enter(scope, headers, name)
            if isinstance(act, Response):
                await act(scope, receive, send_with_id)
            else:
                await self._answer(scope, headers, receive, send_with_id)
        except ClientGone:
            pass
        finally:
            if isinstance(act, dict):
                await self.gate.leave(act, status)
            self._note(scope, status, time.monotonic() - started, trace)
            request_id_var.reset(tokens[0])
            current_trace.reset(tokens[1])
            current_quota.reset(tokens[2])
            current_claim.reset(claim)
            current_act.reset(acting)

    def refuse(self, scope: Scope) -> Response | None:
        """The answer to a request for which there is no room, where its head and the size of its body, which
        is all here, say so. It needs no task, and under overload most requests are such.

        None for all others: they take the way through `__call__`.
        """
        way, received = self.shortcuts.get(scope["path"]), received_of(scope)
        if way is None or received is None or received.body is None or self.tracing is not None:
            return None
        headers = dict(scope["headers"])
        if scope["method"] != "POST" or not UNUSUAL.isdisjoint(headers):
            return None
        body, outer = received.body, current_claim.get()
        if len(body) > self.max_body_bytes or not (found := self.gate.knows(scope, headers)):
            return None
        current_claim.set(_claim_of(body))
        try:
            full = way.full(len(body), headers, scope, self.turns.coming)
        finally:
            current_claim.set(outer)
        if full is None:
            received.let_in = True
            self.turns.let_in += 1
            return None
        response = for_exception(scope["path"], full)
        response.raw_headers += [
            (b"x-request-id", request_id_of(headers)),
            *_quota_headers(found.quota),
        ]
        self._note(scope, response.status_code, 0.0, None)
        return response

    def unread(self, status: int, request_id: str) -> None:
        """Count and log a request that was none, or not in time: nobody knows its route."""
        self.metrics.answered(UNMATCHED, status, 0.0)
        if self.access_log:
            log.info("unread request", extra={"status": status, "request_id": request_id})

    async def _answer(
        self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> None:
        if b"content-length" in headers or b"transfer-encoding" in headers:
            packed = headers.get(b"content-encoding", b"identity").decode("latin-1")
            if packed.strip().lower() not in ("identity", ""):
                await self._refuse(
                    scope,
                    receive,
                    send,
                    status=415,
                    message=f"expected a body as it is, found content-encoding {packed[:40]!r}; "
                    "bodies are not unpacked here",
                    code="packed_body",
                    headers={"accept-encoding": "identity"},
                )
                return
            body = await self._receive_body(scope, headers, receive, send)
            if body is None:
                return
            current_claim.set(_claim_of(body))
            hot = scope["method"] == "POST" and not scope.get("long_way")
            if hot and (way := self.shortcuts.get(scope["path"])):
                response = await way(body, headers, scope, receive, self.turns)
                if response is not None:
                    await response(scope, receive, send)
                    return
            receive = _replay(body, receive)
        await self.turns.mine(client_of(scope, headers, self.client_header))
        await self.app(scope, receive, send)

    def _note(self, scope: Scope, status: int, seconds: float, trace: Trace | None) -> None:
        """Count and log what was answered, unless that was done where it was answered."""
        if scope.get("answered_elsewhere"):
            return
        # As declared: what a route was filled with is the caller's.
        route = name_of(scope["path"])
        self.metrics.answered(route, status, seconds)
        if status == 429:
            self.metrics.refused.labels("quota").inc()
        failed = status >= 500 and status != 503  # "come back later" is no failure of ours
        if self.access_log or failed:
            fields = {"method": scope["method"], "route": route, "status": status}
            log.log(
                logging.WARNING if failed else logging.INFO,
                "request",
                extra=fields | {"seconds": round(seconds, 6)},
            )
        if trace is not None:
            trace.end(scope["method"], route, status)

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
        if (received := received_of(scope)) is not None and received.body is not None:
            if received.left:
                raise ClientGone
            size = len(received.body)
            if not (too_large := too_large or size > limit):
                return received.body
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
        headers: dict[str, str] | None = None,
    ) -> None:
        response = error_response(
            scope["path"],
            status,
            message,
            kind="invalid_request_error",
            code=code,
            limit=limit,
            headers={"connection": "close"} | (headers or {}),
        )
        await response(scope, receive, send)


def _as_declared(scope: Scope) -> Scope:
    """The request as a route is declared that answers it: HEAD is GET, of which the server sends no body,
    and one slash too many at the end is none. A redirect would name the scheme and host that a proxy speaks
    to us, and few clients send a body twice."""
    path, raw = scope["path"], scope.get("raw_path") or b""
    changes: dict[str, str | bytes] = {}
    if scope["method"] == "HEAD":
        changes["method"] = "GET"
    if path.endswith("/") and raw.endswith(b"/") and _is_none(path, scope["method"]):
        changes |= {"path": path[:-1], "raw_path": raw[:-1]}
    return {**scope, **changes} if changes else scope


def _is_none(path: str, method: str) -> bool:
    """Whether the slash at the end says nothing. Where a name could follow, it is the list of all, except
    to DELETE: a client whose id is empty must not come to where all are deleted."""
    if path == "/v1/models/" or name_of(path[:-1]) == f"{COLLECTION}/documents":
        return method != "DELETE"
    return name_of(path) == UNMATCHED


def _claim_of(body: bytes) -> int:
    """By what a request is known when it comes back."""
    return hash(body) or 1  # 0 is none, between processes


def _quota_headers(quota: Bucket | None) -> list[tuple[bytes, bytes]]:
    if quota is None:
        return []
    return [
        (b"x-ratelimit-limit-tokens", b"%d" % quota.tokens_per_minute),
        (b"x-ratelimit-remaining-tokens", b"%d" % quota.level()),
    ]


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


def with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """`app`, and around it what lets pages of `origins` call it; it answers their preflights."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST", "PUT", "DELETE"],
        allow_headers=["authorization", "content-type", "x-request-id", "x-lane", "x-timeout-ms"],
        expose_headers=EXPOSED,
        max_age=600,
    )
