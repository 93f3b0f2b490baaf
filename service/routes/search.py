"""Search: text or vectors in, neighbours across languages out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from numpy.typing import NDArray

from mexma.errors import InputError, TooManyItems
from service.caller import Caller, caller
from service.collection_schemas import SearchRequest, SearchResponse
from service.departures import unless_gone
from service.engine.embedder import Embedder
from service.http_errors import BODY_ERRORS, INFERENCE_ERRORS, documented
from service.json_body import JsonRoute
from service.routes.collections import PREFIX, Name, with_encoder
from service.routes.documents import selection_of
from service.state import State
from service.store.admission import check_fingerprint
from service.store.protocol import CollectionInfo, Explained, Query, Selection, matches
from service.vectors import json_response, timing_headers, truncations


def router(state: State) -> APIRouter:
    """The route, bound to one app's state."""
    routes = APIRouter(route_class=JsonRoute, tags=["search"], prefix=PREFIX)

    @routes.post(
        "/{name}/search",
        response_model=SearchResponse,
        responses=documented(*BODY_ERRORS, 404, 409, *INFERENCE_ERRORS),
    )
    async def search(
        name: Name,
        body: SearchRequest,
        request: Request,
        asks: Annotated[Caller, Depends(caller)],
    ) -> Response:
        """The nearest documents to texts or vectors, in chosen languages or in each."""
        if (body.queries is None) == (body.vectors is None):
            found_what = "neither" if body.queries is None else "both"
            raise InputError(f"expected either queries or vectors, found {found_what}")

        async def found(info: CollectionInfo, embedder: Embedder) -> Response:
            return await _found(state, info, embedder, body, request, asks=asks)

        return await with_encoder(state, name, found, again=body.queries is not None)

    return routes


async def _found(
    state: State,
    info: CollectionInfo,
    embedder: Embedder,
    body: SearchRequest,
    request: Request,
    *,
    asks: Caller,
) -> Response:
    store, name, fingerprint = state.store, info.name, info.fingerprint
    groups = len(info.languages) if body.per_language else 1
    asked = len(body.queries or body.vectors or []) * body.k * max(groups, 1)
    if asked > state.settings.max_search_hits:
        raise TooManyItems(
            f"the search asks for up to {asked} hits; the limit is "
            f"{state.settings.max_search_hits}",
            limit=state.settings.max_search_hits,
        )
    chosen = selection_of(body)
    headers = {"x-encoder-fingerprint": fingerprint}
    languages: list[str | None]
    cut: dict[int, dict[str, Any]] = {}
    if body.fingerprint is not None:
        check_fingerprint(name, fingerprint, body.fingerprint)
    if body.queries is not None:
        queries = body.queries
        work = embedder.embed(queries, truncate=body.truncate, caller=asks)
        embedded = await unless_gone(request, work)
        vectors, cut = embedded.vectors, truncations(embedded)
        headers = timing_headers(embedded, fingerprint)
        if body.query_language:
            languages = [body.query_language] * len(queries)
        else:
            languages = await asyncio.to_thread(lambda: [*map(state.detector.detect, queries)])
    else:
        embedder.check_count(len(body.vectors or []))
        vectors = _matrix(body.vectors or [], info.dim)
        languages = [body.query_language] * len(vectors)
        if body.exclude_query_language and not body.query_language:
            raise InputError(
                "exclude_query_language needs query_language when searching by vectors: "
                "the language of a vector cannot be detected"
            )
    query = Query(
        k=body.k,
        languages=chosen.languages,
        filter=chosen.filter,
        exclude_query_language=body.exclude_query_language,
        per_language=body.per_language,
        score=body.score,
        score_threshold=body.score_threshold,
        exact=body.exact,
        recall=body.recall,
        mutual=body.mutual,
    )
    started = time.monotonic()
    found = await asyncio.to_thread(store.explain, name, vectors, query, fingerprint, languages)
    seconds = time.monotonic() - started
    state.metrics.search_seconds.observe(seconds)
    state.metrics.searches.labels(name, body.score).inc(len(vectors))
    timing = f"search;dur={seconds * 1000:.2f}"
    headers["server-timing"] = ", ".join(filter(None, [headers.get("server-timing"), timing]))
    return json_response(
        {
            "results": [[asdict(hit) for hit in one.hits] for one in found],
            "explanations": [_explanation(one) for one in found] if body.explain else None,
            "query_languages": languages,
            "query_truncations": cut,
            "languages_without_documents": _without_documents(chosen, info),
            "fingerprint": fingerprint,
        },
        headers,
    )


def _without_documents(chosen: Selection, info: CollectionInfo) -> list[str]:
    """The languages asked for that no document has; finding nothing in them is no answer to the query."""
    return sorted(
        wanted
        for wanted in chosen.languages or ()
        if not any(matches(tag, wanted) for tag in info.languages)
    )


def _explanation(found: Explained) -> dict[str, Any]:
    explained = asdict(found)
    del explained["hits"]
    return explained


def _matrix(rows: Sequence[Sequence[float]], dim: int) -> NDArray[np.float32]:
    """Query vectors float32 `[n, dim]`, normalised; raises InputError naming the item."""
    for item, row in enumerate(rows):
        if len(row) != dim:
            raise InputError(
                f"item {item} has {len(row)} components; this model's vectors have {dim}",
                item=item,
                limit=dim,
            )
    vectors = np.array(rows, np.float64)
    with np.errstate(over="ignore"):  # a length beyond float64 is refused below
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    for item, norm in enumerate(norms[:, 0]):
        if not np.isfinite(norm) or norm == 0:
            raise InputError(f"item {item} has no direction: its length is {norm}", item=item)
    normalised: NDArray[np.float32] = (vectors / norms).astype(np.float32)
    return normalised
