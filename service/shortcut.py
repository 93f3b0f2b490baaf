"""The hot routes without the framework's way to them.

A request for one sentence's vector spent more time in routing, dependency resolution and exit stacks than
in everything else that is not the engine (`LOG.md`, 2026-11-26). A shortcut takes requests that are
sound, validates them with the route's own model and answers with the route's own function. Whatever else
comes it leaves to the framework, so that there is one place where errors find their words.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import orjson
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError
from starlette.types import Receive, Scope

from mexma.errors import InputError, MexmaError, Overloaded
from service.caller import Caller, caller_of
from service.http_errors import for_exception
from service.middleware import Shortcut, watched
from service.turns import Turns
from service.vectors import NPY

Body = TypeVar("Body", bound=BaseModel)
Answer = Callable[[Body, Caller, bool], Awaitable[Response]]

JSON_TYPES = (b"application/json", b"application/json; charset=utf-8")


def shortcut(
    model: type[Body],
    answer: Answer[Body],
    *,
    client_header: str,
    takes: Callable[[Body], bool] = lambda _: True,
    refusal: Callable[[int, Caller, int], Overloaded | None] = lambda *_: None,
) -> Shortcut:
    """The way past the framework to `answer`, which gets the body, who asks, and whether `.npy` is
    wanted. It gives None for a request that has to take the long way; takes: whether a sound one
    need not. refusal: by the size of a body, before it is parsed or waits for its turn, where there is
    no room for it behind what waits and so many requests that have not begun."""
    npy = NPY.encode()

    async def handle(
        body: bytes,
        headers: Mapping[bytes, bytes],
        scope: Scope,
        receive: Receive,
        turns: Turns,
    ) -> Response | None:
        if headers.get(b"content-type") not in JSON_TYPES:
            return None
        try:
            caller = caller_of(scope, headers, client_header=client_header)
            if (full := refusal(len(body), caller, turns.waiting)) is not None:
                return for_exception(scope["path"], full)
            await turns.mine(caller.client)
            parsed = model.model_validate(orjson.loads(body))
        except (orjson.JSONDecodeError, ValidationError, InputError):
            return None
        if not takes(parsed):
            return None
        try:
            return await watched(
                receive, answer(parsed, caller, npy in headers.get(b"accept", b""))
            )
        except MexmaError as error:
            return for_exception(scope["path"], error)

    return handle
