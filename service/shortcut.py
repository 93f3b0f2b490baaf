"""The hot routes without the framework's way to them.

A request for one sentence's vector spent more time in routing, dependency resolution and exit stacks than
in everything else that is not the engine (`LOG.md`, 2026-11-26). A shortcut takes requests that are
sound, validates them with the route's own model and answers with the route's own function. Whatever else
comes it leaves to the framework, so that there is one place where errors find their words.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

import orjson
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError
from starlette.types import Receive, Scope

from mexma.errors import InputError, MexmaError, Overloaded
from service.caller import Caller, caller_of
from service.departures import watched
from service.http_errors import for_exception
from service.received import received_of
from service.turns import Turns
from service.vectors import NPY

Body = TypeVar("Body", bound=BaseModel)
Answer = Callable[[Body, Caller, bool], Awaitable[Response]]

JSON_TYPES = (b"application/json", b"application/json; charset=utf-8")


class Shortcut(Generic[Body]):
    """The way past the framework to `answer`, which gets the body, who asks, and whether `.npy` is wanted."""

    def __init__(
        self,
        model: type[Body],
        answer: Answer[Body],
        *,
        client_header: str,
        takes: Callable[[Body], bool] = lambda _: True,
        refusal: Callable[[int, Caller, int], Overloaded | None] = lambda *_: None,
    ):
        """takes: whether a sound request need not take the long way. refusal: see `full`."""
        self._model = model
        self._answer = answer
        self._client_header = client_header
        self._takes = takes
        self._refusal = refusal
        self._npy = NPY.encode()

    def full(
        self, body_bytes: int, headers: Mapping[bytes, bytes], scope: Scope, coming: int
    ) -> Overloaded | None:
        """Why there is no room for a request with a body of this size, behind what waits and `coming` others
        that have not begun; before it is parsed. None where there is, or where it takes the long way."""
        if headers.get(b"content-type") not in JSON_TYPES:
            return None
        try:
            caller = caller_of(scope, headers, client_header=self._client_header)
        except InputError:
            return None
        return self._refusal(body_bytes, caller, coming)

    async def __call__(
        self,
        body: bytes,
        headers: Mapping[bytes, bytes],
        scope: Scope,
        receive: Receive,
        turns: Turns,
    ) -> Response | None:
        """None for a request that has to take the long way."""
        if headers.get(b"content-type") not in JSON_TYPES:
            return None
        received = received_of(scope)
        if received is None or not received.let_in:
            full = self.full(len(body), headers, scope, turns.coming)
            if full is not None:
                return for_exception(scope["path"], full)
        try:
            caller = caller_of(scope, headers, client_header=self._client_header)
            await turns.mine(caller.client)
            parsed = self._model.model_validate(orjson.loads(body))
        except (orjson.JSONDecodeError, ValidationError, InputError):
            return None
        if not self._takes(parsed):
            return None
        try:
            npy = self._npy in headers.get(b"accept", b"")
            return await watched(scope, receive, self._answer(parsed, caller, npy))
        except MexmaError as error:
            return for_exception(scope["path"], error)
