"""Documents of a collection: upsert, delete, get."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from mexma.errors import DocumentNotFound
from service.embedder import Embedded
from service.http_errors import BODY_ERRORS, INFERENCE_ERRORS, documented, snake
from service.json_body import JsonRoute
from service.middleware import unless_gone
from service.routes.collections import PREFIX, Name
from service.schemas import (
    DeleteRequest,
    DeleteResponse,
    DocumentOut,
    UpsertRequest,
    UpsertResponse,
)
from service.state import State
from service.store.protocol import Document
from service.vectors import json_response, timing_headers, truncations


def router(state: State) -> APIRouter:
    """The routes, bound to one app's state."""
    routes = APIRouter(route_class=JsonRoute, tags=["documents"], prefix=PREFIX)
    store, embedder = state.store, state.embedder
    fingerprint = state.encoder.fingerprint

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
        embedder.check_count(len(body.documents))
        await asyncio.to_thread(store.describe, name)  # 404 before any work
        texts = [d.text for d in body.documents]
        embedded = await unless_gone(
            request, embedder.embed(texts, truncate=body.truncate, partial=True)
        )
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
        embedder.check_count(len(body.ids))
        deleted = await asyncio.to_thread(store.delete, name, body.ids)
        return DeleteResponse(deleted=len(deleted))

    @routes.delete(
        "/{name}/documents/{document_id:path}", status_code=204, responses=documented(404, 422, 500)
    )
    async def delete_document(name: Name, document_id: str) -> None:
        """Delete one document."""
        if not await asyncio.to_thread(store.delete, name, [document_id]):
            raise DocumentNotFound(f"collection {name!r} holds no document {document_id[:80]!r}")

    @routes.get(
        "/{name}/documents/{document_id:path}",
        response_model=DocumentOut,
        responses=documented(404, 422, 500),
    )
    async def get_document(name: Name, document_id: str) -> DocumentOut:
        """One document."""
        return DocumentOut(**asdict(await asyncio.to_thread(store.get, name, document_id)))

    return routes


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
