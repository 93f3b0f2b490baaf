"""Who asks, how urgently, and how long they will wait: read from a request's headers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, get_args

from fastapi import Header, Request
from starlette.types import Scope

from mexma.errors import InputError
from service.engine.lanes import Lane

LANES: tuple[Lane, ...] = get_args(Lane)

LaneHeader = Annotated[
    Lane | None,
    Header(
        alias="x-lane",
        description="`interactive` goes first, `bulk` gives way. Without it a request is interactive "
        "up to a number of tokens (`MEXMA_INTERACTIVE_TOKENS`).",
    ),
]
TimeoutHeader = Annotated[
    int | None,
    Header(
        alias="x-timeout-ms",
        ge=1,
        lt=10**9,
        description="Milliseconds after which nobody waits for the answer: what has not run by then "
        "leaves the queue and the answer is 504; where the queue is known to be longer than that, it is "
        "503 at once. The service's own limit holds besides.",
    ),
]


@dataclass(frozen=True, slots=True)
class Caller:
    """client: between whom the engine is shared evenly. lane: None means by size. timeout_s:
    None means the service's."""

    client: bytes = b""
    lane: Lane | None = None
    timeout_s: float | None = None


INTERNAL = Caller()
INTERNAL_BULK = Caller(lane="bulk")
INTERNAL_AT_ONCE = Caller(lane="interactive")
OURS = (INTERNAL, INTERNAL_BULK, INTERNAL_AT_ONCE)


def is_ours(caller: Caller) -> bool:
    """Whether it is the service itself; a client whose headers say nothing looks the same."""
    return any(caller is one for one in OURS)


def client_of(scope: Scope, headers: Mapping[bytes, bytes], client_header: str) -> bytes:
    """Between whom turns are taken: what `client_header` says or, without it, address and
    credentials."""
    if client_header:
        return headers.get(client_header.encode(), b"")
    address = scope.get("client")
    return (address[0].encode() if address else b"") + headers.get(b"authorization", b"")


def caller_of(
    scope: Scope, headers: Mapping[bytes, bytes] | None = None, *, client_header: str = ""
) -> Caller:
    """Who sends the request of `scope`.

    headers: those of the scope, where they have been made a mapping already. client_header:
    the header that names the client; without it the client is its address and credentials.
    Raises InputError for a lane or time-out that is none.
    """
    if headers is None:
        headers = dict(_headers(scope))
    client = client_of(scope, headers, client_header)
    lane: Lane | None = None
    if (given := headers.get(b"x-lane")) is not None:
        lane = next((known for known in LANES if known.encode() == given), None)
        if lane is None:
            raise InputError(
                f"x-lane must be one of {', '.join(LANES)}; found {given.decode('latin-1')[:40]!r}"
            )
    timeout_s = None
    if (given := headers.get(b"x-timeout-ms")) is not None:
        # By length first: Python refuses to read a number of more than 4,300 digits.
        if not given.isdigit() or len(given) > 9 or int(given) == 0:
            raise InputError(
                "x-timeout-ms must be a whole number of milliseconds, at least 1; found "
                f"{given.decode('latin-1')[:40]!r}"
            )
        timeout_s = int(given) / 1000
    return Caller(client, lane, timeout_s)


def caller(request: Request, lane: LaneHeader = None, timeout: TimeoutHeader = None) -> Caller:
    """The same as a dependency of a route, which documents the headers."""
    return caller_of(request.scope, client_header=request.app.state.client_header)


def _headers(scope: Scope) -> Iterable[tuple[bytes, bytes]]:
    found: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return found
