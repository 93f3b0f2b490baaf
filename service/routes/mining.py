"""`POST /v1/mine`: which sentences of two lists translate each other."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, NamedTuple

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from numpy.typing import NDArray

from mexma.errors import EngineError, InputError
from mexma.mining import mine
from service.caller import Caller, caller
from service.departures import unless_gone
from service.engine.embedder import Embedded
from service.http_errors import BODY_ERRORS, INFERENCE_ERRORS, documented, for_exception, snake
from service.json_body import JsonRoute
from service.mining_schemas import MineRequest, MineResponse
from service.sides import placed, renamed
from service.state import State
from service.vectors import json_response, timing_headers, truncations


def router(state: State) -> APIRouter:
    """The route, bound to one app's state."""
    routes = APIRouter(route_class=JsonRoute, tags=["mining"])

    @routes.post(
        "/v1/mine",
        response_model=MineResponse,
        responses=documented(*BODY_ERRORS, *INFERENCE_ERRORS),
    )
    async def mine_pairs(
        body: MineRequest, request: Request, asks: Annotated[Caller, Depends(caller)]
    ) -> Response:
        """Find the translation pairs of two lists, in memory: as many sentences in both together as a
        request may have items."""
        embedder = state.encoders.for_request(body.model)
        work = embedder.embed(
            [*body.source, *body.target],
            truncate=body.truncate,
            partial=body.partial,
            caller=asks,
        )
        try:
            embedded = await unless_gone(request, work)
        except (InputError, EngineError) as error:
            if error.item is None:
                raise
            side, place = placed(error.item, len(body.source))
            return for_exception(request.url.path, renamed(error, side, place), param=side)
        started = time.monotonic()
        pairs = await asyncio.to_thread(_mined, embedded, body)
        seconds = time.monotonic() - started
        encoder = embedder.encoder
        headers = timing_headers(embedded, encoder.fingerprint)
        headers["server-timing"] += f", mine;dur={seconds * 1000:.2f}"
        tokens = embedded.token_count
        content: dict[str, Any] = {
            "pairs": [pair._asdict() for pair in pairs],
            "source_truncations": {},
            "target_truncations": {},
            "source_errors": {},
            "target_errors": {},
            "model": encoder.manifest.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "fingerprint": encoder.fingerprint,
        }
        for item, receipt in truncations(embedded).items():
            side, place = placed(item, len(body.source))
            content[f"{side}_truncations"][place] = receipt
        for item, bad in sorted(embedded.errors.items()):
            side, place = placed(item, len(body.source))
            said = {"message": str(renamed(bad, side, place)), "code": snake(type(bad).__name__)}
            content[f"{side}_errors"][place] = said
        return json_response(content, headers)

    return routes


class Pair(NamedTuple):
    """As `mining_schemas.MinedPair`."""

    source: int
    target: int
    score: float
    cosine: float


def _mined(embedded: Embedded, body: MineRequest) -> list[Pair]:
    """What is found; embedded: the sentences of the source, then those of the target."""
    sources = len(body.source)
    source = _distinct(embedded, range(sources))
    target = _distinct(embedded, range(sources, len(embedded.tokens)))
    x, y = embedded.vectors[source], embedded.vectors[target]  # [n, dim], [m, dim]
    found = mine(
        x, y, k=body.k, score=body.score, method=body.method, threshold=body.score_threshold
    )
    # One by one as a sum over the pair's own rows: by a matrix product it would depend on the others.
    return [
        Pair(
            int(source[c.source]),
            int(target[c.target]) - sources,
            c.score,
            c.score if body.score == "cosine" else float(np.dot(x[c.source], y[c.target])),
        )
        for c in found
    ]


def _distinct(embedded: Embedded, items: range) -> NDArray[np.int64]:
    """Of `items`, int64, those that are good and the first of their tokens.

    Copies would be one another's best neighbours as seen from the other side, and lower the margin of
    what is a good pair.
    """
    first: dict[bytes, int] = {}
    for item in items:
        tokens = embedded.tokens[item]
        if tokens is not None and item not in embedded.errors:
            first.setdefault(tokens.ids.tobytes(), item)
    return np.array([*first.values()], np.int64)
