"""Request bodies: JSON, and said to be; with a clear word when they are not."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute


class JsonRequest(Request):
    """Parses with orjson, which refuses what is not UTF-8, NaN, and lone surrogates."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            body = await self.body()
            try:
                self._json = orjson.loads(body)
            except orjson.JSONDecodeError as error:
                raise HTTPException(400, _explain(body, error)) from None
        return self._json


def _explain(body: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        body.decode()
    except UnicodeDecodeError as undecodable:
        return (
            f"the body is not UTF-8: byte 0x{body[undecodable.start]:02x} at offset "
            f"{undecodable.start}; send JSON in UTF-8"
        )
    return f"the body is not JSON: {error}"


class JsonRoute(APIRoute):
    """A route whose body, if it takes one, must be JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        inner = super().get_route_handler()
        takes_body = self.body_field is not None

        async def handler(request: Request) -> Response:
            request = JsonRequest(request.scope, request.receive)
            # Of one that is missing the framework says so, whatever it is declared as.
            if takes_body and await request.body():
                kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
                if kind != "application/json" and not kind.endswith("+json"):
                    raise HTTPException(
                        415,
                        f"expected content-type application/json, found {kind if kind else 'none'}",
                    )
            return await inner(request)

        return handler
