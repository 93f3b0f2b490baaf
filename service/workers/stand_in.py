"""Answers in place of HTTP workers while none is there and the next has to wait.

Without it connections would be taken by the kernel and hang until there is a worker. It is as small
as can be, one connection after the other and nothing of what workers load, so that it does not die of
what they die of. Each request is refused, a probe with the reason; liveness too, since to restart
everything is all that is left to try.
"""

from __future__ import annotations

import select
import socket
from contextlib import suppress

from mexma.errors import EngineAway
from service import readiness
from service.http_errors import for_exception

PATIENCE_S = 1.0
MAX_HEAD_BYTES = 16 * 1024


def stand_in(listener: socket.socket, detail: str, *, plain: bool) -> None:
    """Refuse whatever comes, until the process ends. plain: not TLS, where a connection is closed
    without a word, which is an answer, too."""
    while True:
        select.select([listener], [], [])  # it does not block: workers' event loops made it so
        try:
            connection, _ = listener.accept()
        except OSError:  # who had connected is gone
            continue
        with connection, suppress(OSError):
            connection.settimeout(PATIENCE_S)
            if plain:
                connection.sendall(answer_to(_head(connection), detail))
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):  # else what is unread resets what was sent
                    pass


def answer_to(head: bytes, detail: str) -> bytes:
    """The refusal of the request that begins with `head`, as bytes of HTTP/1.1."""
    parts = head.split(b" ", 2)
    path = parts[1].partition(b"?")[0].decode("latin-1") if len(parts) == 3 else "/"
    if path in readiness.PATHS:
        response = readiness.not_ready(path, reason="workers_failing", detail=detail)
    else:
        response = for_exception(path, EngineAway(f"{detail}; retry", retry_after_s=5))
    lines = [b"HTTP/1.1 503 Service Unavailable", b"connection: close"]
    lines += [name + b": " + value for name, value in response.raw_headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + bytes(response.body)


def _head(connection: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head and len(head) < MAX_HEAD_BYTES:
        if not (more := connection.recv(4096)):
            break
        head += more
    return head
