"""Collections: documents in many languages, and their neighbours across languages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Request
from fastapi.responses import Response
from numpy.typing import NDArray

from mexma.errors import InputError, TooManyItems
from service.embedder import Embedded
from service.http_errors import BODY_ERRORS, INFERENCE_ERRORS, documented, snake
from service.json_body import JsonRoute
from service.middleware import unless_gone
from service.schemas import (
    CollectionDescription,
    CollectionList,
    CollectionName,
    DeleteRequest,
    DeleteResponse,
    DocumentOut,
    SearchRequest,
    SearchResponse,
    UpsertRequest,
    UpsertResponse,
)
from service.state import State
from service.store.protocol import CollectionInfo, Document, Query
from service.vectors import json_response, timing_headers, truncations

Name = Annotated[CollectionName, Path(description="1 to 64 letters, digits, `_` or `-`.")]


def router(state: State) -> APIRouter:
    """The routes, bound to one app's state."""
    routes = APIRouter(route_class=JsonRoute, tags=["collections"], prefix="/v1/collections")
    store, embedder = state.store, state.embedder
    dim, fingerprint = state.encoder.manifest.dim, state.encoder.fingerprint

    @routes.get("", response_model=CollectionList, responses=documented(500))
    async def list_collections() -> CollectionList:
        """All collections."""
        infos = await asyncio.to_thread(store.list)
        return CollectionList(collections=[_describe(info) for info in infos])

    @routes.put(
        "/{name}", response_model=CollectionDescription, responses=documented(409, 422, 500)
    )
    async def create_collection(name: Name) -> CollectionDescription:
        """Create a collection, or find that it exists already.

        It is stamped with the encoder that is served now, and takes no other's vectors.
        """
        return _describe(await asyncio.to_thread(store.create, name, dim, fingerprint))

    @routes.get(
        "/{name}", response_model=CollectionDescription, responses=documented(404, 422, 500)
    )
    async def describe_collection(name: Name) -> CollectionDescription:
        """One collection: how many documents, in which languages, by which encoder."""
        return _describe(await asyncio.to_thread(store.describe, name))

    @routes.delete("/{name}", status_code=204, responses=documented(404, 422, 500))
    async def drop_collection(name: Name) -> None:
        """Delete a collection with all its documents."""
        await asyncio.to_thread(store.drop, name)

    @routes.post(
        "/{name}/documents",
        response_model=UpsertResponse,
        responses=documented(*BODY_ERRORS, 404, 409, *INFERENCE_ERRORS),
    )
    async def upsert_documents(name: Name, body: UpsertRequest, request: Request) -> Response:
        """Embed and store documents; one with an id that exists is replaced.

        Each document has its own outcome: those that cannot be embedded fail, the others are
        stored, and are found by every search that starts after the answer.
        """
        _check_count(len(body.documents), state.settings.max_request_items)
        await asyncio.to_thread(store.describe, name)  # 404 before any work
        texts = [d.text for d in body.documents]
        embedded = await unless_gone(request, embedder.embed(texts, partial=True))
        good = [i for i in range(len(texts)) if i not in embedded.errors]
        languages = await asyncio.to_thread(
            lambda: {i: body.documents[i].lang or state.detector.detect(texts[i]) for i in good}
        )
        documents = [
            Document(
                id=body.documents[i].id,
                text=texts[i],
                lang=languages[i],
                metadata=body.documents[i].metadata,
            )
            for i in good
        ]
        outcomes = await asyncio.to_thread(
            store.upsert, name, documents, embedded.vectors[good], fingerprint
        )
        content = _upsert_body(
            [d.id for d in body.documents],
            embedded,
            {i: (outcome, languages[i]) for i, outcome in zip(good, outcomes, strict=True)},
        )
        state.metrics.documents.labels(name).set(
            (await asyncio.to_thread(store.describe, name)).count
        )
        return json_response(
            content | {"fingerprint": fingerprint}, timing_headers(embedded, fingerprint)
        )

    @routes.delete(
        "/{name}/documents",
        response_model=DeleteResponse,
        responses=documented(*BODY_ERRORS, 404, 500),
    )
    async def delete_documents(name: Name, body: DeleteRequest) -> DeleteResponse:
        """Delete documents by id; ids that do not exist are not an error."""
        _check_count(len(body.ids), state.settings.max_request_items)
        return DeleteResponse(deleted=await asyncio.to_thread(store.delete, name, body.ids))

    @routes.get(
        "/{name}/documents/{document_id:path}",
        response_model=DocumentOut,
        responses=documented(404, 422, 500),
    )
    async def get_document(name: Name, document_id: str) -> DocumentOut:
        """One document."""
        return DocumentOut(**asdict(await asyncio.to_thread(store.get, name, document_id)))

    @routes.post(
        "/{name}/search",
        response_model=SearchResponse,
        responses=documented(*BODY_ERRORS, 404, 409, *INFERENCE_ERRORS),
    )
    async def search(name: Name, body: SearchRequest, request: Request) -> Response:
        """The nearest documents to texts or vectors, in chosen languages or in each."""
        await asyncio.to_thread(store.describe, name)  # 404 before any work
        headers = {"x-encoder-fingerprint": fingerprint}
        languages: list[str | None]
        if (body.queries is None) == (body.vectors is None):
            raise InputError("expected either queries or vectors, found both or neither")
        if body.queries is not None:
            queries = body.queries
            embedded = await unless_gone(request, embedder.embed(queries))
            vectors = embedded.vectors
            headers = timing_headers(embedded, fingerprint)
            if body.query_language:
                languages = [body.query_language] * len(queries)
            else:
                languages = await asyncio.to_thread(lambda: [*map(state.detector.detect, queries)])
        else:
            vectors = _matrix(body.vectors or [], dim)
            languages = [body.query_language] * len(vectors)
            if body.exclude_query_language and not body.query_language:
                raise InputError(
                    "exclude_query_language needs query_language when searching by vectors: "
                    "the language of a vector cannot be detected"
                )
        _check_count(len(vectors), state.settings.max_request_items)
        query = Query(
            k=body.k,
            languages=frozenset(body.languages) if body.languages else None,
            exclude_query_language=body.exclude_query_language,
            per_language=body.per_language,
            score=body.score,
            score_threshold=body.score_threshold,
            exact=body.exact,
        )
        started = time.monotonic()
        found = await asyncio.to_thread(store.search, name, vectors, query, fingerprint, languages)
        seconds = time.monotonic() - started
        state.metrics.search_seconds.observe(seconds)
        state.metrics.searches.labels(name, body.score).inc(len(vectors))
        timing = f"search;dur={seconds * 1000:.2f}"
        headers["server-timing"] = ", ".join(filter(None, [headers.get("server-timing"), timing]))
        return json_response(
            {
                "results": [[asdict(hit) for hit in hits] for hits in found],
                "query_languages": languages,
                "fingerprint": fingerprint,
            },
            headers,
        )

    return routes


def _describe(info: CollectionInfo) -> CollectionDescription:
    return CollectionDescription(
        name=info.name,
        dimensions=info.dim,
        fingerprint=info.fingerprint,
        count=info.count,
        languages=info.languages,
        index_state=info.index_state,
        created_at=info.created_at,
    )


def _check_count(count: int, limit: int) -> None:
    if count > limit:
        raise TooManyItems(f"{count} items were sent; the limit is {limit}", limit=limit)


def _matrix(rows: Sequence[Sequence[float]], dim: int) -> NDArray[np.float32]:
    """Query vectors float32 `[n, dim]`, normalised; raises InputError naming the item."""
    for item, row in enumerate(rows):
        if len(row) != dim:
            raise InputError(
                f"item {item} has {len(row)} components; this model's vectors have {dim}",
                item=item,
                limit=dim,
            )
    vectors = np.array(rows, np.float32)
    norms = np.linalg.norm(vectors, axis=1)
    for item, norm in enumerate(norms):
        if not np.isfinite(norm) or norm == 0:
            raise InputError(f"item {item} has no direction: its length is {norm}", item=item)
    return vectors / norms[:, None]


def _upsert_body(
    ids: list[str], embedded: Embedded, stored: dict[int, tuple[str, str]]
) -> dict[str, Any]:
    cut = truncations(embedded)
    results: list[dict[str, Any]] = []
    for i, document_id in enumerate(ids):
        if i in stored:
            status, lang = stored[i]
            result: dict[str, Any] = {"id": document_id, "status": status, "lang": lang}
        else:
            error = embedded.errors[i]
            result = {
                "id": document_id,
                "status": "failed",
                "error": {"message": str(error), "code": snake(type(error).__name__)},
            }
        if i in cut:
            result["truncation"] = cut[i]
        results.append(result)
    counts = {s: sum(r["status"] == s for r in results) for s in ("created", "updated", "failed")}
    return {"results": results, **counts}
