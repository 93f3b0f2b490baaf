"""What a worker does not answer itself, handed to the engine's process over its Unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import httptools
from starlette.types import Scope, Send

from mexma.errors import EngineAway
from service.logs import request_id

# Of one connection and not of the message; and those that this side sets anew.
HOP_BY_HOP = {
    b"connection", b"keep-alive", b"transfer-encoding", b"te", b"upgrade", b"trailer", b"expect",
    b"content-length", b"x-forwarded-for", b"x-forwarded-proto",
}  # fmt: skip
SET_ANEW = {b"connection", b"transfer-encoding", b"x-request-id", b"date", b"server"}
READ_BYTES = 256 * 1024


class _Answer:
    """What the parser finds."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: list[bytes] = []
        self.head_complete = False
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.head_complete = True

    def on_body(self, part: bytes) -> None:
        self.body.append(part)

    def on_message_complete(self) -> None:
        self.complete = True


async def forward(path: Path, scope: Scope, body: bytes, send: Send) -> None:
    """Ask the server at the Unix socket `path`, and `send` its answer.

    Raises EngineAway when there is none; once the answer has begun, ConnectionError.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(str(path))
    except OSError as error:
        raise EngineAway(
            "the engine's process is being restarted; retry", retry_after_s=1
        ) from error
    answer = _Answer()
    parser = httptools.HttpResponseParser(answer)
    started = False
    try:
        writer.write(_head(scope, len(body)) + body)
        while not answer.complete:
            data = await reader.read(READ_BYTES)
            if not data:
                raise ConnectionResetError("the engine's process closed the connection")
            parser.feed_data(data)
            if answer.head_complete and not started:
                started = True
                await send(
                    {
                        "type": "http.response.start",
                        "status": parser.get_status_code(),
                        "headers": [h for h in answer.headers if h[0] not in SET_ANEW],
                    }
                )
            if answer.body and not answer.complete:
                await send(_part(answer, more=True))
        await send(_part(answer, more=False))
    except (OSError, httptools.HttpParserError) as error:
        if started:
            raise
        raise EngineAway(
            "the engine's process died and is being restarted; retry", retry_after_s=1
        ) from error
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def _part(answer: _Answer, *, more: bool) -> dict[str, object]:
    body, answer.body = b"".join(answer.body), []
    return {"type": "http.response.body", "body": body, "more_body": more}


def _head(scope: Scope, body_bytes: int) -> bytes:
    target: bytes = scope.get("raw_path") or scope["path"].encode()
    if scope.get("query_string"):
        target += b"?" + scope["query_string"]
    given: Iterable[tuple[bytes, bytes]] = scope["headers"]
    headers = [h for h in given if h[0] not in HOP_BY_HOP and h[0] != b"x-request-id"]
    if (name := request_id.get()) is not None:  # the engine's process logs and records this one
        headers.append((b"x-request-id", name.encode()))
    headers.append((b"connection", b"close"))
    headers.append((b"content-length", str(body_bytes).encode()))
    if client := scope.get("client"):
        headers.append((b"x-forwarded-for", client[0].encode()))
    headers.append((b"x-forwarded-proto", scope.get("scheme", "http").encode()))
    lines = [scope["method"].encode() + b" " + target + b" HTTP/1.1"]
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"
