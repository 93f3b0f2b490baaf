"""What one client's connection may cost: bounds in bytes, time and number around uvicorn's protocol.

uvicorn waits for ever for a request's head, keeps as much of it as is sent, and holds an answer for as
long as nobody reads it. Here a head has a size and a time, an answer must be taken at some pace, and of
too many connections those go first that wait for their client. A client that has only closed its own
side is answered, and one that asks for another protocol is answered in this one.
"""

from __future__ import annotations

import asyncio
import fcntl
import heapq
import logging
import resource
import socket
import struct
import sys
import termios
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, cast

import httptools
from starlette.responses import Response
from starlette.types import Scope
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle
from uvicorn.server import ServerState

from service.http_errors import error_response
from service.one_write import OneWriteProtocol, OneWriteTransport
from service.received import KEY, Received, Refuse
from service.request_ids import request_id_of

log = logging.getLogger(__name__)

# Of a request's head, or of what follows a body; that a parser holds before anybody can refuse it.
MAX_HEAD_BYTES = 64 * 1024
# Of an answer that must be taken in each `write_timeout_s`, unless less is left.
PACE_BYTES = 64 * 1024
# How often connections are looked at; times are kept to this.
LOOK_EVERY_S = 1.0
# A body of up to 99,999 bytes is waited for, for so long, before its request begins.
MOST_DIGITS, HOLD_S = 5, 0.5
# How often a client that closed its side is looked for while its request is under way.
ASK_EVERY_S = 0.05
# Files that the process opens for itself: collections, indexes, the model.
OWN_FILES = 256

TCP_CLOSE = 7
AT_ONCE = struct.pack("ii", 1, 0)
PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"
Words = tuple[int, str, str]
# A status, a sentence and its code.
FRAMING = (b"content-length", b"transfer-encoding")


TOO_LONG = 431, f"a request's head may have {MAX_HEAD_BYTES} bytes", "head_too_large"
TOO_SLOW = 408, "the request's head did not arrive in time", "head_timeout"


def room_for_connections(wanted: int) -> int:
    """How many of `wanted` connections this process may have; takes all the files it may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = wanted if hard == resource.RLIM_INFINITY else max(hard - OWN_FILES, 16)
    if room < wanted:
        log.warning(
            "MEXMA_MAX_CONNECTIONS is %d, but this process may open %d files: %d connections",
            wanted,
            hard,
            room,
        )
    return min(wanted, room)


class _Unclear(Exception):
    """A request of which another could take something else for what it says."""


class Connections:
    """All connections of one server. Times in seconds; maximum: how many there may be. refuse: is asked of
    each request whose body came with its head, before there is a task for it. unread: is told the status and
    the id of an answer to what no application was shown."""

    def __init__(
        self,
        *,
        header_timeout_s: float,
        write_timeout_s: float,
        maximum: int,
        refuse: Refuse | None = None,
        unread: Callable[[int, str], None] | None = None,
    ):
        self.refuse = refuse
        self.unread = unread
        self.header_timeout_s = header_timeout_s
        self.write_timeout_s = write_timeout_s
        self.maximum = maximum
        self._open: set[Connection] = set()
        self._dropped: Counter[str] = Counter()
        self._looking: asyncio.TimerHandle | None = None

    def add(self, connection: Connection) -> None:
        """One more; where there is no room, those make it that have waited longest for their client."""
        if len(self._open) >= self.maximum:
            waiting = [c for c in self._open if c.waits_for_client]
            # Some more than one, so that a flood is not a search through all for each.
            some = max(1, self.maximum // 16)
            oldest = heapq.nsmallest(some, waiting, key=lambda c: c.quiet_since)
            for one in oldest or [connection]:
                self._drop(one, "too many connections")
            if not oldest:
                return
        self._open.add(connection)
        if self._looking is None:
            self._look_later(connection.loop)

    def discard(self, connection: Connection) -> None:
        self._open.discard(connection)

    def _look_later(self, loop: asyncio.AbstractEventLoop) -> None:
        shortest = min(self.header_timeout_s, self.write_timeout_s)
        self._looking = loop.call_later(min(LOOK_EVERY_S, shortest / 4), self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in list(self._open):
            connection.begin_if_held(now)
            if connection.awaits_head and now - connection.quiet_since > self.header_timeout_s:
                self._drop(connection, "no request in time", last_words=TOO_SLOW)
            elif connection.is_stuck(now, self.write_timeout_s):
                self._drop(connection, "answer not taken in time", reset=True)
        if self._dropped:
            log.warning(
                "connections dropped: %s",
                ", ".join(f"{why} ({n})" for why, n in self._dropped.items()),
            )
            self._dropped.clear()
        self._looking = None
        if self._open:
            self._look_later(loop)

    def _drop(self, connection: Connection, why: str, **how: Any) -> None:
        self._dropped[why] += 1
        self._open.discard(connection)
        connection.drop(**how)


class Connection(OneWriteProtocol):
    """One of them."""

    transport: OneWriteTransport  # type: ignore[assignment]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        among: Connections,
    ):
        super().__init__(config, server_state, app_state, _loop)
        self._among = among
        self.quiet_since = self.loop.time()
        self._in_head = False
        self._head_bytes = 0  # of the newest request that is whole
        self._loose_bytes = 0  # since a head began, or since the last byte of a body
        self._taken_bytes, self._taken_at = 0, self.quiet_since
        self._resuming = False
        self._ignores = False  # what still comes
        self._holding = False  # what begins, until all that has come is read
        self._held: tuple[RequestResponseCycle, Any] | None = None
        self._held_since = 0.0
        self._begun: Received | None = None
        self._answering: RequestResponseCycle | None = None

    @property
    def under_way(self) -> bool:
        """Whether a request is being received or answered."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def holds(self) -> bool:
        """Whether a request waits for the rest of its body, and nobody answers it yet."""
        return self._held is not None

    @property
    def waits_for_client(self) -> bool:
        """Whether nothing happens here unless the client sends something."""
        return not self.under_way or self.cycle.more_body

    @property
    def awaits_head(self) -> bool:
        """Whether a request has begun, or never has; between two uvicorn's keep-alive counts, and an
        answer on its way has a time of its own."""
        between = not self.under_way and self.timeout_keep_alive_task is None
        return between and not self.transport.get_write_buffer_size()

    def is_stuck(self, now: float, timeout_s: float) -> bool:
        """Whether in the last `timeout_s` less of what waits to be sent was taken than must be."""
        waiting = self.transport.get_write_buffer_size()
        taken = self.transport.handed_over_bytes - waiting
        if waiting:  # the kernel takes megabytes at once, long before the client does
            taken -= _unacknowledged_bytes(self.transport.get_extra_info("socket").fileno())
        if not waiting or taken - self._taken_bytes >= PACE_BYTES:
            self._taken_bytes, self._taken_at = taken, now
        return now - self._taken_at > timeout_s

    def drop(self, *, last_words: Words | None = None, reset: bool = False) -> None:
        """Close at once. last_words: for a client that has begun to say something. reset: drop what
        the kernel holds, too, which it would else try for minutes to bring to the client."""
        if reset:
            connected = self.transport.get_extra_info("socket")
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        elif last_words and self._in_head and not self.transport.is_closing():
            self._say(*last_words)
            self.transport.flush()
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._among.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._among.discard(self)
        super().connection_lost(exc)
        if self._answering is not None:  # which need not be the newest that was read
            self._answering.disconnected = True
        self._begin(waits=False)  # as one whose client has left
        if self._begun is not None:
            self._begun.leave()

    def data_received(self, data: bytes) -> None:
        if self._ignores:
            return
        if self._loose_bytes > MAX_HEAD_BYTES:
            self._end(*TOO_LONG)
            return
        self._loose_bytes += len(data)
        self._unset_keepalive_if_required()
        self._holding = True
        try:
            self.parser.feed_data(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._held = None
                self._say(*TOO_LONG)
                self.transport.close()
            elif self._in_head and self._loose_bytes > MAX_HEAD_BYTES:
                self._end(*TOO_LONG)
        except httptools.HttpParserUpgrade as upgrade:
            self._stay(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if self._head_bytes > MAX_HEAD_BYTES:
                self._end(*TOO_LONG)
            else:
                self._end(400, f"this is no HTTP/1.1 request: {_why(error)}", "no_request")
        finally:
            self._holding = False
            self._begin()

    def _end(self, status: int, sentence: str, code: str) -> None:
        """The last answer here, to what no application has seen; after that to a request before it."""
        if self.under_way and not self.cycle.more_body:
            self.cycle.keep_alive, self._ignores = False, True
            return
        if not (self.under_way and self.cycle.response_started):
            self._say(status, sentence, code)
        self.transport.close()

    def _say(self, status: int, sentence: str, code: str) -> None:
        request_id = request_id_of(dict(self.headers or ()))
        response = error_response("", status, sentence, kind="invalid_request_error", code=code)
        own = (b"x-request-id", request_id), (b"connection", b"close")
        parts = [STATUS_LINE[status]]
        for name, value in (*response.raw_headers, *own):
            parts += (name, b": ", value, b"\r\n")
        self.transport.write(b"".join([*parts, b"\r\n", bytes(response.body)]))
        if self._among.unread is not None:
            self._among.unread(status, request_id.decode())

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """The turn of a request on this connection has come."""
        self._held, self._held_since = (cycle, app), self.loop.time()
        if not self._holding:
            self._begin()

    def begin_if_held(self, now: float) -> None:
        """A body that has not come by now is waited for by whoever answers, who has a time for it."""
        if self._held is not None and now - self._held_since > HOLD_S:
            self._begin(waits=False)

    def _begin(self, *, waits: bool = True) -> None:
        """Begin what is held, and what follows it at once, one after the other: a client may send a
        thousand requests in one piece. waits: where a small body is on its way, which most clients send
        after the head, nothing begins without it."""
        while self._held is not None:
            if waits and self._held[0].more_body and _is_small(self._held[0].scope["headers"]):
                return
            (cycle, app), self._held = self._held, None
            self._begun = Received(None)
            if not cycle.more_body:  # kept once
                self._begun.body, cycle.body = bytes(cycle.body), bytearray()
            scope = cast(Scope, cycle.scope)
            scope[KEY] = self._begun
            refused = None if self.flow.write_paused else self._refusal(scope)
            if refused is None:
                self._answering = cycle
                super()._start_asgi_task(cycle, app)
                return
            self._holding = True
            try:
                self._answer(cycle, refused)
            finally:
                self._holding = False

    def _refusal(self, scope: Scope) -> Response | None:
        if self._among.refuse is None:
            return None
        try:
            return self._among.refuse(scope)
        except Exception:  # whoever is asked next has an answer for that, too
            log.exception("whether a request is refused could not be said")
            return None

    def _answer(self, cycle: RequestResponseCycle, response: Response) -> None:
        """As uvicorn does, without asking anybody for it."""
        if self.transport.is_closing():
            return
        parts = [STATUS_LINE[response.status_code]]
        for name, value in (*cycle.default_headers, *response.raw_headers):
            parts += (name, b": ", value, b"\r\n")
        parts += (
            b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n",
            bytes(response.body),
        )
        self.transport.write(b"".join(parts))
        cycle.response_started = cycle.response_complete = True
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()

    def _stay(self, rest: bytes) -> None:
        """Go on in HTTP/1.1 with a client that offered to change to another protocol.

        The parser has left the request at the end of its head and takes no more. Java's own client
        offers HTTP/2 with every request, and sends the body all the same.
        """
        self.parser = httptools.HttpRequestParser(self)
        framing = [header for header in self.headers if header[0] in FRAMING]
        if framing:
            self.cycle.more_body = True
            self._resuming = True
            lines = b"".join(name + b": " + value + b"\r\n" for name, value in framing)
            self.parser.feed_data(b"POST / HTTP/1.1\r\n" + lines + b"\r\n")
        if rest:
            self.data_received(rest)

    def on_message_begin(self) -> None:
        if self._resuming:
            return
        self._in_head, self._loose_bytes = True, 0
        self._head_bytes = 0
        self.quiet_since = self.loop.time()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._resuming:
            self._head_bytes += len(url)
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        # What follows a body in chunks is no header of the request.
        if self._in_head:
            self._head_bytes += len(name) + len(value) + 4
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._resuming:
            self._resuming = False
            return
        self._in_head = False
        if sum(name == b"host" for name, _ in self.headers) > 1:
            raise _Unclear("it has more than one Host")  # RFC 9112, section 3.2
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._loose_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._loose_bytes = 0
        super().on_message_complete()
        if not self.pipeline:
            # A body that filled what may wait has stopped the reading, in which its client is seen to leave.
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        self.quiet_since = self.loop.time()
        super().on_response_complete()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more. True keeps the way to it open.

        It may have closed its own side only, as `nc` does, and wait for its answer, or be gone
        altogether, and its work is in vain: these look alike until something is sent. What is sent is
        an interim answer, which a client has to pass over; one that is gone refuses it.
        """
        connected = self.transport.get_extra_info("socket")
        whole = self.under_way and not self.cycle.more_body and not self._in_head
        if self.scheme == "https" or connected.family == socket.AF_UNIX or not whole:
            return False
        self.cycle.keep_alive = False  # the newest of several: those before it are answered
        self.loop.call_later(ASK_EVERY_S, self._ask, connected, False)
        return True

    def _ask(self, connected: Any, asked: bool) -> None:
        if self.transport.is_closing() or not self.under_way:
            return
        if connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE:
            self.transport.abort()
            return
        # Never within another answer, and HTTP/1.0 knows no interim ones.
        alone = not self.pipeline and not self.cycle.response_started
        if alone and not asked and self.scope["http_version"] == "1.1":
            self.transport.write(PROCESSING)
            asked = True
        self.loop.call_later(ASK_EVERY_S, self._ask, connected, asked)


def _why(error: httptools.HttpParserError) -> str:
    """What is wrong with a request, where the parser's own words say it to nobody but its authors."""
    if isinstance(error, httptools.HttpParserCallbackError):
        if isinstance(error.__context__, _Unclear):
            return str(error.__context__)
        return "its address is not a path on this service"
    words = str(error)
    return "this is HTTP/2, which is not spoken here" if "PRI/Upgrade" in words else words


def _is_small(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request's body will have a few bytes, and comes without being asked for."""
    size = b""
    for name, value in headers:
        if name == b"content-length":
            size = value
        elif name == b"expect":
            return False
    return size.isdigit() and len(size) <= MOST_DIGITS


def _unacknowledged_bytes(descriptor: int) -> int:
    """What the kernel holds to be sent, or to be sent again."""
    return int.from_bytes(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def protocol(among: Connections) -> Any:
    """What uvicorn calls for each new connection."""

    def make(**arguments: Any) -> asyncio.Protocol:
        return cast(asyncio.Protocol, Connection(**arguments, among=among))

    return make
