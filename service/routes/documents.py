"""Documents of a collection: upsert, delete, get."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from starlette.convertors import Convertor, register_url_convertor

from mexma.errors import DocumentNotFound, InputError, InvalidLanguageTag, MexmaError
from mexma.language_tags import canonical_tag
from service.caller import Caller, caller
from service.collection_schemas import (
    CountResponse,
    DeleteRequest,
    DeleteResponse,
    DocumentOut,
    ScrollRequest,
    ScrollResponse,
    SelectionRequest,
    UpsertRequest,
    UpsertResponse,
)
from service.departures import unless_gone
from service.engine.embedder import Embedder
from service.http_errors import BODY_ERRORS, INFERENCE_ERRORS, STORE_ERRORS, documented, snake
from service.json_body import JsonRoute
from service.routes.collections import PREFIX, Name, with_encoder
from service.state import State
from service.store import filters
from service.store.protocol import CollectionInfo, Document, Selection
from service.vectors import json_response, timing_headers, truncations


class Anything(Convertor[str]):
    """An id in a path: with slashes, as the framework's `:path`, and with line breaks, which that has not."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("anything", Anything())


def router(state: State) -> APIRouter:
    """The routes, bound to one app's state."""
    routes = APIRouter(route_class=JsonRoute, tags=["documents"], prefix=PREFIX)
    store = state.store

    @routes.post(
        "/{name}/documents",
        response_model=UpsertResponse,
        responses=documented(*BODY_ERRORS, 404, 409, *INFERENCE_ERRORS),
    )
    async def upsert_documents(
        name: Name,
        body: UpsertRequest,
        request: Request,
        asks: Annotated[Caller, Depends(caller)],
    ) -> Response:
        """Embed and store documents; one with an id that exists is replaced.

        Each document has its own outcome: those that cannot be embedded fail, the others are
        stored, and are found by every search that starts after the answer.
        """

        async def upserted(info: CollectionInfo, embedder: Embedder) -> Response:
            return await _upserted(state, info, embedder, body, request, asks=asks)

        return await with_encoder(state, name, upserted)

    @routes.delete(
        "/{name}/documents",
        response_model=DeleteResponse,
        responses=documented(*BODY_ERRORS, 404, *STORE_ERRORS),
    )
    async def delete_documents(name: Name, body: DeleteRequest) -> DeleteResponse:
        """Delete documents by id, or by language and metadata.

        Ids that do not exist are not an error. Sent twice, it deletes nothing the second time.
        """
        chosen = selection_of(body)
        if (body.ids is None) == (chosen == Selection()):
            found_what = "none" if body.ids is None else "ids beside a selection"
            raise InputError(f"expected ids, or else languages or filter, found {found_what}")
        if body.ids is None:
            return DeleteResponse(deleted=await asyncio.to_thread(store.delete_where, name, chosen))
        state.encoders.default.check_count(len(body.ids))
        deleted = await asyncio.to_thread(store.delete, name, body.ids)
        return DeleteResponse(deleted=len(deleted))

    @routes.post(
        "/{name}/documents/count",
        response_model=CountResponse,
        responses=documented(*BODY_ERRORS, 404, *STORE_ERRORS),
    )
    async def count_documents(name: Name, body: SelectionRequest) -> CountResponse:
        """How many documents are in these languages and meet this condition."""
        chosen = selection_of(body)
        return CountResponse(count=await asyncio.to_thread(store.count, name, chosen))

    @routes.post(
        "/{name}/documents/scroll",
        response_model=ScrollResponse,
        responses=documented(*BODY_ERRORS, 404, *STORE_ERRORS),
    )
    async def scroll_documents(name: Name, body: ScrollRequest) -> ScrollResponse:
        """All documents page by page, in the order in which they were last written.

        A document that is not written meanwhile is on exactly one page; one that is comes again.
        """
        page = await asyncio.to_thread(
            store.scroll, name, selection_of(body), body.limit, body.cursor
        )
        documents = [DocumentOut(**asdict(document)) for document in page.documents]
        return ScrollResponse(documents=documents, cursor=page.cursor)

    @routes.delete(
        "/{name}/documents/{document_id:anything}",
        status_code=204,
        responses=documented(404, 422, *STORE_ERRORS),
    )
    async def delete_document(name: Name, document_id: str) -> None:
        """Delete one document."""
        if not await asyncio.to_thread(store.delete, name, [document_id]):
            raise DocumentNotFound(f"collection {name!r} holds no document {document_id[:80]!r}")

    @routes.get(
        "/{name}/documents/{document_id:anything}",
        response_model=DocumentOut,
        responses=documented(404, 422, *STORE_ERRORS),
    )
    async def get_document(name: Name, document_id: str) -> DocumentOut:
        """One document."""
        return DocumentOut(**asdict(await asyncio.to_thread(store.get, name, document_id)))

    return routes


async def _upserted(
    state: State,
    info: CollectionInfo,
    embedder: Embedder,
    body: UpsertRequest,
    request: Request,
    *,
    asks: Caller,
) -> Response:
    store, name, fingerprint = state.store, info.name, info.fingerprint
    embedder.check_count(len(body.documents))
    texts = [d.text for d in body.documents]
    embedded = await unless_gone(
        request, embedder.embed(texts, truncate=body.truncate, partial=True, caller=asks)
    )
    tags, no_tags = _tags(body)
    errors = embedded.errors | no_tags
    good = [i for i in range(len(texts)) if i not in errors]
    languages = await asyncio.to_thread(
        lambda: {i: tags[i] or state.detector.detect(texts[i]) for i in good}
    )
    documents = [
        Document(
            id=body.documents[i].id,
            text=texts[i],
            lang=languages[i],
            metadata=body.documents[i].metadata or {},
        )
        for i in good
    ]
    outcomes = await asyncio.to_thread(
        store.upsert, name, documents, embedded.vectors[good], fingerprint
    )
    content = _upsert_body(
        [d.id for d in body.documents],
        errors,
        truncations(embedded),
        {i: (outcome, languages[i]) for i, outcome in zip(good, outcomes, strict=True)},
    )
    return json_response(
        content | {"fingerprint": fingerprint}, timing_headers(embedded, fingerprint)
    )


def selection_of(body: SelectionRequest) -> Selection:
    """Raises InputError that names the place in the filter."""
    return Selection(
        languages=frozenset(body.languages) if body.languages else None,
        filter=None if body.filter is None else filters.parse(body.filter),
    )


def _tags(body: UpsertRequest) -> tuple[list[str | None], dict[int, InvalidLanguageTag]]:
    """The language of each document where it is given, and errors by index where it is no tag."""
    tags: list[str | None] = []
    errors = {}
    for i, document in enumerate(body.documents):
        try:
            tags.append(None if document.lang is None else canonical_tag(document.lang))
        except ValueError as error:
            tags.append(None)
            errors[i] = InvalidLanguageTag(f"item {i}: lang: {error}", item=i)
    return tags, errors


def _upsert_body(
    ids: list[str],
    errors: Mapping[int, MexmaError],
    cut: Mapping[int, dict[str, Any]],
    stored: Mapping[int, tuple[str, str]],
) -> dict[str, Any]:
    results: list[dict[str, Any]] = []
    for i, document_id in enumerate(ids):
        if i in stored:
            status, lang = stored[i]
            result: dict[str, Any] = {"id": document_id, "status": status, "lang": lang}
        else:
            error = errors[i]
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
